//! The command line, one file per command. Argument parsing and output only: the work is done by the broker.

mod admin;
mod agent;
mod apply;
mod bench;
mod cancel;
mod completion;
mod connect;
mod cordon;
mod count;
mod delete;
mod demo;
mod describe;
mod dev;
mod edit;
mod events;
mod exit;
mod follow;
mod get;
mod input;
mod job_file;
mod job_list;
mod job_text;
mod job_wait;
mod kind;
mod language;
mod logs;
mod memory;
mod output;
mod plan;
mod quantity;
mod queue_file;
mod reference;
mod rerun;
mod run;
mod selector;
mod server;
mod submit;
mod top;
mod wait;
mod why;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub use connect::{Connect, new_token};
pub use exit::Failure;

use crate::model::language::Language;

/// Weir, a compute broker: many compute pools behind one API.
#[derive(Parser)]
#[command(name = "weir", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    connect: Connect,
    /// Language of messages, en or zh. Default: that of the locale
    #[arg(long, global = true, value_name = "LANG", env = "WEIR_LANG", hide_env_values = true, value_parser = language::parse)]
    lang: Option<language::Lang>,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  weir dev                              start a broker to try it with
  weir run -- sh -c 'echo hello from $WEIR_REGION'
  weir submit job.yaml                  submit the jobs of a file
  weir get jobs -w                      watch jobs
  weir why job/train-7                  explain why a job is waiting

Run `weir COMMAND --help` for flags and examples.";

#[derive(Subcommand)]
enum Command {
    /// Run a broker with this machine and five simulated pools.
    Dev(dev::Dev),
    /// Run a broker.
    Server(server::Server),
    /// Run the agents of one or more pools.
    Agent(agent::AgentCommand),
    /// Run a command in a pool and stream its output.
    Run(run::Run),
    /// Submit jobs from a YAML or JSON file.
    Submit(submit::Submit),
    /// List jobs, attempts, pools, nodes or queues.
    Get(get::Get),
    /// Count jobs by queue, state, pool, region, outcome or label.
    Count(count::Count),
    /// Show the details of a job, attempt, pool, node or queue.
    Describe(describe::Describe),
    /// Explain why a job is waiting.
    Why(why::Why),
    /// Plan admin operations without executing them.
    Plan(plan::Plan),
    /// Print the output of a job's tasks.
    Logs(logs::Logs),
    /// Print what happened to jobs, pools and queues, in order.
    Events(events::Events),
    /// Wait for jobs to end.
    Wait(wait::Wait),
    /// Cancel jobs.
    Cancel(cancel::Cancel),
    /// Run the failed tasks of an ended job once more.
    Rerun(rerun::Rerun),
    /// Change a job: its priority, maximum run time or labels.
    Edit(edit::Edit),
    /// Hold jobs: they start nothing until they are released.
    Hold(edit::Hold),
    /// Release jobs that are held.
    Release(edit::Release),
    /// Show the resource usage of each pool, refreshed every 2 s.
    Top(top::Top),
    /// Stop new placements on a pool or node.
    Cordon(cordon::Cordon),
    /// Allow placements again; end a drain or a quarantine.
    Uncordon(cordon::Cordon),
    /// Stop new placements on a pool and remove its running tasks.
    Drain(cordon::Drain),
    /// Create or update queues from a file.
    Apply(apply::Apply),
    /// Delete pools and queues.
    Delete(delete::Delete),
    /// Administrative commands.
    Admin(admin::Admin),
    /// Explain a field of a file, or a code that `why` or an error prints.
    Explain(reference::Explain),
    /// Print a shell completion script.
    Completion(completion::Completion),
    /// Measure the throughput of a running broker, or the commit latency of a disk.
    #[command(hide = true)]
    Bench(bench::Bench),
    /// Supervise the tasks of a host pool. Started by the agent, not by users.
    #[command(hide = true)]
    Supervise(agent::Supervise),
}

/// Runs the command line and returns the process's exit code.
pub fn main() -> ExitCode {
    // The program was started to confine a task: these are no user's arguments.
    if let Some(code) = crate::pools::host::shim::run_if_requested() {
        return code;
    }
    completion::complete_if_requested();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return print_usage(&error),
    };
    language::set(cli.lang);
    // The supervisor creates processes for as long as its tasks run, so it must stay single-threaded and
    // small.
    if let Command::Supervise(supervise) = cli.command {
        return supervise.run();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::from(anyhow::Error::from(error)).print(),
    };
    let code = match runtime.block_on(dispatch(cli)) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.print(),
    };
    // A blocking read of standard input can't be interrupted: don't wait for it.
    runtime.shutdown_background();
    code
}

/// Prints a usage error, or the requested help or version, and returns the exit code.
fn print_usage(error: &clap::Error) -> ExitCode {
    let matches = Cli::command().ignore_errors(true).try_get_matches().ok();
    language::set(matches.as_ref().and_then(|matches| matches.get_one("lang").copied()));
    if let Some(clap::error::ContextValue::String(verb)) =
        error.get(clap::error::ContextKind::InvalidSubcommand)
        && let Some((_, ours)) = VERBS.iter().find(|(others, _)| others.contains(&verb.as_str()))
    {
        // In place of a command whose name is similar, which would do something else.
        output::report(&format!("error: weir has no command {verb:?}; for that, write: {ours}"));
        return ExitCode::from(exit::USAGE);
    }
    let plain = error.render().to_string();
    let sanitised = output::sanitised(&plain);
    let is_message = error.use_stderr() && language::current() != Language::English;
    if plain == sanitised && !is_message {
        // A closed standard error leaves no place to report to.
        let _ = error.print();
    } else {
        // Not in colour: an argument contains control or bidirectional characters, which could disguise the message, or the
        // message is translated.
        output::report(sanitised.trim_end());
    }
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    // `run` returns its command's exit code, so its own failures need a code of their own.
    let is_run = matches.is_some_and(|matches| matches.subcommand_name() == Some("run"));
    ExitCode::from(if is_run { exit::RUN_FAILED } else { exit::USAGE })
}

