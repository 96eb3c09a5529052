//! Finds the broker and its token.

use std::time::Duration;

use tonic::{Code, Status};

use super::Failure;
use super::exit::INVALID;
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::api::retry::spread;
use crate::config::ClientFile;
use crate::model::queue::DEFAULT_QUEUE;

/// Where a broker listens unless told otherwise.
pub const ADDRESS_DEFAULT: &str = "127.0.0.1:7411";

/// How to reach the broker.
#[derive(clap::Args, Clone, Debug)]
pub struct Connect {
    /// The broker's address; else WEIR_SERVER, the config file, the one last started here, 127.0.0.1:7411.
    #[arg(long, global = true, env = "WEIR_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// The queue meant where a job is named without one.
    #[arg(long, short, global = true, default_value = "default")]
    pub queue: String,
}

impl Connect {
    /// A client of the broker that is meant.
    ///
    /// # Errors
    /// If the address or the config file can't be used.
    pub fn client(&self) -> Result<Client, Failure> {
        let file = ClientFile::read()?;
        let named = self.server.clone().filter(|server| !server.is_empty());
        let named = named.or_else(|| file.server.clone()).or_else(|| file.current.clone());
        let server = named.unwrap_or_else(|| ADDRESS_DEFAULT.to_owned());
        let address = server.split("://").last().unwrap_or_default().trim_end_matches('/').to_owned();
        let token = match std::env::var("WEIR_TOKEN") {
            Ok(token) if !token.is_empty() => Some(token),
            _ => {
                file.contexts.get(&address).and_then(|data| std::fs::read_to_string(data.join("token")).ok())
            }
        };
        Client::new(&server, token.as_deref()).map_err(|error| Failure::new(INVALID, format!("{error:#}")))
    }

    /// Names a job as users write it: `job/NAME`, `job/QUEUE/NAME`, `NAME`, or a number.
    ///
    /// # Errors
    /// If the text names another type.
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
                // A queue's own name has slashes, a job's has none.
                let (queue, name) = name.rsplit_once('/').unwrap_or((&self.queue, name));
                Ok(v1::JobRef { id: 0, queue: queue.to_owned(), name: name.to_owned() })
            }
        }
    }
}

/// A job as commands print it and take it again: `job/NAME`, with its queue before the name unless
/// that is the default one.
pub fn job_name(queue: &str, name: &str) -> String {
    if queue.is_empty() || queue == DEFAULT_QUEUE {
        format!("job/{name}")
    } else {
        format!("job/{queue}/{name}")
    }
}

/// A request token of its own for every mutation: a UUID of version 7, which tells its age.
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

/// The broker is away, or was while the call ran: repeating is safe with a token.
///
/// A connection that breaks under a call shows as `Unknown` or `Internal` with the transport's own
/// words; the broker itself answers neither for what a client could mend.
pub fn is_transient(status: &Status) -> bool {
    let broken = |text: &str| {
        ["h2", "transport", "connection", "stream", "body"].iter().any(|word| text.contains(word))
    };
    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown)
        || (status.code() == Code::Internal && broken(status.message()))
}

/// Repeats a call while the broker is away, for at most `patience`.
///
/// # Errors
/// The last failure.
pub async fn patiently<T, F>(patience: Duration, mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let deadline = tokio::time::Instant::now() + patience;
    let mut wait = Duration::from_millis(20);
    loop {
        match call().await {
            Err(status) if is_transient(&status) && tokio::time::Instant::now() + wait < deadline => {
                // A broker that comes back should not meet all who waited for it at once.
                tokio::time::sleep(spread(wait)).await;
                wait = (wait * 2).min(Duration::from_secs(1));
            }
            outcome => return outcome,
        }
    }
}

/// How long commands that wait live without a broker.
pub const PATIENCE: Duration = Duration::from_secs(300);
