//! `weir dev`: a broker, a pool for this machine and five simulated pools in one process.

use std::path::PathBuf;
use std::sync::Arc;

use super::agent::{SIMULATED, claim, hello, serve, serve_host};
use super::connect::ADDRESS_DEFAULT;
use super::exit::INVALID;
use super::output::print;
use super::server::{EVENT_RETENTION_MS_DEFAULT, EVENTS_MAX_DEFAULT, RETENTION_DEFAULT, listen};
use super::{Failure, LogFormat, demo, memory, start_logging, terminated};
use crate::api::Limits;
use crate::api::client::Client;
use crate::clock::Clock;
use crate::config;
use crate::model::limit::MUTATIONS_PER_S_DEFAULT;
use crate::model::memory::{MemoryBudget, TOTAL_BYTES_MIN};
use crate::model::plan::Policy;
use crate::model::pool::{Capabilities, PoolSpec};
use crate::model::region::RegionCode;
use crate::pools::host;
use crate::pools::simulated::{self, NodeKind, Simulated, fleet};
use crate::runtime::broker::Config;
use crate::telemetry::agent::PoolHealth;

/// Run a broker, a pool for this machine and five simulated pools in one process.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir dev\n  weir dev --demo            also submit 320 jobs of a production trace\n  weir dev --demo --once     the same, and exit when they have ended\n\nAll state is in --data: after a restart with the same --data, jobs continue."
)]
pub struct Dev {
    /// Data directory: journal, token and pool state. Created if absent.
    /// Default: $XDG_STATE_HOME/weir/dev or ~/.local/state/weir/dev.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Address to listen on, HOST:PORT. Must be a loopback address; port 0 selects a free port.
    #[arg(long, value_name = "ADDRESS", default_value = ADDRESS_DEFAULT)]
    listen: String,
    /// Region of this machine's pool, by ISO 3166-2 or GB/T 2260.
    #[arg(long, value_name = "REGION", default_value = "CN-CQ")]
    region: String,
    /// Number of CPUs of this machine's pool. Default: all.
    #[arg(long, value_name = "N")]
    cpus: Option<u64>,
    /// Submit jobs of a production trace and show in which pools they run.
    #[arg(long)]
    demo: bool,
    /// Exit when all jobs of the demo have ended. Requires --demo.
    #[arg(long, requires = "demo")]
    once: bool,
}

/// A simulated pool.
struct Province {
    name: &'static str,
    region: &'static str,
    /// Value of the pool's label `kind`.
    label: &'static str,
    /// Per kind of node: count, name prefix, CPUs, memory in GiB, device model, devices.
    nodes: &'static [(u32, &'static str, u64, u64, &'static str, u16)],
}

/// Five pools that differ in size, device model and vendor.
const PROVINCES: [Province; 5] = [
    Province {
        name: "cq-yubei",
        region: "CN-CQ",
        label: "kubernetes",
        nodes: &[(6, "worker", 64, 256, "", 0), (4, "gpu", 64, 256, "A10", 4)],
    },
    Province {
        name: "xj-ascend",
        region: "CN-XJ",
        label: "ascend",
        nodes: &[(3, "npu", 192, 768, "Ascend910B3", 8)],
    },
    Province {
        name: "gz-nvidia",
        region: "CN-GZ",
        label: "nvidia",
        nodes: &[(3, "dgx", 128, 1_024, "A100-80G", 8)],
    },
    Province {
        name: "sc-nvidia",
        region: "CN-SC",
        label: "nvidia",
        nodes: &[(5, "v100", 96, 384, "V100M32", 4)],
    },
    Province { name: "qh-cpu", region: "CN-QH", label: "cpu", nodes: &[(8, "cpu", 96, 384, "", 0)] },
];

