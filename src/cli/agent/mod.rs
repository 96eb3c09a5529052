//! `weir agent`: one pool, or many in one process.

mod check;
mod health;
mod pool;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::exit::{CONFLICT, INVALID};
use super::{Connect, Failure, start_logging, terminated};
use crate::api::agent::Dialer;
use crate::api::client::Client;
use crate::clock::Clock;
use crate::config::{self, AgentFile};
use crate::lock::{self, Lock};
use crate::model::exchange::Hello;
use crate::model::high_water::HighWaterMark;
use crate::model::id::InstanceId;
use crate::model::pool::{Capabilities, PoolSpec};
use crate::pools::host::{self, Host};
use crate::pools::kubernetes::Kubernetes;
use crate::pools::simulated::Simulated;
use crate::pools::{Error, PoolBackend};
use crate::telemetry::PoolHealth;
use pool::Backend;

/// Runs the agents of one pool or more.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  weir agent pool.toml\n  weir agent check pool.toml   what it needs, and whether it works\n\nwith\n  name = \"local\"\n  region = \"CN-CQ\"\n  state = \"/var/lib/weir/local\"\n  [host]\n\nSIGTERM ends it; its tasks live on and are adopted when it is back.\nSeveral files are so many pools in one process: weir agent pools/*.toml"
)]
pub struct AgentCommand {
    /// Each pool's TOML file.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Serve /healthz, /readyz and /metrics there, such as 127.0.0.1:9411.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Says for each thing that a pool's agent needs whether it works, or exactly why not.
    Check(check::Check),
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
        if let Some(Command::Check(check)) = self.command {
            return check.run(connect).await;
        }
        // The client tells of each call that failed, without saying which pool's; we tell once.
        start_logging("info,kube_client=off");
        // All of them are read before any of them runs.
        let files = self.files.iter().map(|path| AgentFile::read(path)).collect::<Result<Vec<_>, _>>()?;
        let mut names = BTreeSet::new();
        if let Some(twice) = files.iter().find(|file| !names.insert(&file.name)) {
            let message = format!("pool {:?} is described by two of the files", twice.name);
            return Err(Failure::new(INVALID, message));
        }
        let (mut pools, mut all, clock) = (JoinSet::new(), Vec::new(), Clock::start());
        for file in files {
            let client = client(connect, &file)?;
            let pool_health = Arc::new(PoolHealth::new(&file.name));
            all.push(pool_health.clone());
            pools.spawn(async move { run_pool(&file, client, clock, &pool_health).await });
        }
        if let Some(address) = &self.listen {
            let address = health::serve(address, all).await?;
            tracing::info!(%address, "health and metrics are served");
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
async fn run_pool(
    file: &AgentFile,
    client: Client,
    clock: Clock,
    pool_health: &Arc<PoolHealth>,
) -> Result<(), Failure> {
    let _lock = claim(&file.state)?;
    let backend = pool::backend(file)?;
    let hello = hello(pool::spec(file, &backend)?, &file.state)?;
    match backend {
        Backend::Host(settings) => {
            serve_host(hello, &file.state, settings, client, clock, pool_health, terminated()).await
        }
        Backend::Kubernetes(settings) => {
            let open = || Kubernetes::new((*settings).clone(), clock);
            serve_again(hello, &file.state, open, client, clock, pool_health, terminated()).await
        }
        Backend::Simulated(settings) => {
            serve(
                hello,
                &file.state,
                Simulated::new(settings, clock),
                client,
                clock,
                pool_health,
                terminated(),
            )
            .await
        }
    }
}

/// What simulated pools pretend to do.
pub(super) const SIMULATED: Capabilities = Capabilities {
    real: false,
    processes: true,
    containers: true,
    pods: true,
    leases: true,
    secrets: true,
    whole_devices_only: false,
};

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
    Ok(Hello { pool, instance: InstanceId(u128::from_be_bytes(instance)), key, high_water: None })
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
    pool_health: &Arc<PoolHealth>,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    run_agent(hello, state, backend, client, clock, pool_health, stop).await.map_err(down)
}

async fn run_agent(
    hello: Hello,
    state: &Path,
    backend: impl PoolBackend,
    client: Client,
    clock: Clock,
    pool_health: &Arc<PoolHealth>,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let dialer = Dialer { client, hello: hello.clone(), logs: backend.logs() };
    let file = state.join(STAMP);
    // Without it, or with one that can't be read, a broker on an older journal is told a little less.
    let seen = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
    let mut failed = false;
    let remember = move |high_water: HighWaterMark| {
        if let Err(error) = config::write_private(&file, high_water.to_string().as_bytes())
            && !std::mem::replace(&mut failed, true)
        {
            tracing::warn!(file = %file.display(), %error, "the broker's newest stamp can't be kept");
        }
    };
    crate::runtime::agent::run(
        Hello { high_water: seen, ..hello },
        backend,
        dialer,
        clock,
        remember,
        pool_health.clone(),
        stop,
    )
    .await
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
    pool_health: &Arc<PoolHealth>,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    serve_again(hello, state, || Host::new(settings.clone(), clock), client, clock, pool_health, stop).await
}

/// Runs a pool's agent until `stop` ends, and opens its backend anew whenever that is gone.
async fn serve_again<B: PoolBackend>(
    hello: Hello,
    state: &Path,
    backend: impl Fn() -> B,
    client: Client,
    clock: Clock,
    pool_health: &Arc<PoolHealth>,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    tokio::pin!(stop);
    loop {
        match run_agent(hello.clone(), state, backend(), client.clone(), clock, pool_health, &mut stop).await
        {
            Ok(()) => return Ok(()),
            Err(Error::Gone { pool }) => {
                tracing::warn!(
                    pool,
                    "the pool's backend is gone: it is opened again, and takes over what runs"
                );
            }
            Err(error @ Error::Open { .. }) => return Err(down(error)),
        }
        tokio::time::sleep(REOPEN_WAIT).await;
    }
}

/// Before a backend is opened again: whatever ended it may still be at it.
const REOPEN_WAIT: std::time::Duration = std::time::Duration::from_secs(1);
