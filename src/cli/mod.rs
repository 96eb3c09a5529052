//! The command line: one file per command.

mod admin;
mod agent;
mod apply;
mod bench;
mod cancel;
mod completion;
mod connect;
mod cordon;
mod demo;
mod describe;
mod dev;
mod exit;
mod get;
mod input;
mod logs;
mod output;
mod plan;
mod quantity;
mod reasons;
mod run;
mod server;
mod spec_file;
mod submit;
mod top;
mod wait;
mod why;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub use connect::{Connect, new_token};
pub use exit::Failure;
pub use spec_file::read_jobs;

/// A compute broker: many pools of compute behind one API.
#[derive(Parser)]
#[command(name = "weir", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  weir dev                              a broker, this machine, and five simulated provinces
  weir run -- sh -c 'echo hello from $WEIR_REGION'
  weir submit job.yaml                  submit jobs described in a file
  weir get jobs -w                      watch them
  weir why job/train-7                  why one waits, and what would help";

#[derive(Subcommand)]
enum Command {
    /// Runs a broker, this machine's pool and five simulated ones, in one process.
    Dev(dev::Dev),
    /// Runs a broker.
    Server(server::Server),
    /// Runs the agent of one pool.
    Agent(agent::AgentCommand),
    /// Runs a command somewhere and streams its output, like a local command.
    Run(run::Run),
    /// Submits jobs from a YAML or JSON file.
    Submit(submit::Submit),
    /// Lists jobs, pools, nodes or queues.
    Get(get::Get),
    /// Shows one job or pool in full.
    Describe(describe::Describe),
    /// Explains why a job waits.
    Why(why::Why),
    /// Plans what an admin might do, such as moving tasks so that others fit.
    Plan(plan::Plan),
    /// Prints a job's output.
    Logs(logs::Logs),
    /// Waits until jobs have ended.
    Wait(wait::Wait),
    /// Cancels jobs.
    Cancel(cancel::Cancel),
    /// Shows what each pool holds, now and then anew.
    Top(top::Top),
    /// Closes a pool or node for new work.
    Cordon(cordon::Cordon),
    /// Opens a pool or node again; ends a drain.
    Uncordon(cordon::Cordon),
    /// Empties a pool.
    Drain(cordon::Drain),
    /// Creates or updates queues from a file.
    Apply(apply::Apply),
    /// What only an admin should do.
    Admin(admin::Admin),
    /// Prints a shell's completion script.
    Completion(completion::Completion),
    /// Measures a running broker.
    #[command(hide = true)]
    Bench(bench::Bench),
    /// Keeps a host pool's tasks; started by the agent.
    #[command(hide = true)]
    Supervise(agent::Supervise),
}

/// Runs the command line and returns the process's exit code.
pub fn main() -> ExitCode {
    // A task on its way into its control group: the command line is not a user's.
    if let Some(code) = crate::pools::host::cgroup_exec::run_if_requested() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    // The supervisor must stay small and synchronous: it forks for years.
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
    // Readers of standard input can't be interrupted: don't wait for them.
    runtime.shutdown_background();
    code
}

/// Prints what is wrong with the arguments, or the help that was asked for.
fn refuse(error: &clap::Error) -> ExitCode {
    let plain = error.render().to_string();
    let sanitised = output::sanitised(&plain);
    if plain == sanitised {
        // Where nobody reads it there is nobody to tell.
        let _ = error.print();
    } else {
        // An argument would show as what it isn't.
        eprint!("{sanitised}");
    }
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    // `run` passes its command's codes through, so its own failures must not look like one of them.
    let matches = Cli::command().ignore_errors(true).try_get_matches();
    let is_run = matches.is_ok_and(|matches| matches.subcommand_name() == Some("run"));
    ExitCode::from(if is_run { exit::RUN_FAILED } else { exit::USAGE })
}

async fn dispatch(cli: Cli) -> Result<u8, Failure> {
    let connect = cli.connect;
    match cli.command {
        Command::Dev(command) => command.run().await,
        Command::Server(command) => command.run().await,
        Command::Agent(command) => command.run(&connect).await,
        Command::Run(command) => command.run(&connect).await,
        Command::Submit(command) => command.run(&connect).await,
        Command::Get(command) => command.run(&connect).await,
        Command::Describe(command) => command.run(&connect).await,
        Command::Why(command) => command.run(&connect).await,
        Command::Plan(command) => command.run(&connect).await,
        Command::Logs(command) => command.run(&connect).await,
        Command::Wait(command) => command.run(&connect).await,
        Command::Cancel(command) => command.run(&connect).await,
        Command::Top(command) => command.run(&connect).await,
        Command::Cordon(command) => command.run(&connect, true).await,
        Command::Uncordon(command) => command.run(&connect, false).await,
        Command::Drain(command) => command.run(&connect).await,
        Command::Apply(command) => command.run(&connect).await,
        Command::Admin(command) => command.run(&connect).await,
        Command::Bench(command) => command.run(&connect).await,
        Command::Completion(command) => command.run(),
        Command::Supervise(_) => Ok(0),
    }
}

/// Logs to standard error; `WEIR_LOG` names the level.
fn start_logging(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEIR_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let coloured = std::io::stderr().is_terminal();
    let layer = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || output::SanitisedLog { coloured })
        .with_ansi(coloured)
        .with_target(false);
    // A second start, in one process, keeps the first.
    let _ = layer.try_init();
}

/// Ends with SIGINT or SIGTERM.
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