/// Verbs of other systems, and what does the same here.
const VERBS: &[(&[&str], &str)] = &[
    (&["list", "ls", "ps", "jobs", "squeue", "qstat", "queue"], "weir get jobs"),
    (&["status", "show", "info", "inspect", "scontrol", "job"], "weir describe job/NAME"),
    (&["nodes", "node", "sinfo"], "weir get nodes"),
    (&["pools", "clusters", "members"], "weir get pools"),
    (&["queues", "sacctmgr", "quota"], "weir get queues"),
    (&["sbatch", "qsub", "create", "bsub"], "weir submit FILE, or weir run --detach -- COMMAND"),
    (&["srun", "exec", "start"], "weir run -- COMMAND"),
    (&["scancel", "qdel", "kill", "stop", "rm"], "weir cancel job/NAME"),
    (&["sacct", "history"], "weir get jobs --all"),
    (&["log", "tail", "attach"], "weir logs job/NAME --follow"),
    (&["pending"], "weir why job/NAME"),
    (&["version"], "weir --version"),
    (
        &["config", "context", "login"],
        "weir COMMAND --server URL --token-file FILE, or WEIR_SERVER and WEIR_TOKEN",
    ),
];

async fn dispatch(cli: Cli) -> Result<u8, Failure> {
    let connect = cli.connect;
    match cli.command {
        Command::Dev(command) => command.run().await,
        Command::Server(command) => command.run().await,
        Command::Agent(command) => command.run(&connect).await,
        Command::Run(command) => command.run(&connect).await,
        Command::Submit(command) => command.run(&connect).await,
        Command::Get(command) => read(&connect, command.run(&connect)).await,
        Command::Count(command) => read(&connect, command.run(&connect)).await,
        Command::Describe(command) => read(&connect, command.run(&connect)).await,
        Command::Why(command) => read(&connect, command.run(&connect)).await,
        Command::Plan(command) => read(&connect, command.run(&connect)).await,
        Command::Logs(command) => command.run(&connect).await,
        Command::Events(command) => command.run(&connect).await,
        Command::Wait(command) => command.run(&connect).await,
        Command::Cancel(command) => command.run(&connect).await,
        Command::Rerun(command) => command.run(&connect).await,
        Command::Edit(command) => command.run(&connect).await,
        Command::Hold(command) => command.run(&connect).await,
        Command::Release(command) => command.run(&connect).await,
        Command::Top(command) => command.run(&connect).await,
        Command::Cordon(command) => command.run(&connect, true).await,
        Command::Uncordon(command) => command.run(&connect, false).await,
        Command::Drain(command) => command.run(&connect).await,
        Command::Apply(command) => command.run(&connect).await,
        Command::Delete(command) => command.run(&connect).await,
        Command::Admin(command) => command.run(&connect).await,
        Command::Bench(command) => command.run(&connect).await,
        Command::Explain(command) => command.run(),
        Command::Completion(command) => command.run(),
        Command::Supervise(_) => Ok(0),
    }
}

/// Executes a command that shows the broker's state, and reports if that is an old one.
async fn read(connect: &Connect, run: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let outcome = run.await;
    if outcome.is_ok() {
        connect.warn_if_read_only().await;
    }
    outcome
}

/// How a server writes its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// A line of text for each event.
    #[default]
    Text,
    /// A JSON object for each event.
    Json,
}

/// Logs to standard error at level `default`, unless `WEIR_LOG` sets a filter.
fn start_logging(default: &str, format: LogFormat) {
    let wanted = std::env::var("WEIR_LOG").ok().filter(|filter| !filter.is_empty());
    let filter = wanted.as_deref().map_or_else(
        || tracing_subscriber::EnvFilter::new(default),
        |wanted| {
            tracing_subscriber::EnvFilter::try_new(wanted).unwrap_or_else(|error| {
                output::report(&format!("warning: WEIR_LOG: {error}; the level is {default}"));
                tracing_subscriber::EnvFilter::new(default)
            })
        },
    );
    let coloured = std::io::stderr().is_terminal() && format == LogFormat::Text;
    let layer = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || output::SanitisedLog { coloured })
        .with_ansi(coloured)
        .with_target(false);
    // Fails if logging has been started already in this process: the first configuration stays.
    let _ = match format {
        LogFormat::Text => layer.try_init(),
        LogFormat::Json => layer.json().flatten_event(true).try_init(),
    };
}

/// Reports to the service manager that this process serves, if it asks for that (`Type=notify` of systemd).
fn notify_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "the service manager can't be notified");
    }
}

/// Ignores SIGHUP from now on: a service does not end with a terminal, and reads no file again.
fn ignore_hangups() {
    let hangups = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
    if let Ok(mut hangups) = hangups {
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                tracing::info!("SIGHUP is ignored: restart the process to change its settings");
            }
        });
    }
}

/// Completes at SIGINT or SIGTERM.
async fn terminated() {
    let mut signals = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(signals) => signals,
        Err(_) => return std::future::pending().await,
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = signals.recv() => {}
    }
}
