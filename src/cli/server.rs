//! `weir server`: runs a broker.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpListener;

use super::connect::ADDRESS_DEFAULT;
use super::exit::{DENIED, INVALID};
use super::output::report;
use super::quantity::{bytes, duration_ms};
use super::{Failure, LogFormat, ignore_hangups, memory, notify_ready, start_logging, terminated};
use crate::api::Limits;
use crate::api::connection::connections_max;
use crate::clock::Clock;
use crate::config::{self, ClientFile};
use crate::files::private;
use crate::journal::Journal;
use crate::journal::sqlite::SqliteJournal;
use crate::lock::{self, PathLock};
use crate::model::limit::MUTATIONS_PER_S_DEFAULT;
use crate::model::memory::{MemoryBudget, TOTAL_BYTES_MIN};
use crate::model::plan::Policy;
use crate::runtime::broker::{self, Config};
use crate::runtime::handle::Handle;

/// Run a broker.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir server --data /var/lib/weir/server\n  weir server --data /var/lib/weir/server --policy best-fit\n\nSIGTERM stops the broker. Agents and running tasks continue, and reconnect when it is started again."
)]
pub struct Server {
    /// Data directory: journal and token. Created if absent.
    /// Default: $XDG_STATE_HOME/weir/server or ~/.local/state/weir/server.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Address to listen on, HOST:PORT. Must be a loopback address; port 0 selects a free port.
    #[arg(long, value_name = "ADDRESS", default_value = ADDRESS_DEFAULT)]
    listen: String,
    /// Maximum rate of mutations (submit, cancel, etc.) per client and second, 1 to 1000000.
    #[arg(long, value_name = "N", default_value_t = MUTATIONS_PER_S_DEFAULT,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    mutations_per_second: u32,
    /// Placement policy. `overflow` adapts to the workload to limit fragmentation; `best-fit` and `fgd`
    /// don't.
    #[arg(long, value_enum, default_value_t = PolicyName::Overflow)]
    policy: PolicyName,
    /// Memory that the broker may use, at least 256Mi. Live jobs, pools and nodes may take half of it; beyond that,
    /// further ones are refused. Default: the limit that the system sets for this process, or half of the machine.
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    memory_max: Option<u64>,
    /// How long ended jobs can be looked up, e.g. 30d or 12h; `forever` removes none.
    #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = retention)]
    archive_retention: Retention,
    /// How long events can be read at least (`weir events`), e.g. 7d or 12h. At most the time of --archive-retention.
    #[arg(long, value_name = "DURATION", default_value = "3d", value_parser = duration_ms)]
    event_retention: u64,
    /// Number of events, with those that only the broker uses, beyond which the oldest are removed when a snapshot covers
    /// them; a million of an array's attempts take about 40 MB of disk.
    #[arg(long, value_name = "N", default_value_t = EVENTS_MAX_DEFAULT)]
    events_max: u64,
    /// Form of the log on standard error; its level is set by WEIR_LOG.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// Events of a broker without options.
pub(super) const EVENT_RETENTION_MS_DEFAULT: u64 = 3 * 24 * 3_600 * 1_000;
pub(super) const EVENTS_MAX_DEFAULT: u64 = 2_000_000;

/// How long ended jobs stay in the archive, in milliseconds; `None` without end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retention(pub(super) Option<u64>);

/// The retention of a broker without the option: 90 days.
pub(super) const RETENTION_DEFAULT: Retention = Retention(Some(90 * 24 * 3_600 * 1_000));

fn retention(text: &str) -> Result<Retention, String> {
    if text == "forever" {
        return Ok(Retention(None));
    }
    let ms = duration_ms(text)?;
    if ms < 60_000 { Err(format!("{text}: at least 1m, or `forever`")) } else { Ok(Retention(Some(ms))) }
}

fn memory_size(text: &str) -> Result<u64, String> {
    let size = bytes(text)?;
    if size < TOTAL_BYTES_MIN { Err(format!("{text}: at least 256Mi are needed")) } else { Ok(size) }
}

/// Names of the placement policies.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum PolicyName {
    /// Node with the least free capacity left, devices first.
    BestFit,
    /// Fragmentation gradient descent (USENIX ATC '23).
    Fgd,
    /// Least stranded devices for the tasks that will not fit when the cluster is full. Also chooses the
    /// order of waiting jobs and reserves nodes for large jobs.
    Overflow,
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::BestFit => Self::BestFit,
            PolicyName::Fgd => Self::Fgd,
            PolicyName::Overflow => Self::Overflow,
        }
    }
}

/// A broker with an open port, whose API is not served yet.
pub(super) struct Listening {
    pub(super) broker: Handle,
    pub(super) thread: std::thread::JoinHandle<()>,
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) token: String,
    pub(super) connections_max: usize,
    _path_lock: PathLock,
}

