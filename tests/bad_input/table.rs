//! The table of bad values: a request, the field that its error names, and part of the error. A test over the
//! protocol's compiled definitions checks that the table is complete.

use std::collections::BTreeSet;

use prost_reflect::Kind;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use weir::api::client::Client;
use weir::api::descriptor::methods;
use weir::api::proto::v1;

use crate::fake::{Agent, Broker, waiting_job};
use crate::{agent, change, event, filter, job, pool, queue};

/// A request that must be refused.
#[derive(Clone)]
pub enum Call {
    Submit(v1::SubmitRequest),
    GetJob(v1::GetJobRequest),
    ListAttempts(v1::ListAttemptsRequest),
    ListUnits(v1::ListUnitsRequest),
    ListJobs(v1::ListJobsRequest),
    CountJobs(v1::CountJobsRequest),
    WatchJobs(v1::WatchJobsRequest),
    Cancel(v1::CancelRequest),
    Rerun(v1::RerunRequest),
    UpdateJob(v1::UpdateJobRequest),
    Why(v1::WhyRequest),
    Logs(v1::LogsRequest),
    CreateQueue(v1::CreateQueueRequest),
    UpdateQueue(v1::UpdateQueueRequest),
    DeleteQueue(v1::DeleteQueueRequest),
    GetQueue(v1::GetQueueRequest),
    StreamEvents(v1::StreamEventsRequest),
    GetPool(v1::GetPoolRequest),
    ListNodes(v1::ListNodesRequest),
    GetNode(v1::GetNodeRequest),
    Cordon(v1::CordonRequest),
    Uncordon(v1::UncordonRequest),
    Drain(v1::DrainRequest),
    DeletePool(v1::DeletePoolRequest),
    PlanDefrag(v1::PlanDefragRequest),
    Abandon(v1::AbandonRequest),
    ServeLogs(v1::ServeLogsRequest),
    /// A frame of a session: a hello, or a frame after a valid hello.
    Sync(v1::SyncRequest),
}

/// One row of the table.
pub struct Case {
    call: Call,
    /// The field that the error names. For other codes than InvalidArgument, the field that causes it.
    field: String,
    /// A part of the error.
    expected: String,
    code: Code,
}

/// A row whose field has a value that is not allowed.
pub fn invalid(call: Call, field: &str, expected: &str) -> Case {
    Case { call, field: field.to_owned(), expected: expected.to_owned(), code: Code::InvalidArgument }
}

/// A row whose field refers to a missing object, or conflicts with the state.
pub fn refused(call: Call, field: &str, code: Code, expected: &str) -> Case {
    Case { call, field: field.to_owned(), expected: expected.to_owned(), code }
}

impl Call {
    pub fn method(&self) -> &'static str {
        match self {
            Self::Submit(_) => "Submit",
            Self::GetJob(_) => "GetJob",
            Self::ListAttempts(_) => "ListAttempts",
            Self::ListUnits(_) => "ListUnits",
            Self::ListJobs(_) => "ListJobs",
            Self::CountJobs(_) => "CountJobs",
            Self::WatchJobs(_) => "WatchJobs",
            Self::Cancel(_) => "Cancel",
            Self::Rerun(_) => "Rerun",
            Self::UpdateJob(_) => "UpdateJob",
            Self::Why(_) => "Why",
            Self::Logs(_) => "Logs",
            Self::CreateQueue(_) => "CreateQueue",
            Self::UpdateQueue(_) => "UpdateQueue",
            Self::DeleteQueue(_) => "DeleteQueue",
            Self::GetQueue(_) => "GetQueue",
            Self::StreamEvents(_) => "StreamEvents",
            Self::GetPool(_) => "GetPool",
            Self::PlanDefrag(_) => "PlanDefrag",
            Self::ListNodes(_) => "ListNodes",
            Self::GetNode(_) => "GetNode",
            Self::Cordon(_) => "Cordon",
            Self::Uncordon(_) => "Uncordon",
            Self::Drain(_) => "Drain",
            Self::DeletePool(_) => "DeletePool",
            Self::Abandon(_) => "Abandon",
            Self::ServeLogs(_) => "ServeLogs",
            Self::Sync(_) => "Sync",
        }
    }

    /// Sends the request. A session's refusal is returned as the equivalent status.
    async fn send(self, client: &Client) -> Result<(), Status> {
        let (mut jobs, mut pools, mut queues) = (client.jobs(), client.pools(), client.queues());
        match self {
            Self::Submit(request) => jobs.submit(request).await.map(drop),
            Self::GetJob(request) => jobs.get_job(request).await.map(drop),
            Self::ListAttempts(request) => jobs.list_attempts(request).await.map(drop),
            Self::ListUnits(request) => jobs.list_units(request).await.map(drop),
            Self::ListJobs(request) => jobs.list_jobs(request).await.map(drop),
            Self::CountJobs(request) => jobs.count_jobs(request).await.map(drop),
            Self::WatchJobs(request) => jobs.watch_jobs(request).await.map(drop),
            Self::Cancel(request) => jobs.cancel(request).await.map(drop),
            Self::Rerun(request) => jobs.rerun(request).await.map(drop),
            Self::UpdateJob(request) => jobs.update_job(request).await.map(drop),
            Self::Why(request) => jobs.why(request).await.map(drop),
            Self::Logs(request) => match jobs.logs(request).await {
                // Errors found later end the stream.
                Ok(parts) => parts.into_inner().message().await.map(drop),
                Err(status) => Err(status),
            },
            Self::CreateQueue(request) => queues.create_queue(request).await.map(drop),
            Self::UpdateQueue(request) => queues.update_queue(request).await.map(drop),
            Self::DeleteQueue(request) => queues.delete_queue(request).await.map(drop),
            Self::GetQueue(request) => queues.get_queue(request).await.map(drop),
            Self::StreamEvents(request) => client.events().stream_events(request).await.map(drop),
            Self::GetPool(request) => pools.get_pool(request).await.map(drop),
            Self::PlanDefrag(request) => pools.plan_defrag(request).await.map(drop),
            Self::ListNodes(request) => pools.list_nodes(request).await.map(drop),
            Self::GetNode(request) => pools.get_node(request).await.map(drop),
            Self::Cordon(request) => pools.cordon(request).await.map(drop),
            Self::Uncordon(request) => pools.uncordon(request).await.map(drop),
            Self::Drain(request) => pools.drain(request).await.map(drop),
            Self::DeletePool(request) => pools.delete_pool(request).await.map(drop),
            Self::Abandon(request) => pools.abandon(request).await.map(drop),
            Self::ServeLogs(request) => {
                client.agents().serve_logs(tokio_stream::once(request)).await.map(drop)
            }
            Self::Sync(frame) => agent::refusal(client, frame).await,
        }
    }
}

