//! `weir agent`: one pool, or many in one process.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tokio::task::JoinSet;

use super::exit::{CONFLICT, INVALID};
use super::{Connect, Failure, start_logging, terminated};
use crate::api::agent::Dialer;
use crate::api::client::Client;
use crate::clock::Clock;
use crate::config::{self, AgentFile};
use crate::lock::{self, Lock};
use crate::model::device;
use crate::model::exchange::Hello;
use crate::model::id::InstanceId;
use crate::model::limit::DEVICE_MILLIS;
use crate::model::pool::{Capabilities, Device, PoolSpec};
use crate::model::region::RegionCode;
use crate::model::stamp::Stamp;
use crate::pools::host::{self, Host};
use crate::pools::simulated::{self, NodeKind, Simulated, fleet};
use crate::pools::{Error, PoolBackend};

/// Runs the agents of one pool or more.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  weir agent pool.toml\n\nwith\n  name = \"local\"\n  region = \"CN-CQ\"\n  state = \"/var/lib/weir/local\"\n  [host]\n\nSIGTERM ends it; its tasks live on and are adopted when it is back.\nSeveral files are so many pools in one process: weir agent pools/*.toml"
)]
pub struct AgentCommand {
    /// Each pool's TOML file.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// Keeps a host pool's tasks.
#[derive(clap::Args)]
pub struct Supervise {
    #[arg(long)]
    state: PathBuf,
    /// The control group below which attempts get theirs.
    #[arg(long)]
    cgroup_parent: Option<PathBuf>,
}

impl Supervise {
    pub fn run(self) -> ExitCode {
        match host::supervisor::run(&self.state, self.cgroup_parent.as_deref()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => Failure::from(error).print(),
        }
    }
}

impl AgentCommand {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        start_logging("info");
        // All of them are read before any of them runs.
        let files = self.files.iter().map(|path| AgentFile::read(path)).collect::<Result<Vec<_>, _>>()?;
        let mut names = BTreeSet::new();
        if let Some(twice) = files.iter().find(|file| !names.insert(&file.name)) {
            let message = format!("pool {:?} is described by two of the files", twice.name);
            return Err(Failure::new(INVALID, message));
        }
        let (mut pools, clock) = (JoinSet::new(), Clock::start());
        for file in files {
            let client = client(connect, &file)?;
            pools.spawn(async move { run_pool(&file, client, clock).await });
        }
        // One that can't go on ends the process: whoever started it starts it anew, and nothing
        // that runs is lost.
        while let Some(ended) = pools.join_next().await {
            ended.map_err(anyhow::Error::from)??;
        }
        Ok(0)
    }
}

fn client(connect: &Connect, file: &AgentFile) -> Result<Client, Failure> {
    let mut connect = connect.clone();
    connect.server = connect.server.or(file.server.clone());
    let Some(path) = &file.token_file else { return connect.client() };
    let token = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(INVALID, format!("token_file {}: {error}", path.display())))?;
    let server = connect.server.unwrap_or_else(|| super::connect::ADDRESS_DEFAULT.to_owned());
    Client::new(&server, Some(token.trim())).map_err(|error| Failure::new(INVALID, format!("{error:#}")))
}

/// Runs one pool's agent until the process is to end.
async fn run_pool(file: &AgentFile, client: Client, clock: Clock) -> Result<(), Failure> {
    let _lock = claim(&file.state)?;
    let region = RegionCode::parse(&file.region).map_err(|error| Failure::new(INVALID, error.to_string()))?;
    let pool = |backend: &str, capabilities| PoolSpec {
        name: file.name.clone(),
        region,
        backend: backend.to_owned(),
        labels: file.labels.clone(),
        capabilities,
        notes: Vec::new(),
    };
    match (&file.host, &file.simulated) {
        (Some(section), _) => {
            let settings = host::Settings {
                pool: file.name.clone(),
                region,
                state: file.state.clone(),
                cpus: section.cpus,
                memory_bytes: section.memory_mib.map(|mib| mib << 20),
                devices: section.devices.iter().flat_map(devices).collect(),
                cgroup_parent: section.cgroup_parent.clone(),
                log_max_bytes: section.log_max_mib.map_or(host::LOG_MAX_BYTES, |mib| mib << 20),
            };
            let hello = hello(pool("host", host::CAPABILITIES), &file.state)?;
            serve_host(hello, &file.state, settings, client, clock, terminated()).await?;
        }
        (None, Some(section)) => {
            let settings = simulated::Settings {
                pool: file.name.clone(),
                nodes: fleet(&section.nodes.iter().map(node_kind).collect::<Vec<_>>()),
                state: Some(file.state.clone()),
                speedup_millis: (section.speedup * 1_000.0) as u64,
            };
            let hello = hello(pool("simulated", SIMULATED), &file.state)?;
            serve(hello, &file.state, Simulated::new(settings, clock), client, clock, terminated()).await?;
        }
        (None, None) => return Err(Failure::new(INVALID, "name one backend: [host] or [simulated]")),
    }
    Ok(())
}

