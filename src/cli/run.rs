//! `weir run`: a command somewhere, like a local one.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use super::connect::{PATIENCE, is_transient, job_name, new_token, patiently};
use super::exit::RUN_FAILED;
use super::output::{print, tell};
use super::{Connect, Failure, quantity, terminated};
use crate::api::client::Client;
use crate::api::proto::v1;

/// Runs a command and streams its output.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir run -- sh -c 'echo hello from $WEIR_REGION'\n  weir run --cpus 2 --memory 1Gi -- make test\n  weir run --region CN-XJ --device Ascend910B3:8 --detach -- train.sh\n  weir run --gang 2 --pool local -- hostname\n\nWithout --pool, --region or --device the command runs in a pool that truly runs it, not in a simulated one.\nThe exit code is the command's own; 128+n for signal n; 125 if Weir itself failed."
)]
pub struct Run {
    /// Only in these regions.
    #[arg(long, value_delimiter = ',')]
    region: Vec<String>,
    /// Only in these pools.
    #[arg(long, value_delimiter = ',')]
    pool: Vec<String>,
    /// Devices per task: MODEL:COUNT, A|B:COUNT, any:COUNT, MODEL:0.5.
    #[arg(long, value_parser = quantity::devices)]
    device: Option<v1::DeviceRequest>,
    /// CPUs per task.
    #[arg(long, default_value = "1", value_parser = quantity::cpus)]
    cpus: u64,
    /// Memory per task.
    #[arg(long, default_value = "128Mi", value_parser = quantity::bytes)]
    memory: u64,
    /// So many tasks that start and end together.
    #[arg(long, value_name = "N")]
    gang: Option<u32>,
    /// So many tasks, each on its own; if one fails for good, the others are cancelled.
    #[arg(long, value_name = "N", conflicts_with = "gang")]
    count: Option<u32>,
    /// The job's name; else the command's, and a number.
    #[arg(long)]
    name: Option<String>,
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Environment of the command: NAME=VALUE.
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Absolute; else a fresh directory.
    #[arg(long)]
    workdir: Option<String>,
    /// Longest run: 90s, 5m, 1h30m; else the queue's, 24h by default.
    #[arg(long, value_parser = quantity::duration_ms)]
    max_run: Option<u64>,
    /// Tries in all.
    #[arg(long, default_value_t = 1)]
    attempts: u32,
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Print job/NAME and leave it running.
    #[arg(long, short)]
    detach: bool,
    /// The command and its arguments.
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

/// A name made of a command's: lower-case letters, digits, hyphens.
fn prefix_of(command: &str) -> String {
    let base = command.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let kept: String =
        base.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let kept = kept.trim_matches('-').to_owned();
    if kept.is_empty() { "job".to_owned() } else { kept }
}

impl Run {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        self.start(connect).await.map_err(|failure| Failure { code: RUN_FAILED, ..failure })
    }

