//! `weir run`: runs a command in a pool, with the output and exit code of a local command.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use super::connect::{RETRY_TIMEOUT, is_transient, job_name, new_token, with_retries};
use super::exit::RUN_FAILED;
use super::job_text::contact_text;
use super::output::{print, report};
use super::{Connect, Failure, quantity, terminated};
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::model::backoff::Backoff;
use crate::model::text::escape;

/// Run a command in a pool and stream its output, like a local command.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir run -- sh -c 'echo hello from $WEIR_REGION'\n  weir run --cpus 2 --memory 1Gi -- make test\n  weir run --region CN-XJ --device Ascend910B3:8 --detach -- ./train.sh\n  weir run --gang 2 --pool local -- hostname\n\nSimulated pools take the job only if --pool names one; then nothing runs.\nCtrl-C cancels the job.\nExit codes: that of the command, 128+N if signal N ended it, 124 if it exceeded --max-run, 130 if cancelled,\n125 if Weir failed or the pool only simulated the command."
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
    #[arg(long, value_name = "BYTES", default_value = "128Mi", value_parser = quantity::bytes)]
    memory: u64,
    /// Run N tasks as a gang: they start and end together. 1 to 4096.
    #[arg(long, value_name = "N")]
    gang: Option<u32>,
    /// Run N independent tasks. If one fails after its last attempt, the others are cancelled. 1 to 1000000
    /// [default: 1].
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
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration_ms)]
    max_run: Option<u64>,
    /// Maximum number of attempts, 1 to 100.
    #[arg(long, value_name = "N", default_value_t = 1)]
    attempts: u32,
    /// Label of the job. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
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
        let client = connect.client()?;
        let submission = self.submission(&connect.queue)?;
        let request = v1::SubmitRequest { token: new_token(), jobs: vec![submission] };
        let call = || async { client.jobs().submit(request.clone()).await };
        let response = with_retries(SUBMIT_TIMEOUT, call).await?;
        let Some(job) = response.into_inner().jobs.pop() else {
            return Err(Failure::new(RUN_FAILED, "the broker accepted no job"));
        };
        if self.detach {
            print(&format!("{}\n", job_name(&connect.queue, &job.name)))?;
            return Ok(0);
        }
        let at = v1::JobRef { id: job.id, ..v1::JobRef::default() };
        let units = if self.gang.is_some() { 1 } else { self.count.unwrap_or(1) };
        stream_until_ended(&client, at, units, self.gang.unwrap_or(1)).await
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
            }),
            max_run_ms: self.max_run.unwrap_or(0),
            ..v1::JobSpec::default()
        };
        Ok(v1::Submission {
            name: self.name.clone().unwrap_or_default(),
            name_prefix: prefix_of(self.command.first().map_or("", String::as_str)),
            queue: queue.to_owned(),
            spec: Some(spec),
        })
    }
}

/// How long `run` repeats its submit while the broker is unavailable: longer than a restart takes, but short
/// enough for a user at a terminal if no broker is running.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a job may wait before `run` prints why.
const WAIT_REASON_DELAY: Duration = Duration::from_secs(2);
/// How often `run` checks whether the job's pool is still in contact.
const CONTACT_INTERVAL: Duration = Duration::from_secs(2);

/// Streams the output of a job until it has ended. Ctrl-C or SIGTERM cancels the job, a second one exits.
async fn stream_until_ended(client: &Client, at: v1::JobRef, units: u32, tasks: u32) -> Result<u8, Failure> {
    let streams = async {
        let mut following = Vec::new();
        // The mixed output of many tasks is unreadable, so only the first 16 units and 16 tasks of each are
        // streamed.
        for unit in 0..units.min(16) {
            for task in 0..tasks.min(16) {
                let (client, at) = (client.clone(), at.clone());
                following.push(tokio::spawn(async move { follow(&client, at, unit, task).await }));
            }
        }
        for follow in following {
            // A failure to read output does not change how the job ends, so report it and continue.
            if let Ok(Err(failure)) = follow.await {
                report(&format!("weir: can't read the output: {}", escape(&failure.message)));
            }
        }
        ended(client, &at, |_| {}).await
    };
    tokio::pin!(streams);
    let obstacles = tokio::spawn(print_obstacles(client.clone(), at.clone()));
    tokio::select! {
        job = &mut streams => return exit_code(&job?),
        () = terminated() => {}
    }
    obstacles.abort();
    report("cancelling the job; press Ctrl-C again to exit without waiting for it");
    let cancel = v1::CancelRequest { token: new_token(), jobs: vec![at.clone()] };
    with_retries(RETRY_TIMEOUT, || async { client.jobs().cancel(cancel.clone()).await }).await?;
    tokio::select! {
        job = &mut streams => exit_code(&job?),
        () = terminated() => Ok(130),
    }
}

