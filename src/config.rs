//! Files of settings: an agent's TOML, the client's contexts, the places where things live.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::limit::{BYTES_MAX, DEVICES_PER_NODE_MAX, NODE_CPU_MILLIS_MAX, NODES_PER_POOL_MAX};
use crate::model::region::RegionCode;
use crate::model::text;
use crate::model::validate::quote;

/// One pool, as its agent's file describes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentFile {
    /// The pool's name: a DNS label.
    pub name: String,
    /// ISO 3166-2 or GB/T 2260.
    pub region: String,
    /// Address of the broker; the client's rules apply where it is absent.
    pub server: Option<String>,
    /// File that holds the broker's token.
    pub token_file: Option<PathBuf>,
    /// Folder that the agent keeps.
    pub state: PathBuf,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// This machine.
    pub host: Option<HostSection>,
    pub kubernetes: Option<KubernetesSection>,
    pub simulated: Option<SimulatedSection>,
}

/// A pool that is a Kubernetes cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesSection {
    /// Absent means `$KUBECONFIG`, `~/.kube/config`, or what a pod of the cluster is given.
    pub kubeconfig: Option<PathBuf>,
    /// Absent means the file's current one.
    pub context: Option<String>,
    /// Where the pods are, and the pool's lock.
    #[serde(default = "weir")]
    pub namespace: String,
    /// Namespaces of their own, by queue; those below it are in it, too.
    #[serde(default)]
    pub queues: BTreeMap<String, String>,
    /// A label selector; absent means all nodes.
    #[serde(default)]
    pub nodes: String,
    /// How pods come to their nodes.
    #[serde(default)]
    pub binding: Binding,
    /// Who binds them where a scheduler does.
    #[serde(default = "default_scheduler")]
    pub scheduler: String,
    /// The image in which jobs run that are commands; absent refuses them.
    pub process_image: Option<String>,
    /// The pods' service account; absent means the namespace's default one.
    pub service_account: Option<String>,
    /// Secrets by which images are pulled.
    #[serde(default)]
    pub image_pull_secrets: Vec<String>,
    /// How long a pod may fail to start, for want of its image or a place.
    #[serde(default = "two_minutes")]
    pub start_timeout_seconds: u64,
    /// Device models by the cluster's resource: `"nvidia.com/gpu" = "A100-80G"`.
    #[serde(default)]
    pub devices: BTreeMap<String, String>,
    /// Output kept per task; absent means 64.
    pub log_max_mib: Option<u64>,
}

/// How pods come to their nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Binding {
    /// They are created with their node's name.
    #[default]
    Direct,
    /// The cluster's scheduler binds them, to the one node that they may run on.
    Scheduler,
}

/// A pool that is the agent's own machine.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSection {
    /// CPUs that Weir may use; absent means all.
    pub cpus: Option<u64>,
    /// Memory that Weir may use; absent means all but an eighth.
    pub memory_mib: Option<u64>,
    /// Accelerators, in the order in which their makers' tools list them.
    #[serde(default)]
    pub devices: Vec<Devices>,
    /// A control group (version 2) that is this pool's to use, from the root of their hierarchy;
    /// absent means the one that the agent runs in.
    pub cgroup_parent: Option<PathBuf>,
    /// Output kept per attempt; absent means 64.
    pub log_max_mib: Option<u64>,
}

/// Accelerators that are alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Devices {
    /// As jobs name it: `A100-80G`, `Ascend910B3`.
    pub model: String,
    pub count: u16,
    /// Absent means what the table of models says.
    pub memory_gib: Option<u64>,
}

/// A simulated pool.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulatedSection {
    pub nodes: Vec<NodeKind>,
    /// How much faster than real time tasks run.
    #[serde(default = "one")]
    pub speedup: f64,
}

/// Simulated nodes that are alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeKind {
    pub count: u32,
    /// What the nodes' names begin with.
    pub prefix: String,
    pub cpus: u64,
    pub memory_gib: u64,
    /// A device model; empty means none.
    #[serde(default)]
    pub device: String,
    #[serde(default)]
    pub devices: u16,
}

/// CPUs of one node.
const CPUS_MAX: u64 = NODE_CPU_MILLIS_MAX / 1_000;
/// Faster than this a day passes in less than a tenth of a second.
const SPEEDUP_MAX: f64 = 1_000_000.0;

/// A pod that has not started in a day never will.
const TIMEOUT_SECONDS_MAX: u64 = 86_400;

fn one() -> f64 {
    1.0
}

fn weir() -> String {
    "weir".to_owned()
}

