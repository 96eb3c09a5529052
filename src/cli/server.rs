//! `weir server`: a broker.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tokio::net::TcpListener;

use super::connect::ADDRESS_DEFAULT;
use super::exit::{DENIED, INVALID};
use super::{Failure, start_logging, terminated};
use crate::clock::Clock;
use crate::config::{self, ClientFile};
use crate::journal::Journal;
use crate::journal::sqlite::SqliteJournal;
use crate::model::limit::MUTATIONS_PER_S_DEFAULT;
use crate::model::plan::Policy;
use crate::runtime::broker::{self, Handle};

/// Runs a broker.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  weir server --data /var/lib/weir\n  weir server --data /var/lib/weir --policy best-fit\n\nSIGTERM ends it; agents and their tasks live on."
)]
pub struct Server {
    /// Where the journal lives.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Loopback only; port 0 picks one.
    #[arg(long, default_value = ADDRESS_DEFAULT)]
    listen: String,
    /// Mutations (submits, cancels and the like) that one client may send in a second.
    #[arg(long, value_name = "N", default_value_t = MUTATIONS_PER_S_DEFAULT,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    mutations_per_second: u32,
    /// How places are chosen. `overflow` uses_profile what comes and strands least of it; the others are simpler,
    /// allocate less and keep nothing for large jobs.
    #[arg(long, value_enum, default_value_t = PolicyName::Overflow)]
    policy: PolicyName,
}

/// A policy's name.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum PolicyName {
    BestFit,
    Fgd,
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

/// A broker that listens.
pub(super) struct Listening {
    pub(super) broker: Handle,
    pub(super) thread: std::thread::JoinHandle<()>,
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) token: String,
}

/// Opens the data directory and the port, and leaves a context for clients.
pub(super) async fn listen(
    data: &Path,
    listen: &str,
    clock: Clock,
    policy: Policy,
) -> Result<Listening, Failure> {
    let address = resolve(listen).await?;
    // The port first: one that is taken must not touch the journal.
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Failure::new(1, format!("can't listen on {listen}: {error}"))
            .hint("another weir may be running; --listen 127.0.0.1:0 picks a free port")
    })?;
    let address = listener.local_addr()?;
    // The journal holds what jobs are told: nobody else's to read.
    if !data.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data)?;
    }
    let directory = data.to_owned();
    let open = move || SqliteJournal::open(&directory).map(|journal| Box::new(journal) as Box<dyn Journal>);
    let (broker, thread) = broker::start(Box::new(open), clock, policy)?;
    let token = config::to_hex(&config::secret::<16>(&data.join("token"))?);
    config::write_private(&data.join("endpoint"), address.to_string().as_bytes())?;
    let absolute = std::fs::canonicalize(data)?;
    if let Err(error) = ClientFile::remember(&address.to_string(), &absolute) {
        tracing::warn!(%error, "clients must be told the token: the context can't be written");
    }
    Ok(Listening { broker, thread, listener, address, token })
}

async fn resolve(listen: &str) -> Result<SocketAddr, Failure> {
    let mut found = tokio::net::lookup_host(listen).await.map_err(|error| {
        Failure::new(INVALID, format!("--listen {listen:?}: {error}; write ADDRESS:PORT"))
    })?;
    let address =
        found.next().ok_or_else(|| Failure::new(INVALID, format!("--listen {listen:?} is no address")))?;
    if !address.ip().is_loopback() {
        let text = format!(
            "--listen {listen}: not a loopback address; without TLS and authentication nothing else is served"
        );
        return Err(Failure::new(DENIED, text));
    }
    Ok(address)
}

impl Server {
    pub async fn run(self) -> Result<u8, Failure> {
        start_logging("info");
        let data = self.data.unwrap_or_else(|| config::state_directory().join("server"));
        let listening = listen(&data, &self.listen, Clock::start(), self.policy.into()).await?;
        tracing::info!(address = %listening.address, data = %data.display(), "the broker listens");
        let stop = terminated();
        let (broker, rate) = (listening.broker.clone(), self.mutations_per_second);
        let served = crate::api::serve(broker, listening.listener, &listening.token, rate, stop);
        // Open watches and sessions would hold up a graceful end: they are cut after a moment.
        tokio::select! {
            outcome = served => outcome.map_err(anyhow::Error::from)?,
            () = async { terminated().await; tokio::time::sleep(std::time::Duration::from_secs(1)).await } => {}
        }
        listening.broker.stop().await;
        let _ = tokio::task::spawn_blocking(move || listening.thread.join()).await;
        Ok(0)
    }
}
