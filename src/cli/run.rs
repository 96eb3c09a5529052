//! `weir run`: runs a command in a pool, with the output and exit code of a local command.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::connect::{RETRY_TIMEOUT, job_name, new_token, with_retries};
use super::exit::{CANCELLED, RUN_FAILED};
use super::follow::{Task, follow};
use super::job_file::{as_flag, in_file};
use super::job_list::find_job_with_retries;
use super::job_wait::{Contact, current, ended};
use super::language::reason_text;
use super::output::{print, report};
use super::{Connect, Failure, quantity};
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::model::text::escape;

/// Run a command in a pool and stream its output, like a local command.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir run -- sh -c 'echo hello from $WEIR_REGION'\n  weir run --cpus 2 --memory 1Gi -- make test\n  weir run --region CN-XJ --device Ascend910B3:8 --detach -- ./train.sh\n  weir run --gang 2 --pool local -- hostname\n\nSimulated pools take the job only if --pool names one; then nothing runs.\nCtrl-C, SIGTERM, a closed terminal or a closed pipe after it cancel the job.\nExit codes: that of the command, 128+N if signal N ended it, 124 if it exceeded --max-run, 130 if cancelled,\n125 if Weir failed, the output is not complete, or the pool only simulated the command.\nStandard input is not forwarded: `run` refuses to start while it holds data."
)]
pub struct Run {
    /// Allowed regions, comma-separated: CN-CQ,CN-GZ. Default: any.
    #[arg(long, value_name = "REGION", value_delimiter = ',')]
    region: Vec<String>,
    /// Allowed pools, comma-separated. Default: any.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pool: Vec<String>,
    /// Devices per task: MODEL:COUNT, A|B:COUNT, any:COUNT, or MODEL:0.5 for half a device. COUNT is 1 to 64.
    #[arg(long, value_name = "REQUEST", value_parser = quantity::devices)]
    device: Option<v1::DeviceRequest>,
    /// CPUs per task: 2, 1.5 or 500m (millicores); at most 1000.
    #[arg(long, value_name = "CPUS", default_value = "1", value_parser = quantity::cpus)]
    cpus: u64,
    /// Memory per task: 512Mi, 2Gi or a number of bytes; at most 1024Ti.
    #[arg(long, value_name = "BYTES", default_value = "128Mi", value_parser = quantity::memory)]
    memory: u64,
    /// Run N tasks as a gang: they start and end together. 1 to 4096.
    #[arg(long, value_name = "N")]
    gang: Option<u32>,
    /// Run N independent tasks. If one fails after its last attempt, the others go on, and the job fails. 1 to
    /// 1000000 [default: 1].
    #[arg(long, value_name = "N", conflicts_with = "gang")]
    count: Option<u32>,
    /// Job name: lower-case letters, digits and hyphens. Default: the command's name and a number.
    #[arg(long)]
    name: Option<String>,
    /// Priority, -1000000 to 1000000. Higher priorities are scheduled first.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Environment variable of the command. May be repeated.
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Working directory, an absolute path. Default: a new directory.
    #[arg(long, value_name = "PATH")]
    workdir: Option<String>,
    /// Maximum run time of an attempt: 90s, 5m, 1h30m; at most 366d. Default: that of the queue, initially
    /// 24h.
    #[arg(long, value_name = "DURATION", value_parser = quantity::run_time_ms)]
    max_run: Option<u64>,
    /// Maximum number of attempts, 1 to 100.
    #[arg(long, value_name = "N", default_value_t = 1)]
    attempts: u32,
    /// Label of the job. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Start only after this job has succeeded: job/NAME, job/QUEUE/NAME or the id. May be repeated.
    #[arg(long, value_name = "JOB")]
    after: Vec<String>,
    /// Also submit the job if no present pool can ever run it: it waits for a pool that can.
    #[arg(long)]
    allow_pending: bool,
    /// Print the job's name and exit without waiting for it.
    #[arg(long, short)]
    detach: bool,
    /// Command and arguments.
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

fn pairs(field: &str, list: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let pair = |text: &String| {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| Failure::new(RUN_FAILED, format!("--{field} {text:?}: write NAME=VALUE")))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    list.iter().map(pair).collect()
}

/// Makes a job name prefix from a command: lower-case letters, digits and hyphens, at most 40.
fn prefix_of(command: &str) -> String {
    let base = command.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let name: String =
        base.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let name = name.trim_matches('-').to_owned();
    if name.is_empty() { "job".to_owned() } else { name }
}

impl Run {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        self.start(connect).await.map_err(|failure| Failure { code: RUN_FAILED, ..failure })
    }

