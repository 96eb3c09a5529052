//! Configuration files: an agent's TOML, the client's contexts, secrets, and the default paths.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::files::{self, private};
use crate::model::device;
use crate::model::limit::{BYTES_MAX, DEVICES_PER_NODE_MAX, NODE_CPU_MILLIS_MAX, NODES_PER_POOL_MAX};
use crate::model::region::RegionCode;
use crate::model::suggest::{nearest, question};
use crate::model::text;
use crate::model::validate::quote;

/// An agent's configuration file, which describes one pool.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentFile {
    /// The pool's name: a DNS label.
    pub name: String,
    /// The pool's region, in ISO 3166-2 or GB/T 2260.
    pub region: String,
    /// Address of the broker. Absent: as for the client, from environment or contexts.
    pub server: Option<String>,
    /// File with the broker's token. Absent: as for the client.
    pub token_file: Option<PathBuf>,
    /// The agent's state folder.
    pub state: PathBuf,
    /// The pool's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Backend: this machine. A file has exactly one backend.
    pub host: Option<HostSection>,
    /// Backend: a Kubernetes cluster.
    pub kubernetes: Option<KubernetesSection>,
    /// Backend: simulated nodes.
    pub simulated: Option<SimulatedSection>,
}

/// Settings of a Kubernetes pool.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KubernetesSection {
    /// Absent: `$KUBECONFIG`, `~/.kube/config`, or the service account of the pod in which the agent runs.
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. Absent: its current one.
    pub context: Option<String>,
    /// Namespace of the pods and of the pool's lock.
    #[serde(default = "weir")]
    pub namespace: String,
    /// Other namespaces by queue, which also apply to the queues below it.
    #[serde(default)]
    pub queues: BTreeMap<String, String>,
    /// A label selector for the nodes. Empty: all nodes.
    #[serde(default)]
    pub nodes: String,
    /// How pods are bound to nodes.
    #[serde(default)]
    pub binding: Binding,
    /// Name of the scheduler, for `binding = "scheduler"`.
    #[serde(default = "default_scheduler")]
    pub scheduler: String,
    /// Image for jobs that are plain commands. Absent: such jobs are refused.
    pub process_image: Option<String>,
    /// Service account of the pods. Absent: the namespace's default.
    pub service_account: Option<String>,
    /// Names of the image pull secrets.
    #[serde(default)]
    pub image_pull_secrets: Vec<String>,
    /// How long a pod may fail to start, for example without its image or a node, in seconds.
    #[serde(default = "two_minutes")]
    pub start_timeout_seconds: u64,
    /// Device models by the cluster's resource name: `"nvidia.com/gpu" = "A100-80G"`.
    #[serde(default)]
    pub devices: BTreeMap<String, String>,
    /// Output stored per task, in MiB. Absent: 64.
    pub log_max_mib: Option<u64>,
}

/// How pods are bound to nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Binding {
    /// Pods are created with the name of their node.
    #[default]
    Direct,
    /// The cluster's scheduler binds them to the only node that their affinity allows.
    Scheduler,
}

/// Settings of a host pool: the agent's own machine.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostSection {
    /// CPUs that Weir may use. Absent: all.
    pub cpus: Option<u64>,
    /// Memory that Weir may use, in MiB. Absent: seven eighths.
    pub memory_mib: Option<u64>,
    /// Accelerators, in the order in which their vendors' tools list them.
    #[serde(default)]
    pub devices: Vec<Devices>,
    /// A control group (version 2) for this pool, as a path from the root of the hierarchy. Absent: the one
    /// in which the agent runs.
    pub cgroup_parent: Option<PathBuf>,
    /// Output stored per attempt, in MiB. Absent: 64.
    pub log_max_mib: Option<u64>,
    /// Processes and threads of one task, where control groups enforce it. Absent: 16384.
    pub processes_max: Option<u64>,
    /// Whether each task has namespaces of its own, in which it sees neither the processes of others nor the agent's
    /// files: `if-possible`, `required` or `none`.
    #[serde(default)]
    pub isolation: Isolation,
    /// The user that tasks run as, by name. Absent: the agent's, or `nobody` if that is root.
    pub run_as: Option<String>,
}