/// Prints the output of one task and of its later attempts until the unit has ended. After a broken
/// connection it continues at the offset it had reached.
pub(super) async fn follow(client: &Client, at: v1::JobRef, unit: u32, task: u32) -> Result<(), Failure> {
    let (mut offsets, mut attempt, mut number) = ([0u64; 2], String::new(), 0);
    // The timeout counts from the last message of the broker.
    let mut deadline = tokio::time::Instant::now() + RETRY_TIMEOUT;
    loop {
        let request = v1::LogsRequest {
            job: Some(at.clone()),
            unit,
            task,
            attempt: number,
            follow: true,
            stdout_offset: offsets[0],
            stderr_offset: offsets[1],
        };
        let status = match client.jobs().logs(request).await {
            Err(status) => Some(status),
            Ok(response) => {
                let mut parts = response.into_inner();
                loop {
                    match parts.message().await {
                        Ok(Some(part)) => print_part(&part, &mut offsets, &mut attempt)?,
                        Ok(None) => break None,
                        Err(status) => break Some(status),
                    }
                    deadline = tokio::time::Instant::now() + RETRY_TIMEOUT;
                }
            }
        };
        let Some(status) = status else {
            let shown =
                attempt.rsplit('-').next().and_then(|last| last.parse().ok()).unwrap_or(number.max(1));
            match next_attempt(client, &at, unit, shown).await? {
                Some(next) => {
                    report(&format!("weir: attempt {shown} ended; continuing with attempt {next}"));
                    (offsets, number) = ([0; 2], next);
                    continue;
                }
                None => return Ok(()),
            }
        };
        if !is_transient(&status) || tokio::time::Instant::now() > deadline {
            return Err(status.into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits for the attempt of a unit after attempt `shown`. `None` if the unit has ended.
async fn next_attempt(
    client: &Client,
    at: &v1::JobRef,
    unit: u32,
    shown: u32,
) -> Result<Option<u32>, Failure> {
    loop {
        let request = v1::GetJobRequest { job: Some(at.clone()), with_attempts: true };
        let call = || async { client.jobs().get_job(request.clone()).await };
        let reply = with_retries(RETRY_TIMEOUT, call).await?.into_inner();
        // JOURNAL-JOB-UNIT-NUMBER.
        let of_unit = |attempt: &v1::Attempt| -> Option<u32> {
            let mut parts = attempt.id.rsplit('-');
            let number = parts.next()?.parse().ok()?;
            (parts.next()?.parse() == Ok(unit)).then_some(number)
        };
        let numbers = reply.attempts.iter().filter_map(|attempt| Some((of_unit(attempt)?, attempt)));
        let Some((last, attempt)) = numbers.max_by_key(|(number, _)| *number) else { return Ok(None) };
        if last > shown {
            return Ok(Some(last));
        }
        let good = attempt.outcome.as_ref().is_some_and(|outcome| outcome.code == "Succeeded");
        if good || has_ended(&reply.job.unwrap_or_default()) {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
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

/// The pools of a job that were UNREACHABLE or LOST when it was last looked at. A pool that is SUSPECT is mostly
/// back a moment later.
#[derive(Default)]
pub(super) struct Contact(Vec<String>);

impl Contact {
    /// Reports which of the job's pools are lost or back since the last call.
    pub(super) fn update(&mut self, job: &v1::Job) {
        let is_lost = |contact: &&v1::PoolContact| contact.connectivity() != v1::Connectivity::Suspect;
        let lost: Vec<&v1::PoolContact> = job.pools_not_ready.iter().filter(is_lost).collect();
        for contact in lost.iter().filter(|contact| !self.0.contains(&contact.pool)) {
            report(&format!("weir: job/{}: {}", escape(&job.name), contact_text(contact)));
        }
        let names: Vec<String> = lost.iter().map(|contact| contact.pool.clone()).collect();
        for pool in self.0.iter().filter(|pool| !names.contains(pool) && !has_ended(job)) {
            let (job, pool) = (escape(&job.name), escape(pool));
            report(&format!("weir: job/{job}: pool {pool} is in contact again, or no longer runs the job"));
        }
        self.0 = names;
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
        (Some(reason), _) => reason.message.clone(),
        (None, Some((pool, reason))) => format!("{pool}: {}", reason.message),
        (None, None) => "there are no pools".to_owned(),
    };
    let what = if never { "is waiting, but fits no current pool" } else { "is waiting" };
    let reason = escape(&reason);
    report(&format!(
        "weir: job/{0} {what} ({reason}); details: `weir why job/{0}`; Ctrl-C cancels the job",
        job.name
    ));
}

/// Prints a part of the output. A gap before it, where the pool did not store the output, is reported on
/// standard error.
pub(super) fn print_part(
    part: &v1::LogsResponse,
    offsets: &mut [u64; 2],
    attempt: &mut String,
) -> Result<(), Failure> {
    if *attempt != part.attempt {
        attempt.clone_from(&part.attempt);
    }
    let index = usize::from(part.stream() == v1::LogStream::Stderr);
    if part.offset > offsets[index] {
        report(&format!("… {} bytes were not stored …", part.offset - offsets[index]));
    }
    offsets[index] = part.offset + part.data.len() as u64;
    // The output is not sanitised: a local command could print the same bytes.
    if index == 1 {
        std::io::stderr().write_all(&part.data)?;
        return Ok(());
    }
    let mut stdout = std::io::stdout();
    match stdout.write_all(&part.data).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => Ok(outcome?),
    }
}

/// Fetches a job; repeats the call while the broker is unavailable.
pub(super) async fn current(client: &Client, at: v1::JobRef) -> Result<v1::Job, Failure> {
    let request = v1::GetJobRequest { job: Some(at), with_attempts: false };
    let call = || async { client.jobs().get_job(request.clone()).await };
    Ok(with_retries(RETRY_TIMEOUT, call).await?.into_inner().job.unwrap_or_default())
}

/// Waits until a job has ended; each time that it is looked at, `observe` is called.
pub(super) async fn ended(
    client: &Client,
    at: &v1::JobRef,
    mut observe: impl FnMut(&v1::Job),
) -> Result<v1::Job, Failure> {
    let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(250));
    loop {
        let job = current(client, at.clone()).await?;
        observe(&job);
        if has_ended(&job) {
            return Ok(job);
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// True if the job is in a final phase.
pub(super) fn has_ended(job: &v1::Job) -> bool {
    matches!(job.phase(), v1::JobPhase::Succeeded | v1::JobPhase::Failed | v1::JobPhase::Cancelled)
}

/// True if a job that did not ask for simulation was simulated: its command did not run.
pub(super) fn ran_nothing(job: &v1::Job) -> bool {
    let groups = job.spec.as_ref().map_or(&[][..], |spec| &spec.groups);
    job.simulated && groups.iter().any(|group| group.simulate.is_none())
}

/// The exit code of `run` for an ended job. Prints the failure, if there is one, and whether the job was
/// simulated.
fn exit_code(job: &v1::Job) -> Result<u8, Failure> {
    if ran_nothing(job) {
        report("weir: Simulated: the pool only simulates tasks, so the command did not run");
    }
    if job.phase() == v1::JobPhase::Succeeded {
        return Ok(if ran_nothing(job) { RUN_FAILED } else { 0 });
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
        _ if job.phase() == v1::JobPhase::Cancelled => 130,
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
