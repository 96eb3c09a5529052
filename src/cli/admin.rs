//! `weir admin`: administrative commands.

use std::path::{Path, PathBuf};

use super::connect::new_token;
use super::{Connect, Failure};
use crate::api::proto::v1;
use crate::config::{self, ClientFile};
use crate::journal::sqlite;

/// Administrative commands.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir admin abandon aaaaaaaaab-7-0-1\n  weir admin verify --data /var/lib/weir/server\n  weir admin backup --data /var/lib/weir/server weir.sqlite"
)]
pub struct Admin {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Give up an attempt in an unreachable pool.
    ///
    /// The attempt may still be running: if its unit is retried, it may run twice. Rejected while the pool is
    /// reachable: use `weir cancel` then.
    #[command(
        after_help = "Example:\n  weir describe job/train-7             lists the attempts\n  weir admin abandon aaaaaaaaab-7-0-1"
    )]
    Abandon {
        /// Attempt id, JOURNAL-JOB-UNIT-NUMBER, as printed by `weir describe job/NAME`.
        attempt: String,
    },
    /// Verify a broker's data directory: every record of its journal, snapshot and archive.
    ///
    /// Reads everything and changes nothing. A broker may run meanwhile. Prints each damaged record and exits with 1 if
    /// there is any.
    #[command(after_help = "Example:\n  weir admin verify --data /var/lib/weir/server")]
    Verify {
        /// Data directory of the broker.
        /// Default: $XDG_STATE_HOME/weir/server or ~/.local/state/weir/server; if no broker was run there, that of the
        /// current broker, such as of `weir dev`.
        #[arg(long, value_name = "PATH")]
        data: Option<PathBuf>,
    },
    /// Copy a broker's journal to a new file.
    ///
    /// A broker may run meanwhile: the copy is of one revision. Only its owner can read it, as it has environment
    /// values of jobs and a secret key. An existing file is not replaced.
    #[command(
        after_help = "Example:\n  weir admin backup --data /var/lib/weir/server /backup/weir-$(date +%F).sqlite"
    )]
    Backup {
        /// Data directory of the broker.
        /// Default: $XDG_STATE_HOME/weir/server or ~/.local/state/weir/server; if no broker was run there, that of the
        /// current broker, such as of `weir dev`.
        #[arg(long, value_name = "PATH")]
        data: Option<PathBuf>,
        /// File to write.
        to: PathBuf,
    },
}

impl Admin {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        match self.command {
            Command::Backup { data, to } => {
                let data = data.map_or_else(default_data, Ok)?;
                sqlite::backup(&data, &to)?;
                let size = std::fs::metadata(&to).map_or(0, |metadata| metadata.len());
                super::output::print(&format!("{}: {}\n", to.display(), super::output::bytes(size)))?;
                Ok(0)
            }
            Command::Verify { data } => verify(&data.map_or_else(default_data, Ok)?),
            Command::Abandon { attempt } => {
                let attempt = attempt.strip_prefix("attempt/").unwrap_or(&attempt).to_owned();
                let request = v1::AbandonRequest { token: new_token(), attempt: attempt.clone() };
                connect.client()?.pools().abandon(request).await?;
                super::output::announce(&format!("attempt/{attempt} abandoned: it may still run"))?;
                Ok(0)
            }
        }
    }
}

/// The data of `weir server` without `--data`, or else of the broker that commands connect to by default.
fn default_data() -> Result<PathBuf, Failure> {
    let server = config::state_directory().join("server");
    if server.is_dir() {
        return Ok(server);
    }
    let file = ClientFile::read()?;
    let current = file.current.and_then(|address| file.contexts.get(&address).cloned());
    Ok(current.unwrap_or(server))
}

fn verify(data: &Path) -> Result<u8, Failure> {
    let found = sqlite::verify(data)?;
    let sqlite::Verified { end, batches, chunks, jobs, attempts, damage } = found;
    super::output::print(&format!(
        "journal up to revision {end}: {batches} batches of events, {chunks} chunks of snapshots; archive: {jobs} jobs, \
         {attempts} attempts\n"
    ))?;
    if damage.is_empty() {
        super::output::print("no damage\n")?;
        return Ok(0);
    }
    damage.iter().try_for_each(|line| super::output::print(&format!("{line}\n")))?;
    let text = format!("{} damaged", damage.len());
    Err(Failure::new(1, text).hint("docs/guide/back-up.md has what helps"))
}
