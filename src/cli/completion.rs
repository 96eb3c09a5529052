//! `weir completion`: shell completion, also of the names that the broker knows.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Command, CommandFactory};
use clap_complete::env::{CompleteEnv, Shells};
use clap_complete::{ArgValueCompleter, CompletionCandidate};

use super::connect::job_name;
use super::get::{all_pools, all_queues, list_nodes};
use super::job_list::state_names;
use super::kind::Kind;
use super::{Cli, Connect, Failure, reference};
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::model::device;
use crate::model::queue::DEFAULT_QUEUE;

/// Print a shell completion script.
///
/// The script asks `weir` itself for what may come next: commands, flags, and names of jobs, pools, queues and devices.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir completion bash > /etc/bash_completion.d/weir\n  weir completion zsh > ~/.zfunc/_weir\n  weir completion fish > ~/.config/fish/completions/weir.fish"
)]
pub struct Completion {
    /// Shell to generate the script for.
    #[arg(value_parser = ["bash", "elvish", "fish", "powershell", "zsh"])]
    shell: String,
}

/// The environment variable by which the script asks for candidates.
const VARIABLE: &str = "COMPLETE";
/// The shell waits for candidates.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Candidates of one kind: more are of no use to a reader.
const CANDIDATES_MAX: u32 = 200;

impl Completion {
    pub fn run(self) -> Result<u8, Failure> {
        let mut script = Vec::new();
        let shells = Shells::builtins();
        // The argument parser takes only these shells.
        if let Some(shell) = shells.completer(&self.shell) {
            shell.write_registration(VARIABLE, "weir", "weir", "weir", &mut script)?;
        }
        super::output::print_raw(&String::from_utf8_lossy(&script))?;
        Ok(0)
    }
}

/// Prints candidates and exits, if a shell asks for them.
pub fn complete_if_requested() {
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

/// Makes what completes an argument.
type Completer = fn() -> ArgValueCompleter;

/// The command line with what completes its arguments. A table here, since commands must not import this file, which
/// imports what they share.
fn command() -> Command {
    let arguments: [(&str, &str, Completer); 23] = [
        // `mut_arg` puts an argument last, so positional ones must all be here, in their order.
        ("get", "what", objects),
        ("get", "name", names),
        ("get", "pool", pools),
        ("describe", "what", objects),
        ("describe", "name", names),
        ("explain", "what", topics),
        ("get", "state", states),
        ("why", "job", jobs),
        ("logs", "job", jobs),
        ("rerun", "job", jobs),
        ("wait", "jobs", jobs),
        ("cancel", "jobs", live_jobs),
        ("edit", "job", live_jobs),
        ("hold", "jobs", live_jobs),
        ("release", "jobs", live_jobs),
        ("cordon", "pools", pools),
        ("uncordon", "pools", pools),
        ("drain", "pools", pools),
        ("delete", "objects", pools_and_queues),
        ("plan defrag", "pools", pools),
        ("run", "pool", pools),
        ("run", "device", devices),
        ("run", "after", jobs),
    ];
    let command = Cli::command().mut_arg("queue", |argument| argument.add(queues()));
    arguments.into_iter().fold(command, |command, (path, name, completer)| {
        let complete = |command: Command| command.mut_arg(name, |argument| argument.add(completer()));
        match path.split_once(' ') {
            None => command.mut_subcommand(path, complete),
            Some((outer, inner)) => {
                command.mut_subcommand(outer, |command| command.mut_subcommand(inner, complete))
            }
        }
    })
}

/// Reads names from the broker; none if it does not answer in time.
fn ask<T: Default>(read: impl AsyncFnOnce(Client) -> Result<T, Failure>) -> T {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let connect = Connect {
        server: variable("WEIR_SERVER"),
        token_file: variable("WEIR_TOKEN_FILE").map(PathBuf::from),
        queue: DEFAULT_QUEUE.to_owned(),
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return T::default();
    };
    let read =
        async { tokio::time::timeout(TIMEOUT, read(connect.client()?)).await.unwrap_or(Ok(T::default())) };
    runtime.block_on(read).unwrap_or_default()
}

/// The names that begin with what was typed.
fn candidates(typed: &OsStr, names: Vec<String>) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    // Jobs that have ended may share a name.
    let names: BTreeSet<String> = names.into_iter().filter(|name| name.starts_with(&*typed)).collect();
    names.into_iter().map(CompletionCandidate::new).collect()
}

async fn job_names(client: &Client, with_ended: bool) -> Result<Vec<String>, Failure> {
    let filter = Some(v1::JobFilter { with_ended, ..v1::JobFilter::default() });
    let view = v1::JobView::Name.into();
    let request =
        v1::ListJobsRequest { page_size: CANDIDATES_MAX, filter, view, ..v1::ListJobsRequest::default() };
    let jobs = client.jobs().list_jobs(request).await?.into_inner().jobs;
    Ok(jobs.iter().map(|job| job_name(&job.queue, &job.name)).collect())
}