    async fn start(self, connect: &Connect) -> Result<u8, Failure> {
        refuse_input()?;
        let client = connect.client()?;
        let mut submission = self.submission(&connect.queue)?;
        for text in &self.after {
            let job_id = find_job_with_retries(&client, connect.job_ref(text)?).await?.id;
            let condition = v1::DependencyCondition::Succeeded as i32;
            let spec = submission.spec.get_or_insert_default();
            spec.depends_on.push(v1::Dependency { job_id, condition, ..v1::Dependency::default() });
        }
        let request = v1::SubmitRequest {
            token: new_token(),
            jobs: vec![submission],
            allow_pending: self.allow_pending,
        };
        let mut interrupts = if self.detach { None } else { Some(Interrupts::listen()?) };
        let submit = with_retries(SUBMIT_TIMEOUT, || async { client.jobs().submit(request.clone()).await });
        let (response, interrupted) = match &mut interrupts {
            Some(interrupts) => answer_despite(interrupts, submit).await?,
            None => (submit.await, false),
        };
        let response = response.map_err(|status| {
            Failure::from(status).with_fields(|field| {
                let field = field.strip_prefix("jobs[0].").unwrap_or(field);
                as_flag(&in_file(field, |_, _| None))
            })
        })?;
        let Some(job) = response.into_inner().jobs.pop() else {
            return Err(Failure::new(RUN_FAILED, "the broker accepted no job"));
        };
        let Some(mut interrupts) = interrupts else {
            print(&format!("{}\n", job_name(&connect.queue, &job.name)))?;
            return Ok(0);
        };
        let at = v1::JobRef { id: job.id, ..v1::JobRef::default() };
        let units = if self.gang.is_some() { 1 } else { self.count.unwrap_or(1) };
        stream_until_ended(&client, at, units, self.gang.unwrap_or(1), &mut interrupts, interrupted).await
    }

    fn submission(&self, queue: &str) -> Result<v1::Submission, Failure> {
        let env = pairs("env", &self.env)?.into_iter();
        let env =
            env.map(|(name, value)| v1::EnvVar { name, source: Some(v1::env_var::Source::Value(value)) });
        let program = v1::Program {
            command: self.command.clone(),
            args: Vec::new(),
            env: env.collect(),
            workdir: self.workdir.clone().unwrap_or_default(),
        };
        let group = v1::TaskGroup {
            name: String::new(),
            count: Some(self.gang.or(self.count).unwrap_or(1)),
            gang: self.gang.is_some(),
            resources: Some(v1::TaskResources {
                cpu_millis: self.cpus,
                memory_bytes: self.memory,
                devices: self.device.clone(),
                ..v1::TaskResources::default()
            }),
            run: Some(v1::task_group::Run::Process(program)),
            simulate: None,
            indices: String::new(),
            index_count: None,
        };
        let constraints = v1::Constraints {
            regions_allowed: self.region.clone(),
            pools: self.pool.clone(),
            ..v1::Constraints::default()
        };
        let spec = v1::JobSpec {
            labels: pairs("label", &self.label)?,
            priority: self.priority,
            groups: vec![group],
            constraints: Some(constraints),
            retry: Some(v1::RetryPolicy {
                max_attempts: Some(self.attempts),
                backoff_ms: 500,
                backoff_max_ms: 30_000,
                on: Vec::new(),
                ..v1::RetryPolicy::default()
            }),
            max_run_ms: self.max_run.unwrap_or(0),
            ..v1::JobSpec::default()
        };
        Ok(v1::Submission {
            name: self.name.clone().unwrap_or_default(),
            name_prefix: prefix_of(self.command.first().map_or("", String::as_str)),
            queue: queue.to_owned(),
            held: false,
            spec: Some(spec),
        })
    }
}

/// Units, and tasks of each, whose output `run` prints: that of more would be too mixed to read.
const STREAMED_MAX: u32 = 16;

/// Bytes that wait on standard input, where the system counts them: in a file or a pipe.
fn pending_input() -> u64 {
    let stdin = std::io::stdin();
    let Ok(stat) = rustix::fs::fstat(&stdin) else { return 0 };
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::RegularFile => {
            let at = rustix::fs::seek(&stdin, rustix::fs::SeekFrom::Current(0)).unwrap_or(0);
            u64::try_from(stat.st_size).unwrap_or(0).saturating_sub(at)
        }
        rustix::fs::FileType::Fifo | rustix::fs::FileType::Socket => {
            rustix::io::ioctl_fionread(&stdin).unwrap_or(0)
        }
        _ => 0,
    }
}