/// Whether each task of a host pool has namespaces of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// If this machine allows it; if not, a note of the pool reports it.
    #[default]
    IfPossible,
    /// If this machine does not allow it, the agent does not start.
    Required,
    /// Tasks see each other and the agent's files as any process of their user does.
    None,
}

/// Accelerators of one model.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Devices {
    /// Model as jobs name it, such as `A100-80G` or `Ascend910B3`.
    pub model: String,
    /// How many there are, up to 256 in all.
    pub count: u16,
    /// Memory of each, in GiB. Absent: from the table of models.
    pub memory_gib: Option<u64>,
    /// Whose devices they are, for a model that the table lacks.
    pub vendor: Option<Vendor>,
    /// The environment variable by which the vendor's software is restricted to some devices, as numbers from 0, in
    /// place of that of the table or the vendor.
    pub visible_devices: Option<String>,
}

/// A vendor whose variable Weir knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    Nvidia,
    Huawei,
    Amd,
    Hygon,
    Cambricon,
}

impl Devices {
    /// The environment variable that restricts a task to its devices.
    ///
    /// # Errors
    /// If neither the table of models nor the entry has it: tasks would share devices without knowing.
    pub fn variable(&self) -> Result<String, String> {
        if let Some(name) = &self.visible_devices {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let is_name = name.chars().all(plain) && name.starts_with(|c: char| c.is_ascii_alphabetic());
            let wrong = || format!("visible_devices: {} is not a variable's name", quote(name));
            return if is_name { Ok(name.clone()) } else { Err(wrong()) };
        }
        let of_vendor = self.vendor.map(|vendor| match vendor {
            Vendor::Nvidia => "CUDA_VISIBLE_DEVICES",
            Vendor::Huawei => "ASCEND_RT_VISIBLE_DEVICES",
            Vendor::Amd | Vendor::Hygon => "HIP_VISIBLE_DEVICES",
            Vendor::Cambricon => "MLU_VISIBLE_DEVICES",
        });
        if let Some(name) = of_vendor {
            return Ok(name.to_owned());
        }
        let models: Vec<_> = device::built_in().collect();
        if let Some(known) = models.iter().find(|known| known.name == self.model) {
            return Ok(known.visible_devices.clone());
        }
        let near = nearest(&self.model, models.iter().map(|known| known.name.as_str()));
        let hint = if near.is_empty() { ".".to_owned() } else { question(&near) };
        Err(format!(
            "model: {} is not in Weir's table{hint} For another model, set vendor (nvidia, huawei, amd, hygon, cambricon) \
             or visible_devices, the variable by which its software selects devices",
            quote(&self.model)
        ))
    }
}

/// Settings of a simulated pool.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SimulatedSection {
    /// The nodes, by kind.
    pub nodes: Vec<NodeKind>,
    /// Factor by which tasks run faster than real time.
    #[serde(default = "one")]
    pub speedup: f64,
}

/// Simulated nodes of one kind.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeKind {
    /// How many nodes there are.
    pub count: u32,
    /// Prefix of the nodes' names.
    pub prefix: String,
    /// CPUs of each node.
    pub cpus: u64,
    /// Memory of each node, in GiB.
    pub memory_gib: u64,
    /// Device model. Empty: no devices.
    #[serde(default)]
    pub device: String,
    /// Devices per node.
    #[serde(default)]
    pub devices: u16,
}

/// CPUs of one node at most.
const CPUS_MAX: u64 = NODE_CPU_MILLIS_MAX / 1_000;
/// At this factor a day takes less than a tenth of a second.
const SPEEDUP_MAX: f64 = 1_000_000.0;

/// A day: a pod that has not started by then never will.
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

/// A configuration file that can't be used, with the reason.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct FileError {
    pub path: PathBuf,
    pub message: String,
}