    async fn start(self, connect: &Connect) -> Result<u8, Failure> {
        let client = connect.client()?;
        let submission = self.submission(&connect.queue)?;
        let request = v1::SubmitRequest { token: new_token(), jobs: vec![submission] };
        // Longer than a restart takes, shorter than a user's patience where nothing listens.
        let patience = Duration::from_secs(15);
        let response = patiently(patience, || async { client.jobs().submit(request.clone()).await }).await?;
        let Some(job) = response.into_inner().jobs.pop() else {
            return Err(Failure::new(RUN_FAILED, "the broker accepted no job"));
        };
        if self.detach {
            print(&format!("{}\n", job_name(&connect.queue, &job.name)))?;
            return Ok(0);
        }
        let at = v1::JobRef { id: job.id, ..v1::JobRef::default() };
        let units = if self.gang.is_some() { 1 } else { self.count.unwrap_or(1) };
        follow_to_end(&client, at, units, self.gang.unwrap_or(1)).await
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
            real_only: self.pool.is_empty() && self.device.is_none() && self.region.is_empty(),
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

/// How long a job may wait before `run` says why.
const SILENCE: Duration = Duration::from_secs(2);

/// Streams all output of a job until it has ended; Ctrl-C or SIGTERM cancels it, a second one leaves.
async fn follow_to_end(client: &Client, at: v1::JobRef, units: u32, tasks: u32) -> Result<u8, Failure> {
    let streams = async {
        let mut following = Vec::new();
        // Many tasks at once would only be noise: the first few are shown.
        for unit in 0..units.min(16) {
            for task in 0..tasks.min(16) {
                let (client, at) = (client.clone(), at.clone());
                following.push(tokio::spawn(async move { follow(&client, at, unit, task).await }));
            }
        }
        for follow in following {
            // Without its output the job still ends, and that is what counts; but say so.
            if let Ok(Err(failure)) = follow.await {
                tell(&format!("weir: output is missing: {}", crate::model::text::escape(&failure.message)));
            }
        }
        ended(client, &at).await
    };
    tokio::pin!(streams);
    let nag = tokio::spawn(say_why_it_waits(client.clone(), at.clone()));
    tokio::select! {
        job = &mut streams => return exit_code(&job?),
        () = terminated() => {}
    }
    nag.abort();
    tell("cancelling the job; press Ctrl-C again to leave it");
    let cancel = v1::CancelRequest { token: new_token(), jobs: vec![at.clone()] };
    patiently(PATIENCE, || async { client.jobs().cancel(cancel.clone()).await }).await?;
    tokio::select! {
        job = &mut streams => exit_code(&job?),
        () = terminated() => Ok(130),
    }
}

/// Prints one task's output until it has ended, through breaks, from where it stopped.
pub(super) async fn follow(client: &Client, at: v1::JobRef, unit: u32, task: u32) -> Result<(), Failure> {
    let (mut offsets, mut attempt, mut number) = ([0u64; 2], String::new(), 0);
    // Patience counts from when the broker was last heard.
    let mut deadline = tokio::time::Instant::now() + PATIENCE;
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
                    deadline = tokio::time::Instant::now() + PATIENCE;
                }
            }
        };
        let Some(status) = status else {
            let shown =
                attempt.rsplit('-').next().and_then(|last| last.parse().ok()).unwrap_or(number.max(1));
            match next_attempt(client, &at, unit, shown).await? {
                Some(next) => {
                    tell(&format!("weir: attempt {shown} is over; this is attempt {next}"));
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

/// The attempt of a unit that comes after `shown`, once there is one; `None` if there will be none.
async fn next_attempt(
    client: &Client,
    at: &v1::JobRef,
    unit: u32,
    shown: u32,
) -> Result<Option<u32>, Failure> {
    loop {
        let request = v1::GetJobRequest { job: Some(at.clone()), with_attempts: true };
        let reply = patiently(PATIENCE, || async { client.jobs().get_job(request.clone()).await }).await?;
        let reply = reply.into_inner();
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

/// Says once why a job waits, if it waits for long: silence would look like a broken tool.
async fn say_why_it_waits(client: Client, at: v1::JobRef) {
    tokio::time::sleep(SILENCE).await;
    let request = v1::WhyRequest { job: Some(at) };
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
    let what = if never { "fits into no pool, and waits for one" } else { "waits" };
    let reason = crate::model::text::escape(&reason);
    tell(&format!(
        "weir: job/{0} {what} ({reason}); `weir why job/{0}` tells more, Ctrl-C cancels it",
        job.name
    ));
}

/// Prints a piece of output, and on standard error what was not kept before it.
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
        tell(&format!("… {} bytes not kept …", part.offset - offsets[index]));
    }
    offsets[index] = part.offset + part.data.len() as u64;
    // Output is the task's own: it goes through as it is, as of a local command.
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

/// The job, once it has ended.
pub(super) async fn ended(client: &Client, at: &v1::JobRef) -> Result<v1::Job, Failure> {
    let mut wait = Duration::from_millis(1);
    loop {
        let request = v1::GetJobRequest { job: Some(at.clone()), with_attempts: false };
        let response = patiently(PATIENCE, || async { client.jobs().get_job(request.clone()).await }).await?;
        let job = response.into_inner().job.unwrap_or_default();
        if has_ended(&job) {
            return Ok(job);
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_millis(250));
    }
}

/// It won't change any more.
pub(super) fn has_ended(job: &v1::Job) -> bool {
    matches!(job.phase(), v1::JobPhase::Succeeded | v1::JobPhase::Failed | v1::JobPhase::Cancelled)
}

/// The exit code that stands for how a job ended.
fn exit_code(job: &v1::Job) -> Result<u8, Failure> {
    if job.phase() == v1::JobPhase::Succeeded {
        return Ok(0);
    }
    let failure = job.failure.clone().unwrap_or_default();
    let code = match (failure.exit_code, failure.signal) {
        _ if failure.code == "TimedOut" => super::exit::TIMED_OUT,
        (_, Some(signal)) if failure.code != "Cancelled" => {
            u8::try_from(signal.saturating_add(128)).unwrap_or(RUN_FAILED)
        }
        (Some(code), None) if failure.code == "Failed" => {
            if !failure.message.is_empty() {
                tell(&format!("weir: {}", crate::model::text::escape(&failure.message)));
            }
            // What failed did not succeed, whatever its code.
            return Ok(u8::try_from(code).ok().filter(|code| *code != 0).unwrap_or(RUN_FAILED));
        }
        _ if job.phase() == v1::JobPhase::Cancelled => 130,
        _ => RUN_FAILED,
    };
    if !failure.code.is_empty() {
        tell(&format!(
            "weir: {}{}{}",
            failure.code,
            if failure.message.is_empty() { "" } else { ": " },
            crate::model::text::escape(&failure.message)
        ));
    }
    Ok(code)
}