/// Refuses to run a command whose input would be ignored.
fn refuse_input() -> Result<(), Failure> {
    match pending_input() {
        0 => Ok(()),
        bytes => {
            let message =
                format!("standard input holds {bytes} bytes, and `run` does not forward it to the command");
            let hint = "add `</dev/null`, or put the data where the command can read it";
            Err(Failure::new(RUN_FAILED, message).hint(hint))
        }
    }
}

/// How long `run` repeats its submit while the broker is unavailable: longer than a restart takes, but short
/// enough for a user at a terminal if no broker is running.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a job may wait before `run` prints why.
const WAIT_REASON_DELAY: Duration = Duration::from_secs(2);
/// How often `run` checks whether the job's pool is still in contact.
const CONTACT_INTERVAL: Duration = Duration::from_secs(2);

/// Streams the output of a job until it has ended. An interrupt, also an earlier one (`interrupted`), or the end of
/// standard output's reader cancels the job; another interrupt exits.
async fn stream_until_ended(
    client: &Client,
    at: v1::JobRef,
    units: u32,
    tasks: u32,
    interrupts: &mut Interrupts,
    interrupted: bool,
) -> Result<u8, Failure> {
    let streams = async {
        let mut following = Vec::new();
        if units.max(tasks) > STREAMED_MAX {
            let text = "weir: only the output of the first {N} units, and of {N} tasks of each, is printed; `weir logs` prints any";
            report(&text.replace("{N}", &STREAMED_MAX.to_string()));
        }
        for unit in 0..units.min(STREAMED_MAX) {
            for task in 0..tasks.min(STREAMED_MAX) {
                let task = Task { job: at.clone(), unit, task, ..Task::default() };
                let client = client.clone();
                following.push(tokio::spawn(async move { follow(&client, &task).await }));
            }
        }
        let mut complete = true;
        for follow in following {
            match follow.await {
                Ok(Ok(lost)) => complete &= lost == Some(0),
                // A failure to read output does not change how the job ends, so report it and continue.
                Ok(Err(failure)) => {
                    complete = false;
                    report(&format!("weir: can't read the output: {}", escape(&failure.message)));
                }
                Err(_) => complete = false,
            }
        }
        Ok((ended(client, &at, |_| {}).await?, complete))
    };
    tokio::pin!(streams);
    let obstacles = tokio::spawn(print_obstacles(client.clone(), at.clone()));
    tokio::select! {
        done = &mut streams => return done.and_then(|(job, complete)| exit_code(&job, complete)),
        () = interrupts.next(), if !interrupted => {}
        () = std::future::ready(()), if interrupted => {}
        () = reader_gone() => report("weir: the reader of standard output has closed it"),
    }
    obstacles.abort();
    report("cancelling the job; press Ctrl-C again to exit without waiting for it");
    let cancel = v1::CancelRequest { token: new_token(), jobs: vec![at.clone()], ..Default::default() };
    with_retries(RETRY_TIMEOUT, || async { client.jobs().cancel(cancel.clone()).await }).await?;
    tokio::select! {
        done = &mut streams => done.and_then(|(job, complete)| exit_code(&job, complete)),
        () = interrupts.next() => Ok(CANCELLED),
    }
}

/// Awaits the answer to a submit, also when an interrupt comes first, and returns whether one did: the broker may
/// have accepted the job already, and only its answer has the id by which the job can be cancelled.
async fn answer_despite<T>(
    interrupts: &mut Interrupts,
    submit: impl Future<Output = T>,
) -> Result<(T, bool), Failure> {
    tokio::pin!(submit);
    tokio::select! {
        answer = &mut submit => return Ok((answer, false)),
        () = interrupts.next() => {}
    }
    report("waiting for the broker's answer, to cancel the job; press Ctrl-C again to exit without it");
    tokio::select! {
        answer = &mut submit => Ok((answer, true)),
        () = interrupts.next() => {
            let message = "interrupted before the broker answered: the job may have been submitted";
            Err(Failure::new(RUN_FAILED, message).hint("weir get jobs"))
        }
    }
}

/// The signals that ask `run` to end: Ctrl-C, SIGTERM, and SIGHUP (the terminal is closed) unless this process was
/// started with it ignored, as by `nohup`. From `listen` on they no longer end the process by themselves.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Interrupts {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(RUN_FAILED, format!("can't listen for signals: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: if is_hangup_ignored() { None } else { Some(listen(SignalKind::hangup())?) },
        })
    }

    /// Completes at the next signal since `listen`.
    async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => drop(hangup.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = hangup => {}
        }
    }
}

/// Returns whether this process was started with SIGHUP ignored.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The lowest bit is that of signal 1, SIGHUP.
    ignored.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).is_some_and(|bits| bits & 1 == 1)
}

