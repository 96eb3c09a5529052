//! `weir agent`: runs the agents of one or more pools in one process.

mod check;
mod health;
mod pool;

use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::exit::{CONFLICT, INVALID};
use super::input::{self, Problems};
use super::{Connect, Failure, LogFormat, ignore_hangups, notify_ready, start_logging, terminated};
use crate::api::agent::Dialer;
use crate::api::client::Client;
use crate::clock::Clock;
use crate::config::{self, AgentFile};
use crate::files::private;
use crate::lock::{self, Lock};
use crate::model::backoff::Backoff;
use crate::model::exchange::Hello;
use crate::model::high_water::HighWaterMark;
use crate::model::id::{Epoch, InstanceId};
use crate::model::pool::{Capabilities, PoolSpec};
use crate::pools::host::{self, Host};
use crate::pools::kubernetes::Kubernetes;
use crate::pools::simulated::Simulated;
use crate::pools::{Error, PoolBackend};
use crate::runtime::agent::Memory;
use crate::telemetry::agent::PoolHealth;
use pool::Backend;

/// Run the agents of one or more pools.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  weir agent pool.toml\n  weir agent pools/*.toml          several pools in one process\n  weir agent check pool.toml       check that the requirements of the pool are met\n\npool.toml:\n  name = \"local\"\n  region = \"CN-CQ\"\n  state = \"/var/lib/weir/local\"\n  [host]\n\nSIGTERM stops the agent. Its tasks continue to run, and the agent adopts them when it is started again."
)]
pub struct AgentCommand {
    /// Pool files (TOML), one per pool.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Serve /healthz, /readyz and /metrics on this address, e.g. 127.0.0.1:9411. Default: not served.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Form of the log on standard error; its level is set by WEIR_LOG.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Check the requirements of pools and report which are not met, and why.
    Check(check::Check),
}

/// Supervise the tasks of a host pool. Started by the agent, not by users.
#[derive(clap::Args)]
pub struct Supervise {
    /// State folder of the supervisor.
    #[arg(long, value_name = "PATH")]
    state: PathBuf,
    /// Control group (version 2) in which a group is created per attempt. Default: the agent's.
    #[arg(long, value_name = "PATH")]
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

/// Reads and validates a pool's file.
///
/// # Errors
/// All fields of a wrong type or name at once, each with its path; or what is wrong with a value.
fn read_file(path: &Path) -> Result<AgentFile, Failure> {
    AgentFile::read(path).map_err(|error| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut problems = Problems::default();
        // The parser of TOML reports the first wrong field, in words for programmers. Syntax remains its own, and so does what
        // is wrong with a value of the right type.
        if toml::from_str::<AgentFile>(&text).is_err()
            && let Ok(value) = toml::from_str::<serde_json::Value>(&text)
        {
            problems.read::<AgentFile>("", value);
        }
        match problems.is_empty() {
            true => error.into(),
            false => input::failure(&path.display().to_string(), &problems.located(|_| None)),
        }
    })
}

impl AgentCommand {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        if let Some(Command::Check(check)) = self.command {
            return check.run(connect).await;
        }
        // The Kubernetes client logs each failed call without its pool. The backend logs it once, with the
        // pool.
        start_logging("info,kube_client=off", self.log_format);
        ignore_hangups();
        // An invalid file must not leave a part of the pools running, so read all files first.
        let files = self.files.iter().map(|path| read_file(path)).collect::<Result<Vec<_>, _>>()?;
        let mut names = BTreeSet::new();
        if let Some(twice) = files.iter().find(|file| !names.insert(&file.name)) {
            let message = format!("pool {:?} is defined in two of the files", twice.name);
            return Err(Failure::new(INVALID, message));
        }
        let (mut pools, mut all, clock) = (JoinSet::new(), Vec::new(), Clock::start());
        let is_alone = files.len() == 1;
        let hidden: Arc<[PathBuf]> = pool::hidden(&files).into();
        for file in files {
            let client = client(connect, &file)?;
            let pool_health = Arc::new(PoolHealth::new(&file.name));
            all.push(pool_health.clone());
            let hidden = hidden.clone();
            pools.spawn(async move {
                let mut backoff = Backoff::new(Duration::from_secs(1), FAILS_AGAIN_MAX);
                loop {
                    let began = Instant::now();
                    match run_pool(&file, &hidden, client.clone(), clock, &pool_health).await {
                        Err(failure) if !is_alone && failure.code != INVALID => {
                            pool_health.set_connected(false);
                            pool_health.set_synced(false);
                            if began.elapsed() > FAILS_AGAIN_MAX {
                                backoff.reset();
                            }
                            let (pool, wait) = (&file.name, backoff.next_wait());
                            tracing::error!(
                                pool,
                                error = failure.message,
                                ?wait,
                                "the pool has failed; it is started again"
                            );
                            tokio::select! {
                                () = tokio::time::sleep(wait) => {}
                                () = terminated() => return Ok(()),
                            }
                        }
                        ended => return ended,
                    }
                }
            });
        }
        if let Some(address) = &self.listen {
            let address = health::serve(address, all).await?;
            tracing::info!(%address, "serving health and metrics");
        }
        notify_ready();
        // The agent of a single pool that fails ends the process. The service manager restarts it, and running tasks are
        // adopted. One of several must not end the others.
        while let Some(ended) = pools.join_next().await {
            ended.map_err(anyhow::Error::from)??;
        }
        Ok(0)
    }
}

