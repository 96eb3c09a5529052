//! `weir top`: resource usage by pool.

use std::time::Duration;

use super::get::pool_state;
use super::output::{
    Format, bytes, fitted, is_terminal, print, print_raw, print_value, table, terminal_size, thousandths,
    value_of,
};
use super::{Connect, Failure};
use crate::api::proto::v1;

/// Show the resource usage of each pool, refreshed every 2 s.
///
/// CPU% and DEVICE% are the allocated shares of the pool; MEMORY is allocated/total.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir top\n  weir top --once     print once, for scripts\n  weir top -o json"
)]
pub struct Top {
    /// Print once and exit; the default if standard output is not a terminal.
    #[arg(long)]
    once: bool,
    /// Output format: json and yaml print once.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

impl Top {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let client = connect.client()?;
        let refreshes = !self.once && is_terminal();
        loop {
            let mut pools = client.pools().list_pools(v1::ListPoolsRequest {}).await?.into_inner().pools;
            pools.sort_by(|left, right| (&left.region, &left.name).cmp(&(&right.region, &right.name)));
            if matches!(self.output, Format::Json | Format::Yaml) {
                return print_value(self.output, value_of(&pools)?).map(|()| 0);
            }
            let heading = ["REGION", "NAME", "STATE", "CPU%", "MEMORY", "DEVICE%", "ATTEMPTS"];
            let mut rows = vec![heading.map(str::to_owned).to_vec()];
            rows.extend(pools.iter().map(row));
            let text = table(&rows);
            if !refreshes {
                return print(&text).map(|()| 0);
            }
            print_raw("\x1b[H\x1b[2J")?;
            print(&terminal_size().map_or_else(|| text.clone(), |size| fitted(&text, size)))?;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
}

fn row(pool: &v1::Pool) -> Vec<String> {
    let (total, held) = (pool.total.clone().unwrap_or_default(), pool.committed.clone().unwrap_or_default());
    // Thousandths of a whole are tenths of a percent.
    let share = |held: u64, total: u64| {
        (held * 1_000).checked_div(total).map_or_else(String::new, |part| thousandths(part * 100))
    };
    vec![
        pool.region.clone(),
        pool.name.clone(),
        pool_state(pool),
        share(held.cpu_millis, total.cpu_millis),
        format!("{}/{}", bytes(held.memory_bytes), bytes(total.memory_bytes)),
        share(held.device_millis, total.device_millis),
        pool.attempts.to_string(),
    ]
}
