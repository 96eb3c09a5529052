//! `weir cordon`, `weir uncordon` and `weir drain`.

use super::connect::new_token;
use super::exit::{INVALID, USAGE};
use super::get::pool_state;
use super::kind::Kind;
use super::output::{announce, report, span};
use super::{Connect, Failure, quantity};
use crate::api::proto::v1;
use crate::model::validate::quote;

/// Cordon or uncordon a pool or node; the help of each is beside its command.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir cordon pool/gz-nvidia\n  weir cordon gz-nvidia sc-nvidia\n  weir cordon gz-nvidia --node dgx-0001\n  weir uncordon gz-nvidia\n\nRunning tasks are not affected."
)]
pub struct Cordon {
    /// pool/NAME or NAME, any number.
    #[arg(required = true, value_name = "POOL")]
    pools: Vec<String>,
    /// Only this node of the pool. Default: the whole pool.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    node: String,
}

/// Stop new placements on a pool and remove its running tasks.
///
/// Waits for running tasks to end, unless --evict or --deadline is given. Evicted tasks are requeued; an
/// eviction does not count as an attempt.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir drain gz-nvidia --deadline 2h      wait for running tasks, evict them after two hours\n  weir drain gz-nvidia --evict            evict immediately\n  weir uncordon gz-nvidia                 end the drain"
)]
pub struct Drain {
    /// pool/NAME or NAME, any number.
    #[arg(required = true, value_name = "POOL")]
    pools: Vec<String>,
    /// Evict running tasks immediately.
    #[arg(long)]
    evict: bool,
    /// Evict tasks that are still running after this time: 90s, 5m, 2h; at most 366d. Default: wait without
    /// limit.
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration_ms)]
    deadline: Option<u64>,
}

/// The name in `pool/NAME` or `NAME`.
fn pool_name(text: &str) -> Result<String, Failure> {
    match text.split_once('/') {
        None => Ok(text.to_owned()),
        Some((kind, name)) if Kind::parse(kind) == Some(Kind::Pools) => Ok(name.to_owned()),
        Some((kind, _)) => {
            Err(Failure::new(INVALID, format!("{} is not a pool: write pool/NAME", quote(kind))))
        }
    }
}

impl Cordon {
    pub async fn run(self, connect: &Connect, cordon: bool) -> Result<u8, Failure> {
        let pools = self.pools.iter().map(|text| pool_name(text)).collect::<Result<Vec<_>, _>>()?;
        if pools.len() > 1 && !self.node.is_empty() {
            return Err(Failure::new(USAGE, "--node names a node of one pool: name one pool"));
        }
        let client = connect.client()?;
        for pool in pools {
            let (token, node) = (new_token(), self.node.clone());
            let what =
                if node.is_empty() { format!("pool/{pool}") } else { format!("node {node} of pool/{pool}") };
            let done = if cordon {
                client.pools().cordon(v1::CordonRequest { token, pool, node }).await?;
                "cordoned: running tasks go on"
            } else {
                client.pools().uncordon(v1::UncordonRequest { token, pool, node }).await?;
                "takes new work"
            };
            announce(&format!("{what} {done}"))?;
        }
        Ok(0)
    }
}

impl Drain {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let pools = self.pools.iter().map(|text| pool_name(text)).collect::<Result<Vec<_>, _>>()?;
        let mode = if self.evict { v1::DrainMode::Evict } else { v1::DrainMode::Wait } as i32;
        let after = match (self.evict, self.deadline) {
            (true, _) => "running tasks are stopped and start elsewhere".to_owned(),
            (false, Some(ms)) => {
                format!("tasks that still run in {} are stopped and start elsewhere", span(ms))
            }
            (false, None) => "running tasks go on until they end".to_owned(),
        };
        let client = connect.client()?;
        for name in pools {
            let deadline_ms = self.deadline.unwrap_or(0);
            let request = v1::DrainRequest { token: new_token(), pool: name.clone(), mode, deadline_ms };
            client.pools().drain(request).await?;
            announce(&format!("pool/{name} drains: {after}"))?;
            let found = client.pools().get_pool(v1::GetPoolRequest { name }).await?.into_inner();
            let pool = found.pool.unwrap_or_default();
            if pool.connectivity() != v1::Connectivity::Ready && pool.attempts > 0 {
                let state = pool_state(&pool);
                report(&format!(
                    "warning: the pool is {state}: what runs there can be stopped only when its agent is back, or be given \
                     up with `weir admin abandon`"
                ));
            }
        }
        Ok(0)
    }
}