/// Opens the port and the data directory, starts the broker, and registers its address in the config file of
/// clients on this machine.
pub(super) async fn listen(
    data: &Path,
    listen: &str,
    clock: Clock,
    config: Config,
) -> Result<Listening, Failure> {
    let address = resolve(listen).await?;
    let connections_max = connections_max().map_err(|error| Failure::new(1, error))?;
    // Bind the port first: if it is in use, the journal must stay untouched.
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Failure::new(1, format!("can't listen on {listen}: {error}"))
            .hint("another broker may be running; --listen 127.0.0.1:0 selects a free port")
    })?;
    let address = listener.local_addr()?;
    // The journal contains commands and environment variables of jobs, so only its owner may read it.
    private::folder(data).map_err(|error| Failure::new(DENIED, format!("data directory {error}")))?;
    let path_lock = PathLock::take(data).map_err(|error| match error {
        lock::Error::InUse { holder } => crate::journal::Error::InUse { path: data.to_owned(), holder },
        lock::Error::Io(source) => crate::journal::Error::Directory { path: data.to_owned(), source },
    })?;
    let directory = data.to_owned();
    let journal = SqliteJournal::open(&directory)?;
    let file = journal.file();
    let reopen =
        move || SqliteJournal::reopen(&directory, file).map(|journal| Box::new(journal) as Box<dyn Journal>);
    let token = config::to_hex(&config::secret::<16>(&data.join("token"))?);
    // After the token, which those who wait for this file read next; before the broker begins to write, as the journal must
    // not take the last free page of a disk from it.
    if let Err(error) = config::write_private(&data.join("endpoint"), address.to_string().as_bytes()) {
        // On a full disk the broker still answers reads.
        tracing::warn!(%error, "can't write the file `endpoint`: clients on this machine may look elsewhere");
    }
    let (broker, thread) = broker::start(Box::new(journal), Box::new(reopen), clock, config)?;
    let absolute = std::fs::canonicalize(data)?;
    let other = current_broker(&address.to_string()).await;
    if let Some(other) = &other {
        report(&format!(
            "clients on this machine use the broker at {other}; for this one write --server {address} or set WEIR_SERVER"
        ));
    }
    if let Err(error) = ClientFile::remember(&address.to_string(), &absolute, other.is_none()) {
        tracing::warn!(%error, "can't write the client config file: clients need WEIR_SERVER and WEIR_TOKEN");
    }
    Ok(Listening { broker, thread, listener, address, token, connections_max, _path_lock: path_lock })
}

/// The address of the broker that clients on this machine use, if it is not `own` and answers.
async fn current_broker(own: &str) -> Option<String> {
    let current = ClientFile::read().ok()?.current.filter(|current| current != own)?;
    let connected = tokio::time::timeout(CURRENT_ANSWER_MAX, tokio::net::TcpStream::connect(&current)).await;
    matches!(connected, Ok(Ok(_))).then_some(current)
}

/// How long the broker that clients use may take to accept a connection.
const CURRENT_ANSWER_MAX: Duration = Duration::from_millis(500);

async fn resolve(listen: &str) -> Result<SocketAddr, Failure> {
    let mut found = tokio::net::lookup_host(listen).await.map_err(|error| {
        Failure::new(INVALID, format!("--listen {listen:?}: {error}; write ADDRESS:PORT"))
    })?;
    let address =
        found.next().ok_or_else(|| Failure::new(INVALID, format!("--listen {listen:?} has no address")))?;
    if !address.ip().is_loopback() {
        let text = format!(
            "--listen {listen}: not a loopback address; others are not supported without TLS and authentication"
        );
        return Err(Failure::new(DENIED, text));
    }
    Ok(address)
}

impl Server {
    pub async fn run(self) -> Result<u8, Failure> {
        start_logging("info", self.log_format);
        ignore_hangups();
        let data = self.data.unwrap_or_else(|| config::state_directory().join("server"));
        let memory_max = self.memory_max.unwrap_or_else(memory::allowed_bytes).max(TOTAL_BYTES_MIN);
        let memory = MemoryBudget::of(memory_max);
        let config = Config {
            policy: self.policy.into(),
            memory_max: memory.live,
            archive_retention_ms: self.archive_retention.0,
            // An event of a job that is not in the archive has only the job's number.
            event_retention_ms: self.archive_retention.0.unwrap_or(u64::MAX).min(self.event_retention),
            events_max: self.events_max,
        };
        let listening = listen(&data, &self.listen, Clock::start(), config).await?;
        tracing::info!(address = %listening.address, data = %data.display(), memory_max, "the broker listens");
        notify_ready();
        let stop = terminated();
        let broker = listening.broker.clone();
        let limits = Limits {
            mutations_per_s: self.mutations_per_second,
            connections_max: listening.connections_max,
            memory,
        };
        let served = crate::api::serve(broker, listening.listener, &listening.token, limits, stop);
        // Open watches and sessions would delay the graceful end without limit: end after 1 s.
        tokio::select! {
            outcome = served => outcome.map_err(anyhow::Error::from)?,
            () = async { terminated().await; tokio::time::sleep(std::time::Duration::from_secs(1)).await } => {}
        }
        listening.broker.stop().await;
        let _ = tokio::task::spawn_blocking(move || listening.thread.join()).await;
        Ok(0)
    }
}