impl Dev {
    pub async fn run(self) -> Result<u8, Failure> {
        start_logging("error", LogFormat::Text);
        let clock = Clock::start();
        let data = self.data.clone().unwrap_or_else(|| config::state_directory().join("dev"));
        let region = RegionCode::parse(&self.region)
            .map_err(|error| Failure::new(INVALID, format!("--region: {error}")))?;
        let memory = MemoryBudget::of(memory::allowed_bytes().max(TOTAL_BYTES_MIN));
        let config = Config {
            policy: Policy::default(),
            memory_max: memory.live,
            archive_retention_ms: RETENTION_DEFAULT.0,
            event_retention_ms: EVENT_RETENTION_MS_DEFAULT,
            events_max: EVENTS_MAX_DEFAULT,
        };
        let listening = listen(&data, &self.listen, clock, config).await?;
        let data = std::fs::canonicalize(&data)?;
        let address = listening.address;
        print(&banner(&address.to_string(), &data.display().to_string()))?;
        let client = Client::new(&address.to_string(), Some(&listening.token))?;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let until = |mut stopped: tokio::sync::watch::Receiver<bool>| async move {
            // An error means that the sender was dropped: then the command has ended.
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        let api = tokio::spawn({
            let (broker, token, until) =
                (listening.broker.clone(), listening.token.clone(), until(stopped.clone()));
            let limits = Limits {
                mutations_per_s: MUTATIONS_PER_S_DEFAULT,
                connections_max: listening.connections_max,
                memory,
            };
            async move { crate::api::serve(broker, listening.listener, &token, limits, until).await }
        });
        for province in &PROVINCES {
            let (client, state) = (client.clone(), data.join("pools").join(province.name));
            tokio::spawn(run_province(province, state, client, clock));
        }
        tokio::spawn(run_host(data.clone(), region, self.cpus, client.clone(), clock));
        let outcome = if self.demo {
            tokio::select! {
                outcome = demo::run(&client, !self.once) => outcome.map(|()| self.once),
                () = terminated() => Ok(true),
            }
        } else {
            Ok(false)
        };
        if matches!(outcome, Ok(false)) {
            terminated().await;
        }
        let _ = stop.send(true);
        listening.broker.stop().await;
        let _ = tokio::task::spawn_blocking(move || listening.thread.join()).await;
        api.abort();
        outcome.map(|_| 0)
    }
}

fn banner(address: &str, data: &str) -> String {
    format!(
        "weir is listening on {address}, data in {data}\n\
         pools: local (this machine), cq-yubei, xj-ascend, gz-nvidia, sc-nvidia, qh-cpu (simulated)\n\n  \
         weir run -- sh -c 'echo hello from $WEIR_REGION'\n  \
         weir get pools\n  \
         weir get jobs --watch\n\n\
         Ctrl-C stops it; after a restart with the same data, jobs continue.\n"
    )
}

fn pool(name: &str, region: RegionCode, backend: &str, label: &str, capabilities: Capabilities) -> PoolSpec {
    PoolSpec {
        name: name.to_owned(),
        region,
        backend: backend.to_owned(),
        labels: [("kind".to_owned(), label.to_owned())].into(),
        capabilities,
        notes: Vec::new(),
    }
}

async fn run_province(province: &'static Province, state: PathBuf, client: Client, clock: Clock) {
    // The table above contains valid regions only.
    let region = RegionCode::parse(province.region).unwrap_or_default();
    let kinds: Vec<NodeKind> = province
        .nodes
        .iter()
        .map(|(count, prefix, cpus, memory_gib, device, devices)| NodeKind {
            count: *count,
            prefix: (*prefix).to_owned(),
            cpus: *cpus,
            memory_gib: *memory_gib,
            device: (*device).to_owned(),
            devices: *devices,
        })
        .collect();
    let settings = simulated::Settings {
        pool: province.name.to_owned(),
        nodes: fleet(&kinds),
        state: Some(state.clone()),
        speedup_millis: 1_000,
    };
    let spec = pool(province.name, region, "simulated", province.label, SIMULATED);
    let ran = async {
        let _lock = claim(&state)?;
        let hello = hello(spec, &state)?;
        let backend = Simulated::new(settings, clock);
        let health = Arc::new(PoolHealth::new(province.name));
        serve(hello, &state, backend, client, clock, &health, std::future::pending()).await
    };
    if let Err(failure) = ran.await {
        tracing::error!(pool = province.name, error = failure.message, "the pool has failed");
    }
}

async fn run_host(data: PathBuf, region: RegionCode, cpus: Option<u64>, client: Client, clock: Clock) {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return tracing::error!(%error, "can't start this machine's pool"),
    };
    let state = data.join("pools").join("local");
    let hidden = std::iter::once(data).chain([config::state_directory()]).collect();
    let settings = host::Settings {
        program,
        pool: "local".to_owned(),
        region,
        state: state.clone(),
        cpus,
        memory_bytes: None,
        devices: Vec::new(),
        cgroup_parent: None,
        log_max_bytes: host::LOG_MAX_BYTES,
        processes_max: host::PROCESSES_MAX,
        isolation: host::isolation::Mode::IfPossible,
        run_as: host::isolation::RunAs::Agent,
        hidden,
    };
    let spec = pool("local", region, "host", "host", host::CAPABILITIES);
    let ran = async {
        let _lock = claim(&state)?;
        let hello = hello(spec, &state)?;
        let health = Arc::new(PoolHealth::new("local"));
        serve_host(hello, &state, settings, client, clock, &health, std::future::pending()).await
    };
    if let Err(failure) = ran.await {
        tracing::error!(pool = "local", error = failure.message, "the pool has failed");
    }
}
