//! `weir agent check`: checks the requirements of a pool one by one.

use std::path::PathBuf;

use unicode_width::UnicodeWidthStr;

use super::pool::{self, Backend};
use super::{claim, client};
use crate::api::proto::v1;
use crate::cli::output::{padded, print, table};
use crate::cli::{Connect, Failure};
use crate::config::AgentFile;
use crate::pools::check::{Finding, Verdict};
use crate::pools::{host, kubernetes};

/// Check the requirements of pools and report which are not met, and why.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  weir agent check /etc/weir/pools/*.toml\n\nExit code 1 if a requirement is not met. Creates the state folder if absent, and changes nothing else."
)]
pub(super) struct Check {
    /// Pool files (TOML), one per pool.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

impl Check {
    pub(super) async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let mut rows = vec![["POOL", "REQUIREMENT", "RESULT", "DETAIL"].map(str::to_owned).to_vec()];
        let mut worst = Verdict::Works;
        for path in &self.files {
            let (name, found) = match super::read_file(path) {
                Ok(file) => (file.name.clone(), of_file(connect, &file).await),
                Err(failure) => ("-".to_owned(), vec![Finding::of("file", Err(failure.message))]),
            };
            for finding in found {
                worst = worst.max(finding.verdict);
                // One line per finding, although messages of parsers may have several.
                let detail = finding.detail.split_whitespace().collect::<Vec<_>>().join(" ");
                rows.push(vec![name.clone(), finding.what, finding.verdict.word().to_owned(), detail]);
            }
        }
        print(&aligned(&rows))?;
        Ok(u8::from(worst == Verdict::Fails))
    }
}

/// Formats a table whose last column is a sentence with its spaces.
fn aligned(rows: &[Vec<String>]) -> String {
    let cells: Vec<Vec<String>> = rows.iter().map(|row| row[..3].to_vec()).collect();
    let lines = table(&cells);
    let width = lines.lines().map(UnicodeWidthStr::width).max().unwrap_or(0) + 3;
    let joined = lines.lines().zip(rows).map(|(line, row)| format!("{}{}\n", padded(line, width), row[3]));
    joined.collect()
}

async fn of_file(connect: &Connect, file: &AgentFile) -> Vec<Finding> {
    let mut found =
        vec![Finding::of("broker", broker(connect, file).await), Finding::of("state folder", state(file))];
    match pool::backend(file, &pool::hidden(std::slice::from_ref(file))) {
        Ok(Backend::Host(settings)) => found.extend(host::check::check(&settings)),
        Ok(Backend::Kubernetes(settings)) => found.extend(kubernetes::check::check(&settings).await),
        Ok(Backend::Simulated(settings)) => {
            found.push(Finding::of("nodes", Ok(format!("{} simulated", settings.nodes.len()))));
        }
        Err(failure) => found.push(Finding::of("settings", Err(failure.message))),
    }
    found
}

/// Checks that the broker is reachable, accepts the token, and that no other agent has the pool's name.
async fn broker(connect: &Connect, file: &AgentFile) -> Result<String, String> {
    let client = client(connect, file).map_err(|failure| failure.message)?;
    let request = v1::GetPoolRequest { name: file.name.clone() };
    match client.pools().get_pool(request).await {
        // The key is created when an agent first starts in the folder: without it, the pool was registered by
        // another agent.
        Ok(_) if !file.state.join("key").exists() => Err(format!(
            "PoolClaimed: pool {} is registered by an agent with another state folder than {}",
            file.name,
            file.state.display()
        )),
        Ok(_) => Ok(format!("reachable; pool {} is registered", file.name)),
        Err(status) if status.code() == tonic::Code::NotFound => {
            Ok(format!("reachable; pool {} is not registered yet", file.name))
        }
        Err(status) => Err(status.message().to_owned()),
    }
}

/// Checks that the state folder is writable, and whether an agent is running in it.
fn state(file: &AgentFile) -> Result<String, String> {
    let folder = file.state.display();
    match claim(&file.state) {
        Ok(_lock) => Ok(format!("{folder} is writable; no agent is running in it")),
        Err(failure) if failure.code == crate::cli::exit::CONFLICT => {
            Ok(format!("{folder}: an agent is running in it"))
        }
        Err(failure) => Err(failure.message),
    }
}
