//! `weir top`: resource usage by pool.

use std::time::Duration;

use super::output::{bytes, is_terminal, print, print_raw, table, thousandths};
use super::{Connect, Failure, get};
use crate::api::proto::v1;

/// Show the resource usage of each pool, refreshed every 2 s.
///
/// CPU% and DEVICE% are the allocated shares of the pool; MEMORY is allocated/total.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weir top\n  weir top --once     print once, for scripts")]
pub struct Top {
    /// Print once and exit; the default if standard output is not a terminal.
    #[arg(long)]
    once: bool,
}

impl Top {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let client = connect.client()?;
        loop {
            let mut pools = client.pools().list_pools(v1::ListPoolsRequest {}).await?.into_inner().pools;
            pools.sort_by(|left, right| (&left.region, &left.name).cmp(&(&right.region, &right.name)));
            let heading = ["REGION", "NAME", "STATE", "CPU%", "MEMORY", "DEVICE%", "ATTEMPTS"];
            let mut rows = vec![heading.map(str::to_owned).to_vec()];
            for pool in &pools {
                let (total, held) =
                    (pool.total.clone().unwrap_or_default(), pool.committed.clone().unwrap_or_default());
                let share = |held: u64, total: u64| {
                    (held * 1_000).checked_div(total).map_or_else(String::new, thousandths_percent)
                };
                rows.push(vec![
                    pool.region.clone(),
                    pool.name.clone(),
                    get::pool_state(pool),
                    share(held.cpu_millis, total.cpu_millis),
                    format!("{}/{}", bytes(held.memory_bytes), bytes(total.memory_bytes)),
                    share(held.device_millis, total.device_millis),
                    pool.attempts.to_string(),
                ]);
            }
            if !self.once && is_terminal() {
                print_raw("\x1b[H\x1b[2J")?;
            }
            print(&table(&rows))?;
            if self.once || !is_terminal() {
                return Ok(0);
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
}

fn thousandths_percent(thousandth: u64) -> String {
    thousandths(thousandth * 100)
}