fn client(connect: &Connect, file: &AgentFile) -> Result<Client, Failure> {
    let mut connect = connect.clone();
    connect.server = connect.server.filter(|server| !server.is_empty()).or(file.server.clone());
    let Some(path) = &file.token_file else { return connect.client() };
    let token = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(INVALID, format!("token_file {}: {error}", path.display())))?;
    let server = connect.server.unwrap_or_else(|| super::connect::ADDRESS_DEFAULT.to_owned());
    Client::new(&server, Some(token.trim())).map_err(|error| Failure::new(INVALID, format!("{error:#}")))
}

/// Runs the agent of one pool until SIGTERM.
async fn run_pool(
    file: &AgentFile,
    hidden: &[PathBuf],
    client: Client,
    clock: Clock,
    pool_health: &Arc<PoolHealth>,
) -> Result<(), Failure> {
    let _lock = claim(&file.state)?;
    let backend = pool::backend(file, hidden)?;
    let hello = hello(pool::spec(file, &backend)?, &file.state)?;
    match backend {
        Backend::Host(settings) => {
            serve_host(hello, &file.state, settings, client, clock, pool_health, terminated()).await
        }
        Backend::Kubernetes(settings) => {
            let open = || Kubernetes::new((*settings).clone(), clock);
            serve_and_reopen(hello, &file.state, open, client, clock, pool_health, terminated()).await
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

/// Capabilities of simulated pools: everything but running real work.
pub(super) const SIMULATED: Capabilities = Capabilities {
    real: false,
    processes: true,
    containers: true,
    pods: true,
    leases: true,
    secrets: true,
    whole_devices_only: false,
};

/// Locks a pool's state folder until the lock is dropped. Creates the folder if absent.
///
/// Two agents in one folder would have the same identity: the broker would take each connection for a
/// reconnect of the same agent, and the two would replace each other's session for ever.
///
/// # Errors
/// `CONFLICT` if another process holds the lock; otherwise if the folder can't be used.
pub(super) fn claim(state: &Path) -> Result<Lock, Failure> {
    let folder = state.display();
    let failed = |error| Failure::new(1, format!("state folder {folder} can't be used: {error}"));
    private::folder(state).map_err(failed)?;
    Lock::take(state).map_err(|error| match error {
        lock::Error::InUse { holder } => {
            let message = format!("state folder {folder} is in use by another weir, process {holder}");
            Failure::new(CONFLICT, message).hint("each pool's agent needs a state folder of its own")
        }
        lock::Error::Io(error) => failed(error),
    })
}

/// Makes the hello message of a pool's agent, with the identity stored in its state folder.
///
/// # Errors
/// If the identity can't be read or written.
pub(super) fn hello(pool: PoolSpec, state: &Path) -> Result<Hello, Failure> {
    let instance = config::secret::<16>(&state.join("instance"))?;
    let key = config::secret::<16>(&state.join("key"))?;
    let instance = InstanceId(u128::from_be_bytes(instance));
    Ok(Hello { pool, instance, key, last_epoch: stored_epoch(state)?, high_water: None })
}

/// File in the state folder with the newest high-water mark that the broker sent to the agent. The name is
/// part of the folder's format.
const HIGH_WATER_FILE: &str = "high-water";

/// File in the state folder with the epoch of the pool's last session. The name is part of the folder's format.
const EPOCH_FILE: &str = "epoch";

/// The epoch of the pool's last session; `None` if it had none.
///
/// # Errors
/// If the file can't be read.
fn stored_epoch(state: &Path) -> std::io::Result<Option<Epoch>> {
    let file = state.join(EPOCH_FILE);
    let failed = |kind, why: String| std::io::Error::new(kind, format!("{}: {why}", file.display()));
    match std::fs::read_to_string(&file) {
        Ok(text) => match text.trim().parse() {
            Ok(epoch) => Ok(Some(Epoch(epoch))),
            Err(_) => Err(failed(std::io::ErrorKind::InvalidData, format!("{text:?} is not an epoch"))),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error.kind(), error.to_string())),
    }
}

/// Writes an epoch over the one before, for which a full disk has space too.
fn write_epoch(file: &Path, epoch: Epoch) -> std::io::Result<()> {
    let line = format!("{:020}\n", epoch.0);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    match options.open(file) {
        Ok(opened) => {
            opened.write_all_at(line.as_bytes(), 0)?;
            opened.sync_data()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            config::write_private(file, line.as_bytes())
        }
        Err(error) => Err(error),
    }
}

/// A pool's state folder, as the memory of its agent.
struct StateFolder {
    folder: PathBuf,
    /// A high-water mark could not be stored.
    failed: bool,
}

impl Memory for StateFolder {
    fn store_high_water(&mut self, high_water: HighWaterMark) {
        let file = self.folder.join(HIGH_WATER_FILE);
        if let Err(error) = config::write_private(&file, high_water.to_string().as_bytes())
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::warn!(file = %file.display(), %error, "can't store the journal high-water mark of the broker");
        }
    }

    fn store_epoch(&mut self, epoch: Epoch) -> bool {
        let file = self.folder.join(EPOCH_FILE);
        let stored = write_epoch(&file, epoch);
        if let Err(error) = &stored {
            tracing::error!(file = %file.display(), %error, "can't store the session with the broker: it is closed");
        }
        stored.is_ok()
    }
}

/// Runs a pool's agent until `stop` completes.
///
/// # Errors
/// If the backend can't be opened, or fails.
pub(super) async fn serve(
    hello: Hello,
    state: &Path,
    backend: impl PoolBackend,
    client: Client,
    clock: Clock,
    pool_health: &Arc<PoolHealth>,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    run_agent(hello, state, backend, client, clock, pool_health, stop).await.map_err(failure)
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
    let memory = StateFolder { folder: state.to_owned(), failed: false };
    // The folder knows of the sessions of an earlier run of this process, too.
    let last_epoch =
        stored_epoch(state).map_err(|source| Error::Open { pool: hello.pool.name.clone(), source })?;
    // Optional: without it, one of the facts that show a broker that its journal is an older copy is missing.
    let high_water = std::fs::read_to_string(state.join(HIGH_WATER_FILE)).ok();
    let high_water = high_water.and_then(|text| text.trim().parse().ok());
    let hello = Hello { last_epoch, high_water, ..hello };
    crate::runtime::agent::run(hello, backend, dialer, clock, memory, pool_health.clone(), stop).await
}

fn failure(error: Error) -> Failure {
    Failure::new(1, crate::runtime::error::causes(&error))
}

/// Runs a host pool's agent until `stop` completes. If its supervisor is killed, the next one adopts the
/// tasks that are still running.
///
/// # Errors
/// If the backend can't be opened.
pub(super) async fn serve_host(
    hello: Hello,
    state: &Path,
    settings: host::Settings,
    client: Client,
    clock: Clock,
    pool_health: &Arc<PoolHealth>,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    serve_and_reopen(hello, state, || Host::new(settings.clone(), clock), client, clock, pool_health, stop)
        .await
}

/// Runs a pool's agent until `stop` completes, and reopens its backend after [`Error::Gone`].
async fn serve_and_reopen<B: PoolBackend>(
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
                tracing::warn!(pool, "the backend is gone: reopening it; it adopts running tasks");
            }
            Err(error @ Error::Open { .. }) => return Err(failure(error)),
        }
        tokio::time::sleep(REOPEN_WAIT).await;
    }
}

/// Longest wait before a pool that has failed is started again. One that ran for longer has not failed again.
const FAILS_AGAIN_MAX: Duration = Duration::from_secs(60);

/// Delay before a backend is reopened: the cause of its end may still be present.
const REOPEN_WAIT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_of_a_session_is_written_over_the_one_before() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(stored_epoch(folder.path()).expect("no file"), None);
        let file = folder.path().join(EPOCH_FILE);
        for epoch in [Epoch(9), Epoch(10), Epoch(1 << 62), Epoch(11)] {
            write_epoch(&file, epoch).expect("free space");
            assert_eq!(stored_epoch(folder.path()).expect("a file"), Some(epoch));
        }
        std::fs::write(&file, "soon").expect("free space");
        let error = stored_epoch(folder.path()).expect_err("no number").to_string();
        assert!(error.contains("\"soon\" is not an epoch"), "{error}");
    }
}