fn default_scheduler() -> String {
    "default-scheduler".to_owned()
}

fn two_minutes() -> u64 {
    120
}

/// A file of settings that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct FileError {
    pub path: PathBuf,
    pub message: String,
}

impl AgentFile {
    /// Reads and checks an agent's file.
    ///
    /// # Errors
    /// If it can't be read, isn't TOML, or a field's value is not allowed.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let failed = |message: String| FileError { path: path.to_owned(), message };
        let written = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let file: Self = toml::from_str(&written).map_err(|error| failed(error.to_string()))?;
        if !text::is_name(&file.name) {
            let rule = "is not 1 to 63 lower-case letters, digits and inner hyphens";
            return Err(failed(format!("name: {} {rule}", quote(&file.name))));
        }
        RegionCode::parse(&file.region).map_err(|error| failed(format!("region: {error}")))?;
        match (&file.host, &file.kubernetes, &file.simulated) {
            (Some(host), None, None) => host.check().map(|()| file).map_err(failed),
            (None, Some(kubernetes), None) => kubernetes.check().map(|()| file).map_err(failed),
            (None, None, Some(simulated)) => simulated.check().map(|()| file).map_err(failed),
            _ => Err(failed("name exactly one backend: [host], [kubernetes] or [simulated]".to_owned())),
        }
    }
}

/// Says that `value` is not within 1 and `max`, if so.
fn within(field: &str, value: u64, max: u64) -> Result<(), String> {
    if (1..=max).contains(&value) {
        Ok(())
    } else {
        Err(format!("{field}: {value} is not within 1 and {max}"))
    }
}

impl HostSection {
    fn check(&self) -> Result<(), String> {
        self.cpus.map_or(Ok(()), |cpus| within("host.cpus", cpus, CPUS_MAX))?;
        self.memory_mib.map_or(Ok(()), |mib| within("host.memory_mib", mib, BYTES_MAX >> 20))?;
        self.log_max_mib.map_or(Ok(()), |mib| within("host.log_max_mib", mib, BYTES_MAX >> 20))?;
        let mut count = 0;
        for (index, devices) in self.devices.iter().enumerate() {
            let field = |name: &str| format!("host.devices[{index}].{name}");
            if !text::is_label(&devices.model) || devices.model.is_empty() {
                return Err(format!("{}: {} is not a model's name", field("model"), quote(&devices.model)));
            }
            within(&field("count"), u64::from(devices.count), DEVICES_PER_NODE_MAX as u64)?;
            devices.memory_gib.map_or(Ok(()), |gib| within(&field("memory_gib"), gib, BYTES_MAX >> 30))?;
            count += usize::from(devices.count);
        }
        if count > DEVICES_PER_NODE_MAX {
            return Err(format!("host.devices: {count} devices, at most {DEVICES_PER_NODE_MAX} are allowed"));
        }
        match &self.cgroup_parent {
            Some(path)
                if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) =>
            {
                let rule = "is not a path from the root, such as \"/weir\"";
                Err(format!("host.cgroup_parent: {} {rule}", quote(&path.display().to_string())))
            }
            _ => Ok(()),
        }
    }
}

impl KubernetesSection {
    fn check(&self) -> Result<(), String> {
        let named = |field: &str, name: &str| {
            let rule = "is not 1 to 63 lower-case letters, digits and inner hyphens";
            if text::is_name(name) {
                Ok(())
            } else {
                Err(format!("kubernetes.{field}: {} {rule}", quote(name)))
            }
        };
        named("namespace", &self.namespace)?;
        for (queue, namespace) in &self.queues {
            named(&format!("queues.{queue}"), namespace)?;
        }
        self.image_pull_secrets.iter().try_for_each(|name| named("image_pull_secrets", name))?;
        self.service_account.iter().try_for_each(|name| named("service_account", name))?;
        if self.process_image.as_ref().is_some_and(String::is_empty) {
            return Err("kubernetes.process_image: is empty; leave it out to refuse commands".to_owned());
        }
        for (resource, model) in &self.devices {
            if model.is_empty() || !text::is_label(model) {
                return Err(format!("kubernetes.devices.{resource}: {} is not a model's name", quote(model)));
            }
        }
        within("kubernetes.start_timeout_seconds", self.start_timeout_seconds, TIMEOUT_SECONDS_MAX)?;
        self.log_max_mib.map_or(Ok(()), |mib| within("kubernetes.log_max_mib", mib, BYTES_MAX >> 20))
    }
}