impl AgentFile {
    /// Reads and validates an agent's file.
    ///
    /// # Errors
    /// If the file can't be read, is not TOML, has an unknown field, or a value that is not allowed.
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
            _ => Err(failed("set exactly one backend: [host], [kubernetes] or [simulated]".to_owned())),
        }
    }
}

/// Checks that `value` is within 1 and `max`.
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
        self.processes_max.map_or(Ok(()), |count| within("host.processes_max", count, 4_194_304))?;
        if let Some(name) = self.run_as.as_ref().filter(|_| self.isolation == Isolation::None) {
            let rule = "needs namespaces, and host.isolation is \"none\"";
            return Err(format!("host.run_as: {} {rule}", quote(name)));
        }
        let mut count = 0;
        for (index, devices) in self.devices.iter().enumerate() {
            let field = |name: &str| format!("host.devices[{index}].{name}");
            if !text::is_label(&devices.model) || devices.model.is_empty() {
                return Err(format!("{}: {} is not a model's name", field("model"), quote(&devices.model)));
            }
            devices.variable().map_err(|error| format!("host.devices[{index}].{error}"))?;
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
            return Err(
                "kubernetes.process_image: is empty; omit it to refuse jobs that are commands".to_owned()
            );
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
            // A node's name is the prefix and a number.
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

/// The client's configuration file: the brokers that it can use.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// Default broker.
    pub server: Option<String>,
    /// The broker that was started last on this machine: the default if `server` is absent.
    pub current: Option<String>,
    /// Data directories of the brokers on this machine, by address.
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
    /// Reads the client's file. An absent file reads as an empty one.
    ///
    /// # Errors
    /// If the file exists but can't be read or parsed.
    pub fn read() -> Result<Self, FileError> {
        let path = client_file_path();
        let failed = |message: String| FileError { path: path.clone(), message };
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| failed(error.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Records the data directory of the broker at `address` for clients on this machine, and if asked makes that
    /// broker the current one.
    ///
    /// # Errors
    /// If the file can't be read or written.
    pub fn remember(address: &str, data: &Path, is_current: bool) -> Result<(), FileError> {
        // A file that can't be parsed may be the user's own, so it is not overwritten.
        let mut file = Self::read()?;
        // A missing folder means a removed broker. A broker has one address, so its old one is dropped.
        file.contexts.retain(|_, other| other.is_dir() && other != data);
        if is_current {
            file.current = Some(address.to_owned());
        }
        file.contexts.insert(address.to_owned(), data.to_owned());
        let path = client_file_path();
        let failed = |message: String| FileError { path: path.clone(), message };
        let text = toml::to_string(&file).map_err(|error| failed(error.to_string()))?;
        write_private(&path, text.as_bytes()).map_err(|error| failed(error.to_string()))
    }
}

/// Writes a file atomically, readable by its owner only. Creates missing parent folders.
///
/// # Errors
/// The error of the file system.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    files::replace_durably(path, bytes)
}

/// Reads a secret of `N` bytes in hexadecimal. If the file does not exist, creates it with random bytes.
///
/// # Errors
/// If the file can't be read or written, or does not contain such a secret.
pub fn secret<const N: usize>(path: &Path) -> io::Result<[u8; N]> {
    let mut text = String::new();
    match private::open(path).and_then(|mut file| file.read_to_string(&mut text)) {
        // Created but not written before a crash: the secret was never used.
        Ok(0) => {}
        Ok(_) => {
            let bytes = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok();
            return bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
                let what = format!("{} does not contain {} hexadecimal digits", path.display(), 2 * N);
                io::Error::new(io::ErrorKind::InvalidData, what)
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A new secret in its place would lock out all holders of the old one.
        Err(error) => return Err(error),
    }
    let mut bytes = [0; N];
    rand::Rng::fill_bytes(&mut rand::rng(), &mut bytes);
    write_private(path, to_hex(&bytes).as_bytes())?;
    Ok(bytes)
}

/// Formats bytes in lower-case hexadecimal.
pub fn to_hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}
