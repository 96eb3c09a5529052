//! `weir admin`: administrative commands.

use super::connect::new_token;
use super::{Connect, Failure};
use crate::api::proto::v1;

/// Administrative commands.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weir admin abandon aaaaaaaaab-7-0-1\n  weir admin reasons | less")]
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
    /// Print the reference of reason and error codes as Markdown.
    #[command(after_help = "Example:\n  weir admin reasons > docs/reference/reasons.md")]
    Reasons,
}

impl Admin {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        match self.command {
            Command::Reasons => {
                super::output::print(&super::reasons::manual())?;
                Ok(0)
            }
            Command::Abandon { attempt } => {
                let request = v1::AbandonRequest { token: new_token(), attempt };
                connect.client()?.pools().abandon(request).await?;
                Ok(0)
            }
        }
    }
}
