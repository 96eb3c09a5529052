//! Files of settings: an agent's TOML, the client's contexts, the places where things live.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::limit::{BYTES_MAX, DEVICES_PER_NODE_MAX};
use crate::model::region::RegionCode;

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
    pub simulated: Option<SimulatedSection>,
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

fn one() -> f64 {
    1.0
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
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let file: Self = toml::from_str(&text).map_err(|error| failed(error.to_string()))?;
        if !crate::model::text::is_name(&file.name) {
            return Err(failed(format!(
                "name {:?} is not 1 to 63 lower-case letters, digits and inner hyphens",
                file.name
            )));
        }
        RegionCode::parse(&file.region).map_err(|error| failed(format!("region: {error}")))?;
        if let Some(host) = &file.host {
            host.check().map_err(|message| failed(format!("host: {message}")))?;
        }
        match (&file.host, &file.simulated) {
            (Some(_), None) | (None, Some(_)) => Ok(file),
            _ => Err(failed("name exactly one backend: [host] or [simulated]".to_owned())),
        }
    }
}

impl HostSection {
    fn check(&self) -> Result<(), String> {
        let count: usize = self.devices.iter().map(|devices| usize::from(devices.count)).sum();
        if count > DEVICES_PER_NODE_MAX {
            return Err(format!("{count} devices, at most {DEVICES_PER_NODE_MAX} are allowed"));
        }
        let bytes =
            [self.memory_mib, self.log_max_mib].into_iter().flatten().map(|mib| mib.checked_mul(1 << 20));
        let devices = self.devices.iter().filter_map(|devices| devices.memory_gib);
        let bytes = bytes.chain(devices.map(|gib| gib.checked_mul(1 << 30)));
        if bytes.into_iter().any(|bytes| bytes.is_none_or(|bytes| bytes > BYTES_MAX)) {
            return Err(format!("more than {BYTES_MAX} bytes"));
        }
        match &self.cgroup_parent {
            Some(path)
                if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) =>
            {
                Err("cgroup_parent must be a path from the root, such as \"/weir\"".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Where the client finds brokers.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// The broker that is meant where none is named.
    pub server: Option<String>,
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
        let mut file = Self::read().unwrap_or_default();
        // Folders that are gone name brokers that are gone.
        file.contexts.retain(|_, data| data.is_dir());
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
/// If the file can't be read or written.
pub fn secret<const N: usize>(path: &Path) -> io::Result<[u8; N]> {
    if let Ok(text) = std::fs::read_to_string(path)
        && let Some(bytes) = from_hex(text.trim())
    {
        return Ok(bytes);
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
