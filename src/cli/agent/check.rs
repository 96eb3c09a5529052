//! `weir agent check`: what a pool's agent needs, tried one by one.

use std::path::PathBuf;

use super::pool::{self, Backend};
use super::{claim, client};
use crate::api::proto::v1;
use crate::cli::output::{print, table};
use crate::cli::{Connect, Failure};
use crate::config::AgentFile;
use crate::pools::check::{Finding, Verdict};
use crate::pools::{host, kubernetes};

/// Says for each thing that a pool's agent needs whether it works, or exactly why not.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  weir agent check /etc/weir/pools/*.toml\n\nExits with 1 if anything fails. Nothing is changed but the folder that keeps the agent's identity."
)]
pub(super) struct Check {
    /// Each pool's TOML file.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

impl Check {
    pub(super) async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let mut rows = vec![["POOL", "NEEDS", "RESULT", "DETAIL"].map(str::to_owned).to_vec()];
        let mut worst = Verdict::Works;
        for path in &self.files {
            let (name, found) = match AgentFile::read(path) {
                Ok(file) => (file.name.clone(), of_file(connect, &file).await),
                Err(error) => ("-".to_owned(), vec![Finding::of("file", Err(error.to_string()))]),
            };
            for finding in found {
                worst = worst.max(finding.verdict);
                // One line each, also where a parser's answer has several.
                let detail = finding.detail.split_whitespace().collect::<Vec<_>>().join(" ");
                rows.push(vec![name.clone(), finding.what, finding.verdict.word().to_owned(), detail]);
            }
        }
        print(&aligned(&rows))?;
        Ok(u8::from(worst == Verdict::Fails))
    }
}

/// The last column is a sentence and stays one; the others are cells as everywhere.
fn aligned(rows: &[Vec<String>]) -> String {
    let cells: Vec<Vec<String>> = rows.iter().map(|row| row[..3].to_vec()).collect();
    let width = table(&cells).lines().map(|line| line.chars().count()).max().unwrap_or(0);
    let lines = table(&cells);
    let joined = lines.lines().zip(rows).map(|(line, row)| format!("{line:<width$}   {}\n", row[3]));
    joined.collect()
}

async fn of_file(connect: &Connect, file: &AgentFile) -> Vec<Finding> {
    let mut found =
        vec![Finding::of("broker", broker(connect, file).await), Finding::of("state folder", state(file))];
    match pool::backend(file) {
        Ok(Backend::Host(settings)) => found.extend(host::check::check(&settings)),
        Ok(Backend::Kubernetes(settings)) => found.extend(kubernetes::check::check(&settings).await),
        Ok(Backend::Simulated(settings)) => {
            found.push(Finding::of("nodes", Ok(format!("{} simulated", settings.nodes.len()))));
        }
        Err(failure) => found.push(Finding::of("settings", Err(failure.message))),
    }
    found
}

/// The broker is there, and takes the token.
async fn broker(connect: &Connect, file: &AgentFile) -> Result<String, String> {
    let client = client(connect, file).map_err(|failure| failure.message)?;
    let request = v1::GetPoolRequest { name: file.name.clone() };
    match client.pools().get_pool(request).await {
        // Made when an agent first starts in the folder.
        Ok(_) if !file.state.join("key").exists() => Err(format!(
            "PoolClaimed: it knows pool {}, whose agent has another state folder than {}",
            file.name,
            file.state.display()
        )),
        Ok(_) => Ok(format!("reached; it knows pool {}", file.name)),
        Err(status) if status.code() == tonic::Code::NotFound => {
            Ok(format!("reached; pool {} is new to it", file.name))
        }
        Err(status) => Err(status.message().to_owned()),
    }
}

/// The folder can be written, and whether an agent runs in it.
fn state(file: &AgentFile) -> Result<String, String> {
    let folder = file.state.display();
    match claim(&file.state) {
        Ok(_lock) => Ok(format!("{folder} can be written; no agent runs in it")),
        Err(failure) if failure.code == crate::cli::exit::CONFLICT => {
            Ok(format!("{folder}: an agent runs in it"))
        }
        Err(failure) => Err(failure.message),
    }
}