/// Sends a row's request and compares the error.
async fn check(client: &Client, case: Case) -> Result<(), String> {
    let (method, what) = (case.call.method(), format!("{} {}", case.call.method(), case.field));
    let Err(status) = case.call.send(client).await else { return Err(format!("{what}: was accepted")) };
    if status.code() != case.code {
        return Err(format!("{what}: {:?} instead of {:?}: {}", status.code(), case.code, status.message()));
    }
    let description = if case.code == Code::InvalidArgument && method == "Sync" {
        // A refused session has no details: the message names the field.
        let Some((_, description)) = status.message().split_once(&format!("{}: ", case.field)) else {
            return Err(format!("{what}: not named by {:?}", status.message()));
        };
        description.to_owned()
    } else if case.code == Code::InvalidArgument {
        let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
        let found = violations.iter().find(|violation| violation.field == case.field);
        match found {
            Some(violation) => violation.description.clone(),
            None => return Err(format!("{what}: not named by {violations:?}, {}", status.message())),
        }
    } else {
        status.message().to_owned()
    };
    let sanitised = |text: &str| !text.chars().any(weir::model::text::is_control_or_bidi);
    if !sanitised(&description) || !sanitised(status.message()) || description.len() > 2_048 {
        return Err(format!("{what}: contains control or bidi characters, or is too long: {description:?}"));
    }
    if description.contains(&case.expected) {
        Ok(())
    } else {
        Err(format!("{what}: {description:?} lacks {:?}", case.expected))
    }
}