/// The devices that one entry declares.
fn devices(entry: &config::Devices) -> Vec<Device> {
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
    vec![device; usize::from(entry.count)]
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

/// What simulated pools pretend to do.
pub(super) const SIMULATED: Capabilities =
    Capabilities { real: false, processes: true, containers: true, leases: true, secrets: true };

/// Takes a pool's state folder for as long as the lock is held.
///
/// Two agents in one folder have one identity: the broker would take each for the other come back, and
/// they would displace each other for ever.
pub(super) fn claim(state: &Path) -> Result<Lock, Failure> {
    let folder = state.display();
    let failed = |error| Failure::new(1, format!("state folder {folder} can't be used: {error}"));
    std::fs::create_dir_all(state).map_err(failed)?;
    Lock::take(state).map_err(|error| match error {
        lock::Error::InUse { holder } => {
            let message = format!("state folder {folder} is in use by another weir, process {holder}");
            Failure::new(CONFLICT, message).hint("each pool's agent needs a state folder of its own")
        }
        lock::Error::Io(error) => failed(error),
    })
}

/// Who speaks for a pool: an identity that its state folder keeps.
pub(super) fn hello(pool: PoolSpec, state: &Path) -> Result<Hello, Failure> {
    let instance = config::secret::<16>(&state.join("instance"))?;
    let key = config::secret::<16>(&state.join("key"))?;
    Ok(Hello { pool, instance: InstanceId(u128::from_be_bytes(instance)), key, seen: None })
}

/// The newest stamp that an earlier life of the agent was given, in its state folder.
const STAMP: &str = "stamp";

/// Runs a pool's agent until `stop` ends.
pub(super) async fn serve(
    hello: Hello,
    state: &Path,
    backend: impl PoolBackend,
    client: Client,
    clock: Clock,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    run_agent(hello, state, backend, client, clock, stop).await.map_err(down)
}

async fn run_agent(
    hello: Hello,
    state: &Path,
    backend: impl PoolBackend,
    client: Client,
    clock: Clock,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let dialer = Dialer { client, hello: hello.clone(), logs: backend.logs() };
    let file = state.join(STAMP);
    // Without it, or with one that can't be read, a broker on an older journal is told a little less.
    let seen = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
    let mut failed = false;
    let remember = move |stamp: Stamp| {
        if let Err(error) = config::write_private(&file, stamp.to_string().as_bytes())
            && !std::mem::replace(&mut failed, true)
        {
            tracing::warn!(file = %file.display(), %error, "the broker's newest stamp can't be kept");
        }
    };
    crate::runtime::agent::run(Hello { seen, ..hello }, backend, dialer, clock, remember, stop).await
}

fn down(error: Error) -> Failure {
    Failure::new(1, crate::runtime::broker::causes(&error))
}

/// Runs a host pool's agent until `stop` ends, also when its supervisor is killed: the next one
/// adopts what still runs.
pub(super) async fn serve_host(
    hello: Hello,
    state: &Path,
    settings: host::Settings,
    client: Client,
    clock: Clock,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    tokio::pin!(stop);
    loop {
        let backend = Host::new(settings.clone(), clock);
        match run_agent(hello.clone(), state, backend, client.clone(), clock, &mut stop).await {
            Ok(()) => return Ok(()),
            Err(Error::Gone { pool }) => {
                tracing::warn!(pool, "the pool's supervisor is gone: the next one takes over what runs");
            }
            Err(error @ Error::Open { .. }) => return Err(down(error)),
        }
        tokio::time::sleep(REOPEN_WAIT).await;
    }
}

/// Before a host pool is opened again: whatever killed its supervisor may still be at it.
const REOPEN_WAIT: std::time::Duration = std::time::Duration::from_secs(1);
