//! Converts a pool file into the settings of its backend.

use std::path::PathBuf;

use crate::cli::Failure;
use crate::cli::exit::INVALID;
use crate::config::{self, AgentFile, Binding, KubernetesSection};
use crate::model::device;
use crate::model::limit::DEVICE_MILLIS;
use crate::model::pool::{Capabilities, Device, PoolSpec};
use crate::model::region::RegionCode;
use crate::pools::host::HostDevice;
use crate::pools::host::isolation::{Mode, RunAs};
use crate::pools::simulated::{self, NodeKind, fleet};
use crate::pools::{host, kubernetes};

/// A pool's backend with its settings.
pub(super) enum Backend {
    Host(host::Settings),
    Kubernetes(Box<kubernetes::Settings>),
    Simulated(simulated::Settings),
}

fn region(file: &AgentFile) -> Result<RegionCode, Failure> {
    RegionCode::parse(&file.region).map_err(|error| Failure::new(INVALID, error.to_string()))
}

/// What tasks must not see: the state and the tokens of all pools of this process, and of this user's other brokers and
/// clients.
pub(super) fn hidden(files: &[AgentFile]) -> Vec<PathBuf> {
    let of_pool = |file: &AgentFile| [Some(file.state.clone()), file.token_file.clone()];
    let of_pools = files.iter().flat_map(of_pool).flatten();
    of_pools.chain([config::state_directory()]).collect()
}

/// Makes the backend settings of a pool file. Tasks of a host pool don't see what is `hidden`.
///
/// # Errors
/// If the file has no backend section, or the agent's identity can't be read or written.
pub(super) fn backend(file: &AgentFile, hidden: &[PathBuf]) -> Result<Backend, Failure> {
    let region = region(file)?;
    if let Some(section) = &file.host {
        return Ok(Backend::Host(host::Settings {
            program: std::env::current_exe()?,
            pool: file.name.clone(),
            region,
            state: file.state.clone(),
            cpus: section.cpus,
            memory_bytes: section.memory_mib.map(|mib| mib << 20),
            devices: section.devices.iter().map(devices).collect::<Result<Vec<_>, _>>()?.concat(),
            cgroup_parent: section.cgroup_parent.clone(),
            log_max_bytes: section.log_max_mib.map_or(host::LOG_MAX_BYTES, |mib| mib << 20),
            processes_max: section.processes_max.unwrap_or(host::PROCESSES_MAX),
            isolation: match section.isolation {
                config::Isolation::IfPossible => Mode::IfPossible,
                config::Isolation::Required => Mode::Required,
                config::Isolation::None => Mode::None,
            },
            run_as: section.run_as.clone().map_or(RunAs::Unprivileged, RunAs::Named),
            hidden: hidden.to_vec(),
        }));
    }
    if let Some(section) = &file.kubernetes {
        return Ok(Backend::Kubernetes(Box::new(cluster(file, section, region)?)));
    }
    let Some(section) = &file.simulated else {
        return Err(Failure::new(INVALID, "name one backend: [host], [kubernetes] or [simulated]"));
    };
    Ok(Backend::Simulated(simulated::Settings {
        pool: file.name.clone(),
        nodes: fleet(&section.nodes.iter().map(node_kind).collect::<Vec<_>>()),
        state: Some(file.state.clone()),
        speedup_millis: (section.speedup * 1_000.0) as u64,
    }))
}

/// Makes the pool specification that the agent declares to the broker.
///
/// # Errors
/// If the region is invalid.
pub(super) fn spec(file: &AgentFile, backend: &Backend) -> Result<PoolSpec, Failure> {
    let (name, capabilities): (_, Capabilities) = match backend {
        Backend::Host(_) => ("host", host::CAPABILITIES),
        Backend::Kubernetes(settings) => ("kubernetes", settings.capabilities()),
        Backend::Simulated(_) => ("simulated", super::SIMULATED),
    };
    Ok(PoolSpec {
        name: file.name.clone(),
        region: region(file)?,
        backend: name.to_owned(),
        labels: file.labels.clone(),
        capabilities,
        notes: Vec::new(),
    })
}

fn cluster(
    file: &AgentFile,
    section: &KubernetesSection,
    region: RegionCode,
) -> Result<kubernetes::Settings, Failure> {
    let holder = config::secret::<16>(&file.state.join("instance"))?;
    Ok(kubernetes::Settings {
        pool: file.name.clone(),
        region,
        state: file.state.clone(),
        holder: config::to_hex(&holder),
        kubeconfig: section.kubeconfig.clone(),
        context: section.context.clone(),
        namespace: section.namespace.clone(),
        queues: section.queues.clone(),
        nodes: section.nodes.clone(),
        binding: match section.binding {
            Binding::Direct => kubernetes::Binding::Direct,
            Binding::Scheduler => kubernetes::Binding::Scheduler(section.scheduler.clone()),
        },
        process_image: section.process_image.clone(),
        service_account: section.service_account.clone(),
        image_pull_secrets: section.image_pull_secrets.clone(),
        start_timeout_ms: section.start_timeout_seconds * 1_000,
        devices: section.devices.clone(),
        log_max_bytes: section.log_max_mib.map_or(kubernetes::LOG_MAX_BYTES, |mib| mib << 20),
    })
}

/// The devices of one `devices` entry. Memory not given is that of the built-in model, or 0.
fn devices(entry: &config::Devices) -> Result<Vec<HostDevice>, Failure> {
    let variable = entry.variable().map_err(|error| Failure::new(INVALID, error))?;
    let known = device::built_in().find(|known| known.name == entry.model);
    let of_model = known.map_or(0, |known| known.memory_bytes);
    let device = Device {
        model: entry.model.clone(),
        memory_bytes: entry.memory_gib.map_or(of_model, |gib| gib << 30),
        healthy: true,
        millis: DEVICE_MILLIS,
        topology_group: 0,
        profiles: Vec::new(),
    };
    Ok(vec![HostDevice { device, variable }; usize::from(entry.count)])
}

fn node_kind(kind: &config::NodeKind) -> NodeKind {
    NodeKind {
        count: kind.count,
        prefix: kind.prefix.clone(),
        cpus: kind.cpus,
        memory_gib: kind.memory_gib,
        device: kind.device.clone(),
        devices: kind.devices,
    }
}