fn cases() -> Vec<Case> {
    let mut all = job::cases();
    all.extend(job::text_cases());
    all.extend(change::cases());
    all.extend(filter::cases());
    all.extend(queue::cases());
    all.extend(event::cases());
    all.extend(pool::cases());
    all.extend(agent::cases());
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_value_is_refused_with_its_field() {
    let broker = Broker::start();
    let client = broker.client();
    let bystander = Agent::ready(&client, "normal", 1).await;
    waiting_job(&client, "waits").await;
    let before = broker.resident_bytes();
    let mut wrong = Vec::new();
    for case in cases() {
        wrong.extend(check(&client, case).await.err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    broker.check_health(&client).await;
    bystander.check_session(&client).await;
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "the broker uses {grown} bytes more than before");
}

/// Fields that allow any value, with the reason. A star stands for all nested fields.
const ANY_VALUE: &[(&str, &str)] = &[
    ("Submit jobs.spec.on_unit_failure.max_failed", "more than the number of units means all"),
    ("Submit jobs.spec.depends_on.queue", "output only: not read"),
    ("Submit jobs.spec.depends_on.name", "output only: not read"),
    ("ListJobs filter.submitted_from_unix_ms", "in the future it selects nothing: see its end"),
    ("ListJobs filter.ended_from_unix_ms", "the same"),
    ("CountJobs filter.submitted_from_unix_ms", "the same"),
    ("CountJobs filter.ended_from_unix_ms", "the same"),
    ("Cancel filter.submitted_from_unix_ms", "the same"),
    ("Cancel filter.ended_from_unix_ms", "the same"),
    ("WatchJobs from_revision", "a future revision starts with a list: see the list tests"),
    ("WatchPools from_revision", "the same"),
    ("WatchQueues from_revision", "the same"),
    ("Logs stdout_offset", "no output beyond the end: see the output tests"),
    ("Logs stderr_offset", "the same"),
    ("Logs tail_lines", "more lines than there are print all"),
    ("Logs since_unix_ms", "nothing was written in the future"),
    ("CreateQueue queue.limit.*", "a limit of zero blocks all jobs, which may be intended"),
    ("UpdateQueue queue.limit.*", "the same"),
    ("CreateQueue queue.usage.*", "output only: not read"),
    ("UpdateQueue queue.usage.*", "output only: not read"),
    ("CreateQueue queue.jobs", "output only: not read"),
    ("UpdateQueue queue.jobs", "output only: not read"),
    ("CreateQueue queue.revision", "a new queue is not based on a revision: not read"),
    ("Sync inventory.nodes.pool", "the pool is that of the session: not read"),
    ("Sync inventory.nodes.committed.*", "output only: not read"),
    ("Sync inventory.nodes.total.device_millis", "computed from the devices: not read"),
    ("Sync inventory.nodes.quarantined_until_unix_ms", "output only: not read"),
    ("Sync inventory.nodes.stranded_millis", "output only: not read"),
    ("Sync inventory.nodes.devices.committed_millis", "output only: not read"),
    ("Sync inventory.nodes.pool_connectivity", "output only: not read"),
    ("Sync inventory.nodes.tasks", "output only: not read"),
    ("Sync inventory.nodes.revision", "output only: not read"),
    ("Sync hello.high_water.writer_session", "a mark that this journal did not issue is ignored"),
    ("Sync hello.high_water.revision", "a mark that this journal did not issue is ignored"),
    ("ServeLogs hello.high_water.writer_session", "that of the session counts: not read"),
    ("ServeLogs hello.high_water.revision", "that of the session counts: not read"),
    ("Sync observed.reports.ordered_revision", "above the journal's end: the pool is refused"),
    ("Sync observed.reports.running.started_unix_ms", "clocks differ: clamped between the order and now"),
    ("Sync observed.reports.ended.started_unix_ms", "the same"),
    ("Sync observed.reports.ended.ended_unix_ms", "the same"),
    ("Sync observed.reports.ended.outcome.exit_code", "the task's own"),
    ("Sync observed.reports.ended.outcome.signal", "the task's own"),
    ("Sync observed.reports.ended.outcome.message", "truncated for storage, and escaped when printed"),
    ("Sync heartbeat.sequence", "returned unchanged"),
    ("ServeLogs hello.pool.backend", "that of the session counts: not read"),
    ("ServeLogs hello.pool.labels", "that of the session counts: not read"),
    ("ServeLogs hello.pool.notes", "that of the session counts: not read"),
    ("ServeLogs part.*", "only readers of the task's output receive it: see the output tests"),
];

/// Fields of all requests as `METHOD path`, without booleans.
fn request_fields() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, method) in methods().iter().filter(|(path, _)| path.starts_with("/weir.v1.")) {
        let name = path.rsplit('/').next().unwrap_or_default();
        let mut open = vec![(method.input(), format!("{name} "))];
        while let Some((message, path)) = open.pop() {
            for field in message.fields() {
                let at = format!("{path}{}", field.name());
                match field.kind() {
                    Kind::Bool => {}
                    Kind::Message(inner) if !field.is_map() => open.push((inner, format!("{at}."))),
                    // A map counts as one field, without its key and value.
                    _ => drop(found.insert(at)),
                }
            }
        }
    }
    found
}

#[test]
fn every_field_of_every_request_has_a_bad_value_or_a_reason_for_none() {
    let plain = |field: &str| {
        let mut text = String::new();
        let mut depth = 0;
        for c in field.chars() {
            match c {
                '[' => depth += 1,
                ']' => depth -= 1,
                c if depth == 0 => text.push(c),
                _ => {}
            }
        }
        text
    };
    let tried: BTreeSet<String> =
        cases().iter().map(|case| format!("{} {}", case.call.method(), plain(&case.field))).collect();
    let fields = request_fields();
    assert!(fields.len() > 150, "only {} fields were found", fields.len());
    let excused = |field: &str| {
        ANY_VALUE.iter().any(|(listed, _)| {
            listed.strip_suffix('*').map_or(*listed == field, |prefix| field.starts_with(prefix))
        })
    };
    // Errors about these fields may name the enclosing message.
    let parents = ["CreateQueue queue.guarantee", "UpdateQueue queue.guarantee"];
    let covered = |field: &str| {
        tried.contains(field)
            || parents.iter().any(|p| tried.contains(*p) && field.starts_with(&format!("{p}.")))
    };
    let missing: Vec<&String> = fields.iter().filter(|field| !covered(field) && !excused(field)).collect();
    assert!(missing.is_empty(), "no bad value is tried of {missing:#?}");
    let stale = ANY_VALUE.iter().filter(|(listed, _)| {
        let prefix = listed.trim_end_matches('*');
        !fields.iter().any(|field| field.starts_with(prefix))
    });
    assert_eq!(stale.collect::<Vec<_>>(), Vec::<&(&str, &str)>::new(), "these fields don't exist");
}
