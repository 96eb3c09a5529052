//! Broker address and token, job names, request tokens, and retries.

use std::path::PathBuf;
use std::time::Duration;

use tonic::{Code, Status};

use super::Failure;
use super::exit::INVALID;
use super::output::report;
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::clock::spread;
use crate::config::ClientFile;
use crate::model::backoff::Backoff;
use crate::model::queue::DEFAULT_QUEUE;

/// Default address of a broker.
pub const ADDRESS_DEFAULT: &str = "127.0.0.1:7411";

/// Flags that select the broker and the queue.
#[derive(clap::Args, Clone, Debug)]
pub struct Connect {
    /// Broker, HOST:PORT. Default: that of the config file, else the last one started here
    // Short, so that `weir --help` fits a screen: docs/reference/environment.md has the details.
    #[arg(long, global = true, hide_env_values = true, env = "WEIR_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// File with the broker's token. Default: WEIR_TOKEN, else that of a broker here
    #[arg(long, global = true, hide_env_values = true, env = "WEIR_TOKEN_FILE", value_name = "PATH", value_parser = path)]
    pub token_file: Option<PathBuf>,
    /// Queue of jobs that are named, submitted or listed without one
    #[arg(long, short, global = true, default_value = "default")]
    pub queue: String,
}

impl Connect {
    /// Makes a client of the selected broker. The token is that in `--token-file`, `WEIR_TOKEN`, or that in the data
    /// directory of a broker on this machine. Does not connect yet.
    ///
    /// # Errors
    /// If the config file or the token's file can't be read, or the address or token is invalid.
    pub fn client(&self) -> Result<Client, Failure> {
        let file = ClientFile::read()?;
        let named = self.server.clone().filter(|server| !server.is_empty());
        let named = named.or_else(|| file.server.clone()).or_else(|| file.current.clone());
        let server = named.unwrap_or_else(|| ADDRESS_DEFAULT.to_owned());
        let address = server.split("://").last().unwrap_or_default().trim_end_matches('/').to_owned();
        let token_file = self.token_file.as_ref().filter(|path| !path.as_os_str().is_empty());
        let token = match (token_file, std::env::var("WEIR_TOKEN")) {
            (Some(path), _) => Some(std::fs::read_to_string(path).map_err(|error| {
                Failure::new(INVALID, format!("--token-file {}: {error}", path.display()))
            })?),
            (None, Ok(token)) if !token.is_empty() => Some(token),
            _ => {
                // Brokers on this machine are recorded by number.
                let numeric = address.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
                let data = file.contexts.get(numeric.as_ref().unwrap_or(&address));
                data.and_then(|data| std::fs::read_to_string(data.join("token")).ok())
            }
        };
        Client::new(&server, token.as_deref().map(str::trim))
            .map_err(|error| Failure::new(INVALID, format!("{error:#}")))
    }

    /// Reports on standard error if the broker can't write its journal, or must not, as it is an old copy: what it answers
    /// is its last durable state.
    pub async fn warn_if_read_only(&self) {
        let writes = match self.client() {
            Ok(client) => client.can_write().await,
            Err(_) => return,
        };
        if writes.is_ok_and(|writes| !writes) {
            report(
                "warning: the broker is read-only: this is the last state that it could write; its log has the reason",
            );
        }
    }

    /// Parses a job reference: `job/NAME`, `job/QUEUE/NAME`, `NAME`, or the job's id as a number.
    ///
    /// # Errors
    /// If `text` names another type of object.
    pub fn job_ref(&self, text: &str) -> Result<v1::JobRef, Failure> {
        let name = match text.split_once('/') {
            Some(("job" | "jobs" | "j", name)) => name,
            Some((kind, _)) => {
                return Err(Failure::new(INVALID, format!("{kind:?} is not a job: write job/NAME")));
            }
            None => text,
        };
        match name.parse::<u64>() {
            Ok(id) if id > 0 => Ok(v1::JobRef { id, ..v1::JobRef::default() }),
            _ => {
                // Queue names contain slashes, job names don't.
                let (queue, name) = name.rsplit_once('/').unwrap_or((&self.queue, name));
                Ok(v1::JobRef { id: 0, queue: queue.to_owned(), name: name.to_owned() })
            }
        }
    }
}

/// Any path; an empty one stands for none, as that of an empty variable.
fn path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
}

/// Formats a job reference that commands accept again: `job/NAME`, or `job/QUEUE/NAME` if the queue is not
/// the default one.
pub fn job_name(queue: &str, name: &str) -> String {
    if queue.is_empty() || queue == DEFAULT_QUEUE {
        format!("job/{name}")
    } else {
        format!("job/{queue}/{name}")
    }
}

/// Makes a request token, unique per mutation: a UUID version 7 (RFC 9562), so its creation time can be read
/// from it.
pub fn new_token() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let ms = since.map_or(0, |since| since.as_millis() as u64);
    let [high, low]: [u64; 2] = rand::random();
    format!(
        "{:08x}-{:04x}-7{:03x}-{:04x}-{:012x}",
        ms >> 16 & 0xffff_ffff,
        ms & 0xffff,
        high & 0xfff,
        high >> 16 & 0x3fff | 0x8000,
        low & 0xffff_ffff_ffff
    )
}

/// True if the broker is unavailable, or became so during the call. Repeating is safe with a request token.
///
/// A connection that breaks during a call is reported as `Unknown`, or as `Internal` with a message of the
/// transport; the broker returns neither for errors that a client could correct.
pub fn is_transient(status: &Status) -> bool {
    let broken = |text: &str| {
        ["h2", "transport", "connection", "stream", "body"].iter().any(|word| text.contains(word))
    };
    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown)
        || (status.code() == Code::Internal && broken(status.message()))
}

/// Repeats a call while the broker is unavailable, for at most `timeout`, with exponential backoff from
/// 20 ms to 1 s.
///
/// # Errors
/// The status of the last call.
pub async fn with_retries<T, F>(timeout: Duration, mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let started = tokio::time::Instant::now();
    let deadline = started + timeout;
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    let mut is_reported = false;
    loop {
        let wait = backoff.next_wait();
        match call().await {
            Err(status) if is_transient(&status) && tokio::time::Instant::now() + wait < deadline => {
                if !is_reported && started.elapsed() > REPORT_AFTER {
                    is_reported = true;
                    let seconds = timeout.as_secs();
                    report(&format!("warning: {}; repeating for up to {seconds} s", status.message()));
                }
                // Random delays, so that a restarted broker does not receive all repeated calls at once.
                tokio::time::sleep(spread(wait)).await;
            }
            outcome => return outcome,
        }
    }
}

/// How long calls are repeated without a word: a broker that is restarted needs less.
const REPORT_AFTER: Duration = Duration::from_secs(2);

/// How long commands repeat calls while the broker is unavailable.
pub const RETRY_TIMEOUT: Duration = Duration::from_secs(300);
