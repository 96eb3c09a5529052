//! `weir admin`.

use super::connect::new_token;
use super::{Connect, Failure};
use crate::api::proto::v1;

/// What only an admin should do.
#[derive(clap::Args)]
pub struct Admin {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Gives up an attempt in a silent pool. It may still run: its job may then run twice.
    Abandon {
        /// JOURNAL-JOB-UNIT-NUMBER, as `weir describe job/NAME` shows it.
        attempt: String,
    },
    /// Prints the manual of stable codes.
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