impl SimulatedSection {
    fn check(&self) -> Result<(), String> {
        if !(self.speedup > 0.0 && self.speedup <= SPEEDUP_MAX) {
            return Err(format!(
                "simulated.speedup: {} is not above 0 and at most {SPEEDUP_MAX}",
                self.speedup
            ));
        }
        let mut count = 0;
        for (index, kind) in self.nodes.iter().enumerate() {
            let field = |name: &str| format!("simulated.nodes[{index}].{name}");
            count += u64::from(kind.count);
            within(&field("cpus"), kind.cpus, CPUS_MAX)?;
            within(&field("memory_gib"), kind.memory_gib, BYTES_MAX >> 30)?;
            // A node's name is its kind's and a number.
            if !text::is_name(&kind.prefix) || kind.prefix.len() > 50 {
                let rule = "is not 1 to 50 lower-case letters, digits and inner hyphens";
                return Err(format!("{}: {} {rule}", field("prefix"), quote(&kind.prefix)));
            }
            if usize::from(kind.devices) > DEVICES_PER_NODE_MAX {
                let max = DEVICES_PER_NODE_MAX;
                return Err(format!("{}: {} is not within 0 and {max}", field("devices"), kind.devices));
            }
            if kind.devices > 0 && (kind.device.is_empty() || !text::is_label(&kind.device)) {
                return Err(format!("{}: {} is not a model's name", field("device"), quote(&kind.device)));
            }
        }
        within("simulated.nodes", count, NODES_PER_POOL_MAX as u64)
    }
}

/// Where the client finds brokers.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// The broker that is meant where none is named.
    pub server: Option<String>,
    /// The broker that was started last on this machine: meant where `server` is absent.
    pub current: Option<String>,
    /// Data directories of brokers on this machine, by address.
    #[serde(default)]
    pub contexts: BTreeMap<String, PathBuf>,
}

/// `$XDG_CONFIG_HOME/weir/config.toml`, or the same under `~/.config`.
pub fn client_file_path() -> PathBuf {
    xdg("XDG_CONFIG_HOME", ".config").join("config.toml")
}

/// `$XDG_STATE_HOME/weir`, or the same under `~/.local/state`.
pub fn state_directory() -> PathBuf {
    xdg("XDG_STATE_HOME", ".local/state")
}

fn xdg(variable: &str, fallback: &str) -> PathBuf {
    let set = std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into())).join(fallback);
    set.unwrap_or_else(home).join("weir")
}

impl ClientFile {
    /// Reads the client's file; an absent one is empty.
    ///
    /// # Errors
    /// If it is there but can't be read.
    pub fn read() -> Result<Self, FileError> {
        let path = client_file_path();
        let failed = |message: String| FileError { path: path.clone(), message };
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| failed(error.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Notes the data directory of the broker at `address`, for clients on this machine.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn remember(address: &str, data: &Path) -> Result<(), FileError> {
        // What can't be read is somebody's, and is left alone.
        let mut file = Self::read()?;
        // Folders that are gone name brokers that are gone; one broker has one address.
        file.contexts.retain(|_, other| other.is_dir() && other != data);
        file.current = Some(address.to_owned());
        file.contexts.insert(address.to_owned(), data.to_owned());
        let path = client_file_path();
        let failed = |message: String| FileError { path: path.clone(), message };
        let text = toml::to_string(&file).map_err(|error| failed(error.to_string()))?;
        write_private(&path, text.as_bytes()).map_err(|error| failed(error.to_string()))
    }
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// What the file system reports.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?.write_all(bytes)?;
    std::fs::rename(&temporary, path)
}

/// Reads a secret of `N` random bytes in hexadecimal, making it at the first call.
///
/// # Errors
/// If the file can't be read or written, or holds something else.
pub fn secret<const N: usize>(path: &Path) -> io::Result<[u8; N]> {
    match std::fs::read_to_string(path) {
        // Made, and not written before a crash: nobody has seen it.
        Ok(text) if text.is_empty() => {}
        Ok(text) => {
            return from_hex(text.trim()).ok_or_else(|| {
                let what = format!("{} does not hold {} hexadecimal digits", path.display(), 2 * N);
                io::Error::new(io::ErrorKind::InvalidData, what)
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A new one in its place would be another identity: whoever knows the old one is locked out.
        Err(error) => return Err(error),
    }
    let mut bytes = [0; N];
    rand::Rng::fill_bytes(&mut rand::rng(), &mut bytes);
    write_private(path, to_hex(&bytes).as_bytes())?;
    Ok(bytes)
}

/// Bytes in hexadecimal.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}