/// Completes when the reader of standard output has closed it, if that is a pipe, also while there is nothing to write.
async fn reader_gone() {
    let (sender, gone) = tokio::sync::oneshot::channel();
    // It may wait for ever, so the runtime must not wait for it.
    std::thread::spawn(move || {
        let stdout = std::io::stdout();
        let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
        while !matches!(poll(&mut polled, None), Ok(1..)) {}
        let _ = sender.send(());
    });
    if gone.await.is_err() {
        std::future::pending().await
    }
}

/// Prints why a job is waiting, once, and when the pool of a running job is lost: a command without any output
/// looks broken.
async fn print_obstacles(client: Client, at: v1::JobRef) {
    tokio::time::sleep(WAIT_REASON_DELAY).await;
    print_wait_reason(&client, &at).await;
    let mut contact = Contact::default();
    loop {
        // The output's own connection reports a broker that is unavailable.
        if let Ok(job) = current(&client, at.clone()).await {
            contact.update(&job);
        }
        tokio::time::sleep(CONTACT_INTERVAL).await;
    }
}

/// Prints why a job is waiting, if it is.
async fn print_wait_reason(client: &Client, at: &v1::JobRef) {
    let request = v1::WhyRequest { job: Some(at.clone()) };
    let Ok(why) = client.jobs().why(request).await else { return };
    let why = why.into_inner();
    let Some(job) = why.job.clone().filter(|job| job.phase() == v1::JobPhase::Pending) else { return };
    let pools: Vec<&v1::PoolReason> = why.groups.iter().flat_map(|group| &group.pools).collect();
    let never = pools.iter().all(|pool| pool.permanence() == v1::Permanence::Never);
    let nearest = pools.iter().max_by_key(|pool| pool.permanence);
    let nearest = nearest.and_then(|pool| Some((pool.pool.clone(), pool.reason.as_ref()?)));
    let reason = match (why.reasons.first(), nearest) {
        (Some(reason), _) => reason_text(reason),
        (None, Some((pool, reason))) => format!("{pool}: {}", reason_text(reason)),
        (None, None) => "there are no pools".to_owned(),
    };
    let what = if never { "is waiting, but fits no current pool" } else { "is waiting" };
    let reason = escape(&reason);
    let name = job_name(&job.queue, &job.name);
    report(&format!("weir: {name} {what} ({reason}); details: `weir why {name}`; Ctrl-C cancels the job"));
}

/// True if a job that did not ask for simulation was simulated: its command did not run.
pub(super) fn ran_nothing(job: &v1::Job) -> bool {
    let groups = job.spec.as_ref().map_or(&[][..], |spec| &spec.groups);
    job.simulated && groups.iter().any(|group| group.simulate.is_none())
}

/// The exit code of `run` for an ended job. Prints the failure, if there is one, and whether the job was
/// simulated. A success without its `complete` output, or without input that came, is a failure of `run`.
fn exit_code(job: &v1::Job, complete: bool) -> Result<u8, Failure> {
    if ran_nothing(job) {
        report("weir: Simulated: the pool only simulates tasks, so the command did not run");
    }
    if job.phase() == v1::JobPhase::Succeeded {
        let ignored = pending_input();
        if ignored > 0 {
            report(&format!(
                "weir: {ignored} bytes on standard input were ignored: `run` does not forward it"
            ));
        }
        if !complete {
            report("weir: the command succeeded, but its output is not complete");
        }
        return Ok(if ran_nothing(job) || !complete || ignored > 0 { RUN_FAILED } else { 0 });
    }
    let failure = job.failure.clone().unwrap_or_default();
    let code = match (failure.exit_code, failure.signal) {
        _ if failure.code == "TimedOut" => super::exit::TIMED_OUT,
        (_, Some(signal)) if failure.code != "Cancelled" => {
            u8::try_from(signal.saturating_add(128)).unwrap_or(RUN_FAILED)
        }
        (Some(code), None) if failure.code == "Failed" => {
            if !failure.message.is_empty() {
                report(&format!("weir: {}", escape(&failure.message)));
            }
            // A failed job must not exit with 0, regardless of the reported code.
            return Ok(u8::try_from(code).ok().filter(|code| *code != 0).unwrap_or(RUN_FAILED));
        }
        _ if job.phase() == v1::JobPhase::Cancelled => CANCELLED,
        _ => RUN_FAILED,
    };
    if !failure.code.is_empty() {
        report(&format!(
            "weir: {}{}{}",
            failure.code,
            if failure.message.is_empty() { "" } else { ": " },
            escape(&failure.message)
        ));
    }
    Ok(code)
}
