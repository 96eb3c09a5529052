//! `weir cordon`, `uncordon` and `drain`.

use super::connect::new_token;
use super::{Connect, Failure, quantity};
use crate::api::proto::v1;

/// Closes or opens a pool or node.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir cordon pool/gz-nvidia\n  weir cordon gz-nvidia --node dgx-0001\n  weir uncordon gz-nvidia"
)]
pub struct Cordon {
    /// pool/NAME.
    pool: String,
    /// Only this node of it.
    #[arg(long, default_value = "")]
    node: String,
}

/// Empties a pool.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir drain gz-nvidia --deadline 2h      wait for what runs, evict after two hours\n  weir drain gz-nvidia --evict            evict at once\n  weir uncordon gz-nvidia                 back into service"
)]
pub struct Drain {
    /// pool/NAME.
    pool: String,
    /// Don't wait for what runs.
    #[arg(long)]
    evict: bool,
    /// Evict what still runs after this.
    #[arg(long, value_parser = quantity::duration_ms)]
    deadline: Option<u64>,
}

fn pool_name(text: &str) -> String {
    text.rsplit_once('/').map_or(text, |(_, name)| name).to_owned()
}

impl Cordon {
    pub async fn run(self, connect: &Connect, cordon: bool) -> Result<u8, Failure> {
        let client = connect.client()?;
        let (token, pool, node) = (new_token(), pool_name(&self.pool), self.node);
        if cordon {
            client.pools().cordon(v1::CordonRequest { token, pool, node }).await?;
        } else {
            client.pools().uncordon(v1::UncordonRequest { token, pool, node }).await?;
        }
        Ok(0)
    }
}

impl Drain {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let mode = if self.evict { v1::DrainMode::Evict } else { v1::DrainMode::Wait } as i32;
        let request = v1::DrainRequest {
            token: new_token(),
            pool: pool_name(&self.pool),
            mode,
            deadline_ms: self.deadline.unwrap_or(0),
        };
        connect.client()?.pools().drain(request).await?;
        Ok(0)
    }
}