async fn pool_names(client: &Client, prefix: &str) -> Result<Vec<String>, Failure> {
    let pools = all_pools(client).await?;
    Ok(pools.into_iter().map(|pool| format!("{prefix}{}", pool.name)).collect())
}

async fn node_names(client: &Client, prefix: &str) -> Result<Vec<String>, Failure> {
    let (nodes, _) = list_nodes(client, None, None, Some(CANDIDATES_MAX as usize)).await?;
    Ok(nodes.into_iter().map(|node| format!("{prefix}{}", node.name)).collect())
}

async fn queue_names(client: &Client, prefix: &str) -> Result<Vec<String>, Failure> {
    let queues = all_queues(client).await?;
    Ok(queues.into_iter().map(|queue| format!("{prefix}{}", queue.name)).collect())
}

/// Completes jobs that have not ended.
fn live_jobs() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        candidates(typed, ask(async |client| job_names(&client, false).await))
    })
}

/// Completes jobs, also those that have ended.
fn jobs() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        candidates(typed, ask(async |client| job_names(&client, true).await))
    })
}

/// Completes names of pools, also in the form `pool/NAME`.
fn pools() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let prefix = if typed.to_string_lossy().starts_with("pool/") { "pool/" } else { "" };
        candidates(typed, ask(async |client| pool_names(&client, prefix).await))
    })
}

/// Completes `pool/NAME` and `queue/NAME`.
fn pools_and_queues() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let names = ask(async |client| {
            let mut names = pool_names(&client, "pool/").await?;
            names.extend(queue_names(&client, "queue/").await?);
            Ok(names)
        });
        candidates(typed, names)
    })
}

/// Completes names of queues.
fn queues() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        candidates(typed, ask(async |client| queue_names(&client, "").await))
    })
}

/// Completes models of devices: those that pools have, or else those that Weir knows.
fn devices() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let mut models = ask(async |client| {
            let mut models = Vec::new();
            for pool in all_pools(&client).await? {
                let request = v1::ListNodesRequest { pool: pool.name, ..v1::ListNodesRequest::default() };
                let nodes = client.pools().list_nodes(request).await?.into_inner().nodes;
                models.extend(nodes.into_iter().flat_map(|node| node.devices).map(|device| device.model));
            }
            Ok(models)
        });
        if models.is_empty() {
            models.extend(device::built_in().map(|model| model.name));
        }
        models.sort_unstable();
        models.dedup();
        candidates(typed, models)
    })
}

/// Completes what can be explained: codes, files, and the fields of what is typed before the last dot.
fn topics() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| candidates(typed, reference::topics(&typed.to_string_lossy())))
}

/// Completes states of jobs, also after a comma.
fn states() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let typed_text = typed.to_string_lossy();
        let before = typed_text.rfind(',').map_or("", |at| &typed_text[..=at]);
        candidates(typed, state_names().map(|name| format!("{before}{name}")).collect())
    })
}

/// Completes the names of objects of the type that stands before.
fn names() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        // What is completed comes after `--`, and the type after `get` or `describe`.
        let words = std::env::args().skip_while(|word| word != "--").skip(1);
        let kind = words.skip_while(|word| !["get", "describe"].contains(&word.as_str())).nth(1);
        let names = match kind.as_deref().and_then(Kind::parse) {
            Some(Kind::Pools) => ask(async |client| pool_names(&client, "").await),
            Some(Kind::Queues) => ask(async |client| queue_names(&client, "").await),
            Some(Kind::Nodes) => ask(async |client| node_names(&client, "").await),
            Some(Kind::Jobs | Kind::Attempts | Kind::Units) | None => {
                ask(async |client| job_names(&client, true).await)
            }
        };
        candidates(typed, names)
    })
}

/// What can be typed of a type of objects.
const TYPES: [&str; 10] =
    ["jobs", "job/", "attempts", "units", "pools", "pool/", "nodes", "node/", "queues", "queue/"];

/// Completes types of objects, and TYPE/NAME once a type is typed.
fn objects() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let kind = typed.to_string_lossy();
        let names = match kind.split_once('/').map(|(kind, _)| kind) {
            None => TYPES.map(str::to_owned).to_vec(),
            Some("job") => ask(async |client| job_names(&client, true).await),
            Some("node") => ask(async |client| node_names(&client, "node/").await),
            Some("pool") => ask(async |client| pool_names(&client, "pool/").await),
            Some("queue") => ask(async |client| queue_names(&client, "queue/").await),
            Some(_) => Vec::new(),
        };
        candidates(typed, names)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn completed_arguments_exist() {
        super::command().debug_assert();
    }
}
