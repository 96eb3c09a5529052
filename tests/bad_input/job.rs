//! Jobs: bad values of every field, and text that is hostile or too long.

use tonic::Code;
use weir::api::proto::v1;
use weir::api::proto::v1::device_request::Amount;
use weir::api::proto::v1::env_var::Source;
use weir::api::proto::v1::task_group::Run;

use crate::fake::{Broker, waiting_job};
use crate::table::{Call, Case, invalid, refused};

/// A valid request.
pub fn valid() -> v1::SubmitRequest {
    let command = vec!["true".to_owned()];
    let group = v1::TaskGroup {
        resources: Some(v1::TaskResources { cpu_millis: 1_000, memory_bytes: 1 << 20, ..Default::default() }),
        run: Some(Run::Process(v1::Program { command, ..Default::default() })),
        ..Default::default()
    };
    let spec = v1::JobSpec { groups: vec![group], ..Default::default() };
    v1::SubmitRequest {
        token: String::new(),
        jobs: vec![v1::Submission { spec: Some(spec), ..Default::default() }],
        // Most of them would run in no pool of the tests.
        allow_pending: true,
    }
}

fn submit(change: impl FnOnce(&mut v1::SubmitRequest)) -> Call {
    let mut request = valid();
    change(&mut request);
    Call::Submit(request)
}

fn spec(change: impl FnOnce(&mut v1::JobSpec)) -> Call {
    submit(|request| change(request.jobs[0].spec.as_mut().expect("a spec")))
}

fn group(change: impl FnOnce(&mut v1::TaskGroup)) -> Call {
    spec(|spec| change(&mut spec.groups[0]))
}

fn resources(change: impl FnOnce(&mut v1::TaskResources)) -> Call {
    group(|group| change(group.resources.as_mut().expect("resources")))
}

fn devices(models: &[&str], amount: Option<Amount>) -> Call {
    let models = models.iter().map(|model| (*model).to_owned()).collect();
    resources(|resources| resources.devices = Some(v1::DeviceRequest { models, amount }))
}

fn process(change: impl FnOnce(&mut v1::Program)) -> Call {
    group(|group| {
        let Some(Run::Process(program)) = &mut group.run else { panic!("a process") };
        change(program);
    })
}

fn container(image: &str, change: impl FnOnce(&mut v1::Program)) -> Call {
    let mut program = v1::Program::default();
    change(&mut program);
    let image = image.to_owned();
    group(|group| group.run = Some(Run::Container(v1::Container { image, program: Some(program) })))
}

fn pod(spec_json: &str) -> Call {
    let spec_json = spec_json.to_owned();
    group(|group| group.run = Some(Run::Pod(v1::KubernetesPod { spec_json })))
}

fn env(name: &str, source: Option<Source>) -> v1::EnvVar {
    v1::EnvVar { name: name.to_owned(), source }
}

fn plain(value: &str) -> Option<Source> {
    Some(Source::Value(value.to_owned()))
}

fn secret(name: &str, key: &str) -> Option<Source> {
    Some(Source::ValueFrom(v1::SecretRef { name: name.to_owned(), key: key.to_owned() }))
}

fn constraints(change: impl FnOnce(&mut v1::Constraints)) -> Call {
    spec(|spec| change(spec.constraints.get_or_insert_default()))
}

fn retry(change: impl FnOnce(&mut v1::RetryPolicy)) -> Call {
    spec(|spec| change(spec.retry.get_or_insert_default()))
}

fn many(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("x{number}")).collect()
}

fn labels(count: usize) -> std::collections::BTreeMap<String, String> {
    many(count).into_iter().map(|key| (key, "1".to_owned())).collect()
}

pub fn job_ref(id: u64, queue: &str, name: &str) -> Option<v1::JobRef> {
    Some(v1::JobRef { id, queue: queue.to_owned(), name: name.to_owned() })
}

const GROUP: &str = "jobs[0].spec.groups[0]";

/// Bad values of everything about jobs.
pub fn cases() -> Vec<Case> {
    let mut all = submission_cases();
    all.extend(group_cases());
    all.extend(program_cases("process", |change| process(change)));
    all.extend(program_cases("container.program", |change| container("busybox", change)));
    all.extend(policy_cases());
    all.extend(reader_cases());
    all
}

fn submission_cases() -> Vec<Case> {
    let four_groups = |spec: &mut v1::JobSpec| {
        spec.gang_job = true;
        spec.groups[0].count = Some(2_000);
        spec.groups =
            (0..4).map(|n| v1::TaskGroup { name: format!("g{n}"), ..spec.groups[0].clone() }).collect();
    };
    vec![
        invalid(submit(|r| r.token = "t".repeat(129)), "token", "129 bytes, at most 128"),
        invalid(submit(|r| r.jobs.clear()), "jobs", "0 jobs, 1 to 1000 are allowed"),
        invalid(submit(|r| r.jobs = vec![r.jobs[0].clone(); 1_001]), "jobs", "1001 jobs, 1 to 1000"),
        invalid(submit(|r| r.jobs[0].name = "Train".to_owned()), "jobs[0].name", "\"Train\" is not 1 to 63"),
        invalid(submit(|r| r.jobs[0].name = "n".repeat(64)), "jobs[0].name", "is not 1 to 63"),
        // Otherwise `job/359` would name the job 359 or the job with the number 359.
        invalid(submit(|r| r.jobs[0].name = "359".to_owned()), "jobs[0].name", "\"359\" has only digits"),
        invalid(submit(|r| r.jobs[0].name_prefix = "-x".to_owned()), "jobs[0].name_prefix", "is not 1 to 63"),
        invalid(submit(|r| r.jobs[0].name_prefix = "n".repeat(63)), "jobs[0].name_prefix", "too long to put"),
        invalid(
            submit(|r| r.jobs[0].queue = "defualt".to_owned()),
            "jobs[0].queue",
            "queue \"defualt\" does not exist, did you mean \"default\"?",
        ),
        invalid(submit(|r| r.jobs[0].spec = None), "jobs[0].spec", "is missing"),
        refused(
            submit(|r| r.jobs[0].name = "waits".to_owned()),
            "jobs[0].name",
            Code::AlreadyExists,
            "job \"waits\" exists already",
        ),
        refused(
            submit(|r| {
                r.jobs[0].name = "twin".to_owned();
                r.jobs.push(r.jobs[0].clone());
            }),
            "jobs[1].name",
            Code::AlreadyExists,
            "job \"twin\" exists already",
        ),
        invalid(spec(|s| s.labels = labels(65)), "jobs[0].spec.labels", "65 entries, at most 64"),
        invalid(
            spec(|s| drop(s.labels.insert("a b".to_owned(), String::new()))),
            "jobs[0].spec.labels",
            "\"a b\"=\"\" is not letters",
        ),
        invalid(spec(|s| s.priority = 1_000_001), "jobs[0].spec.priority", "within -1000000 and 1000000"),
        invalid(spec(|s| s.priority = i32::MIN), "jobs[0].spec.priority", "-2147483648 is not within"),
        invalid(spec(|s| s.groups.clear()), "jobs[0].spec.groups", "0 task groups, at least 1"),
        invalid(
            spec(|s| s.groups = vec![s.groups[0].clone(); 17]),
            "jobs[0].spec.groups",
            "17 entries, at most 16",
        ),
        invalid(
            spec(|s| s.groups.push(s.groups[0].clone())),
            "jobs[0].spec.groups[1].name",
            "\"main\" is used twice",
        ),
        invalid(spec(four_groups), "jobs[0].spec.gang_job", "8000 tasks in one gang, at most 4096"),
        invalid(
            process(|p| p.args = vec!["a".repeat(100_000); 3]),
            "jobs[0].spec",
            "bytes, at most 196608 are allowed",
        ),
    ]
}

fn group_cases() -> Vec<Case> {
    let at = |field: &str| format!("{GROUP}.{field}");
    let cpu = |millis: u64| resources(|r| r.cpu_millis = millis);
    let other = |name: &str, amount: u64| {
        resources(|r| {
            r.other.insert(name.to_owned(), amount);
        })
    };
    let simulate =
        |duration_ms, exit_code| group(|g| g.simulate = Some(v1::Simulate { duration_ms, exit_code }));
    let nothing = group(|g| g.resources = None);
    let overflow = group(|g| {
        g.count = Some(1_000_000);
        g.resources = Some(v1::TaskResources { memory_bytes: 1 << 50, ..Default::default() });
    });
    let gang = group(|g| (g.gang, g.count) = (true, Some(4_097)));
    let indices =
        |text: &str, count, of| group(|g| (g.indices, g.count, g.index_count) = (text.to_owned(), count, of));
    let even: Vec<String> = (0..32_769).map(|at| (2 * at).to_string()).collect();
    let even = even.join(",");
    let many_models: Vec<String> = many(65);
    let many_models: Vec<&str> = many_models.iter().map(String::as_str).collect();
    vec![
        invalid(group(|g| g.name = "Main".to_owned()), &at("name"), "\"Main\" is not 1 to 63"),
        invalid(indices("1-x", None, None), &at("indices"), "\"1-x\" is neither a number nor a range"),
        invalid(indices("3-1", None, None), &at("indices"), "3-1 ends before it begins"),
        invalid(indices(&even, None, None), &at("indices"), "32769 ranges, at most 32768 are allowed"),
        invalid(indices("0-3", Some(3), None), &at("count"), "3 tasks, but 4 indices"),
        invalid(indices("0-3", None, Some(3)), &at("index_count"), "3 is not within 4 and 1000000"),
        invalid(indices("0-1000000", None, None), &at("indices"), "1000000 is not within 0 and 999999"),
        invalid(indices("", None, Some(3)), &at("index_count"), "needs indices"),
        invalid(
            group(|g| (g.gang, g.count, g.indices) = (true, None, "0-1".to_owned())),
            &at("indices"),
            "a gang runs whole",
        ),
        invalid(group(|g| g.count = Some(0)), &at("count"), "0 is not within 1 and 1000000"),
        invalid(group(|g| g.count = Some(1_000_001)), &at("count"), "1000001 is not within"),
        invalid(group(|g| g.count = Some(u32::MAX)), &at("count"), "4294967295 is not within"),
        invalid(gang, &at("count"), "4097 is not within 1 and 4096"),
        invalid(overflow, "jobs[0].spec.groups", "add up to more than 2^64-1"),
        invalid(nothing, &at("resources"), "nothing is requested"),
        invalid(group(|g| g.run = None), GROUP, "set what to run: process, container or pod"),
        invalid(
            cpu(1_000_001),
            &at("resources.cpu_millis"),
            "1000.001 CPUs is not within 0 CPUs and 1000 CPUs",
        ),
        // A negative number as it is encoded on the wire.
        invalid(cpu(u64::MAX), &at("resources.cpu_millis"), "18446744073709551.615 CPUs is not within"),
        invalid(resources(|r| r.memory_bytes = u64::MAX), &at("resources.memory_bytes"), "is not within"),
        invalid(resources(|r| r.storage_bytes = u64::MAX), &at("resources.storage_bytes"), "is not within"),
        invalid(other("nic/roce", u64::MAX), &at("resources.other"), "of \"nic/roce\" is not within"),
        invalid(other("", 1), &at("resources.other"), "is not letters"),
        invalid(
            resources(|r| r.other = many(65).into_iter().map(|name| (name, 1)).collect()),
            &at("resources.other"),
            "65 entries, at most 64",
        ),
        invalid(devices(&[], Some(Amount::Count(0))), &at("resources.devices.count"), "within 1 and 64"),
        invalid(devices(&[], Some(Amount::Count(65))), &at("resources.devices.count"), "65 is not within"),
        invalid(devices(&[], Some(Amount::Millis(0))), &at("resources.devices.millis"), "within 1 and 999"),
        invalid(devices(&[], Some(Amount::Millis(1_000))), &at("resources.devices.millis"), "1000 is not"),
        invalid(devices(&[], None), &at("resources.devices"), "set count or millis"),
        invalid(
            devices(&["A100-80"], Some(Amount::Count(1))),
            &at("resources.devices.models"),
            "\"A100-80\" is not known, did you mean \"A100-80G\"?",
        ),
        invalid(devices(&many_models, Some(Amount::Count(1))), &at("resources.devices.models"), "65 entries"),
        invalid(pod(""), &at("pod.spec_json"), "empty: a PodSpec in JSON is needed"),
        invalid(pod("[1]"), &at("pod.spec_json"), "not a JSON object"),
        invalid(pod("{\"a\": "), &at("pod.spec_json"), "not a JSON object"),
        invalid(pod(&"p".repeat(65_537)), &at("pod.spec_json"), "65537 bytes, at most 65536"),
        invalid(container("", |_| {}), &at("container.image"), "\"\" is not an image reference"),
        invalid(container("a b", |_| {}), &at("container.image"), "\"a b\" is not an image reference"),
        invalid(container(&"i".repeat(254), |_| {}), &at("container.image"), "254 bytes, at most 253"),
        invalid(simulate(u64::MAX, 0), &at("simulate.duration_ms"), "is not within 0s and 366d"),
        invalid(simulate(1, 256), &at("simulate.exit_code"), "256 is not within 0 and 255"),
    ]
}

type Change = Box<dyn FnOnce(&mut v1::Program)>;

fn program_cases(kind: &str, call: fn(Change) -> Call) -> Vec<Case> {
    let case = |field: &str, expected: &str, change: Change| {
        invalid(call(change), &format!("{GROUP}.{kind}.{field}"), expected)
    };
    let with_env = |var: v1::EnvVar| -> Change { Box::new(move |p| p.env = vec![var]) };
    let mut all = vec![
        case("command", "4097 entries, at most 4096", Box::new(|p| p.command = many(4_097))),
        case("command[1]", "contains NUL", Box::new(|p| p.command = vec!["a".into(), "b\0".into()])),
        case("args", "4097 entries, at most 4096", Box::new(|p| p.args = many(4_097))),
        case("args[0]", "131072 bytes, at most 131071", Box::new(|p| p.args = vec!["x".repeat(131_072)])),
        case("env[0].name", "\"1A\" is not an environment name", with_env(env("1A", plain("")))),
        case("env[0].name", "\"\" is not an environment name", with_env(env("", plain("")))),
        case("env[0].name", "\"WEIR_JOB\" is reserved", with_env(env("WEIR_JOB", plain("")))),
        case("env[0].value", "contains NUL", with_env(env("A", plain("a\0b")))),
        case("env[0].value", "131072 bytes", with_env(env("A", plain(&"x".repeat(131_072))))),
        case("env[0]", "set value or value_from", with_env(env("A", None))),
        case(
            "env[0].value_from.name",
            "\"\" is not the name or key of a secret",
            with_env(env("A", secret("", "k"))),
        ),
        case(
            "env[0].value_from.key",
            "\"a b\" is not the name or key of a secret",
            with_env(env("A", secret("s", "a b"))),
        ),
        case("workdir", "\"tmp\" is not an absolute path", Box::new(|p| p.workdir = "tmp".to_owned())),
        case("workdir", "contains NUL", Box::new(|p| p.workdir = "/\0".to_owned())),
        case(
            "workdir",
            "5001 bytes, at most 4095",
            Box::new(|p| p.workdir = format!("/{}", "x".repeat(5_000))),
        ),
    ];
    let vars = (0..4_097).map(|n| env(&format!("A{n}"), plain(""))).collect();
    all.push(case("env", "4097 entries, at most 4096", Box::new(|p| p.env = vars)));
    if kind == "process" {
        all.push(case("command", "empty: set the program to run", Box::new(|p| p.command.clear())));
        all.push(case("command", "empty: set the program", Box::new(|p| p.command = vec![String::new()])));
    }
    all
}

fn policy_cases() -> Vec<Case> {
    let at = |field: &str| format!("jobs[0].spec.{field}");
    let toleration = |key: &str, value: &str| {
        let toleration = v1::Toleration { key: key.to_owned(), value: Some(value.to_owned()) };
        constraints(|c| c.tolerations = vec![toleration])
    };
    let edge = |job_id, condition| {
        spec(|s| s.depends_on = vec![v1::Dependency { job_id, condition, ..Default::default() }])
    };
    let region = |text: &str| constraints(|c| c.regions_allowed = vec![text.to_owned()]);
    let both = constraints(|c| {
        c.regions_allowed = vec!["CN-CQ".to_owned()];
        c.regions_denied = vec!["500000".to_owned()];
    });
    vec![
        invalid(region("Chongking"), &at("constraints.regions_allowed[0]"), "\"Chongking\" is not a region"),
        invalid(region("999999"), &at("constraints.regions_allowed[0]"), "\"999999\" is not a region"),
        invalid(
            region("CN-CX"),
            &at("constraints.regions_allowed"),
            "region CN-CX does not exist, did you mean",
        ),
        invalid(
            constraints(|c| c.regions_denied = vec!["cn-qq".to_owned()]),
            &at("constraints.regions_denied[0]"),
            "\"cn-qq\" is not a region",
        ),
        invalid(both, &at("constraints.regions_denied"), "CN-CQ is both allowed and denied"),
        invalid(constraints(|c| c.pools = many(65)), &at("constraints.pools"), "65 entries, at most 64"),
        invalid(
            constraints(|c| c.pools = vec!["A".into()]),
            &at("constraints.pools"),
            "\"A\" is not 1 to 63",
        ),
        invalid(constraints(|c| c.node_labels = labels(65)), &at("constraints.node_labels"), "65 entries"),
        invalid(toleration("a b", ""), &at("constraints.tolerations[0].key"), "\"a b\" is not letters"),
        invalid(toleration("a", "b c"), &at("constraints.tolerations[0].value"), "\"b c\" is not letters"),
        invalid(
            constraints(|c| c.tolerations = vec![v1::Toleration::default(); 65]),
            &at("constraints.tolerations"),
            "65 entries",
        ),
        invalid(retry(|r| r.max_attempts = Some(0)), &at("retry.max_attempts"), "0 is not within 1 and 100"),
        invalid(retry(|r| r.max_attempts = Some(101)), &at("retry.max_attempts"), "101 is not within"),
        invalid(
            retry(|r| r.max_node_losses = Some(1_001)),
            &at("retry.max_node_losses"),
            "1001 is not within 0 and 1000",
        ),
        invalid(retry(|r| r.on = vec![0]), &at("retry.on[0]"), "0 is not an outcome to retry on"),
        invalid(retry(|r| r.on = vec![1, 99]), &at("retry.on[1]"), "99 is not an outcome"),
        invalid(retry(|r| r.backoff_ms = u64::MAX), &at("retry.backoff_ms"), "is not within"),
        invalid(retry(|r| r.backoff_max_ms = u64::MAX), &at("retry.backoff_max_ms"), "is not within"),
        invalid(spec(|s| s.on_pool_lost = 9), &at("on_pool_lost"), "9 is not a value of this enum"),
        invalid(spec(|s| s.max_run_ms = u64::MAX), &at("max_run_ms"), "is not within 0s and 366d"),
        invalid(
            spec(|s| s.lease_ms = 20_000),
            &at("lease_ms"),
            "has no effect without on_pool_lost: requeue",
        ),
        invalid(
            spec(|s| (s.on_pool_lost, s.lease_ms) = (v1::OnPoolLost::Requeue as i32, 19_999)),
            &at("lease_ms"),
            "is not within 20s and 1d",
        ),
        invalid(spec(|s| s.start_limit_ms = u64::MAX), &at("start_limit_ms"), "is not within"),
        invalid(spec(|s| s.grace_ms = Some(3_600_001)), &at("grace_ms"), "is not within 0s and 1h"),
        invalid(edge(0, 0), &at("depends_on[0].job_id"), "job 0 does not exist"),
        invalid(edge(u64::MAX, 0), &at("depends_on[0].job_id"), "job 18446744073709551615 does not exist"),
        invalid(edge(1, 9), &at("depends_on[0].condition"), "9 is not a value of this enum"),
        invalid(
            spec(|s| s.depends_on = vec![v1::Dependency { job_id: 1, ..Default::default() }; 65]),
            &at("depends_on"),
            "65 entries, 0 to 64 are allowed",
        ),
        invalid(
            spec(|s| s.required_features = vec!["warp".to_owned()]),
            &at("required_features"),
            "\"warp\" is not a feature of this broker",
        ),
    ]
}

type OfJob = fn(Option<v1::JobRef>) -> Call;

/// Bad values of the requests that read jobs or cancel them.
fn reader_cases() -> Vec<Case> {
    let mut all = Vec::new();
    let calls: [(&str, OfJob); 9] = [
        ("job", |job| Call::ListAttempts(v1::ListAttemptsRequest { job, ..Default::default() })),
        ("job", |job| Call::ListUnits(v1::ListUnitsRequest { job, ..Default::default() })),
        ("job", |job| Call::GetJob(v1::GetJobRequest { job, with_attempts: true })),
        ("job", |job| Call::WatchJobs(v1::WatchJobsRequest { job, from_revision: 1 })),
        ("job", |job| Call::Why(v1::WhyRequest { job })),
        ("job", |job| Call::Logs(v1::LogsRequest { job, ..Default::default() })),
        ("job", |job| Call::Rerun(v1::RerunRequest { job, ..Default::default() })),
        ("job", |job| Call::UpdateJob(v1::UpdateJobRequest { job, ..Default::default() })),
        ("jobs[0]", |job| {
            Call::Cancel(v1::CancelRequest { jobs: job.into_iter().collect(), ..Default::default() })
        }),
    ];
    for (field, call) in calls {
        let missing = |part: &str| format!("{field}.{part}");
        all.extend([
            invalid(call(job_ref(0, "", "")), field, "identify the job by id, or by queue and name"),
            invalid(call(job_ref(1, "", "waits")), field, "identify the job by id, or by queue and name"),
            refused(call(job_ref(99, "", "")), &missing("id"), Code::NotFound, "job \"99\" does not exist"),
            refused(call(job_ref(0, "", "nope")), &missing("name"), Code::NotFound, "job \"nope\" does not"),
            refused(call(job_ref(0, "no", "waits")), &missing("queue"), Code::NotFound, "\"waits\" does not"),
            refused(
                call(job_ref(0, "", &"\u{202e}".repeat(1 << 18))),
                &missing("name"),
                Code::NotFound,
                "does not exist",
            ),
        ]);
        // A watch without a job watches all jobs.
        if field == "job" && call(None).method() != "WatchJobs" {
            all.push(invalid(call(None), field, "is missing"));
        }
    }
    let waits = || job_ref(0, "", "waits");
    let attempts = |page_size, page_token: &str| {
        let page_token = page_token.to_owned();
        Call::ListAttempts(v1::ListAttemptsRequest {
            job: waits(),
            page_size,
            page_token,
            ..Default::default()
        })
    };
    let units = |states: &[i32], page_size, page_token: &str| {
        let (states, page_token) = (states.to_vec(), page_token.to_owned());
        Call::ListUnits(v1::ListUnitsRequest { job: waits(), states, page_size, page_token })
    };
    let logs = |unit, task, attempt| {
        Call::Logs(v1::LogsRequest { job: waits(), unit, task, attempt, ..Default::default() })
    };
    let rerun = |token: &str, name: &str| {
        Call::Rerun(v1::RerunRequest {
            token: token.to_owned(),
            job: waits(),
            name: name.to_owned(),
            allow_pending: false,
        })
    };
    let cancel = |token: &str, count| {
        let jobs = std::iter::repeat_with(|| waits().expect("a job")).take(count).collect();
        Call::Cancel(v1::CancelRequest { token: token.to_owned(), jobs, ..Default::default() })
    };
    all.extend([
        invalid(attempts(1_001, ""), "page_size", "1001 is not within 0 and 1000"),
        invalid(
            attempts(0, "1.x\u{7}"),
            "page_token",
            "\"1.x\\u{7}\" is not the next_page_token of an earlier page",
        ),
        invalid(attempts(0, "7"), "page_token", "\"7\" is not the next_page_token of an earlier page"),
        invalid(units(&[], 1_001, ""), "page_size", "1001 is not within 0 and 1000"),
        invalid(units(&[], 0, "-1"), "page_token", "\"-1\" is not the next_page_token of an earlier page"),
        invalid(units(&[1, 0], 0, ""), "states[1]", "0 is not a state of units: use WAITING (1)"),
        invalid(units(&[7], 0, ""), "states[0]", "7 is not a state of units"),
        invalid(units(&[1; 9], 0, ""), "states", "9 entries, 0 to 8 are allowed"),
        // Of the job that waits there is nothing to run again.
        refused(rerun(&"t".repeat(129), ""), "token", Code::FailedPrecondition, "\"waits\" has not ended"),
        refused(rerun("", "no name"), "name", Code::FailedPrecondition, "\"waits\" has not ended"),
        invalid(cancel(&"t".repeat(129), 1), "token", "129 bytes"),
        invalid(cancel("", 0), "jobs", "0 jobs, 1 to 1000 are allowed"),
        invalid(cancel("", 1_001), "jobs", "1001 jobs, 1 to 1000 are allowed"),
        invalid(logs(1, 0, 0), "unit", "1 is not within 0 and 0"),
        invalid(logs(u32::MAX, 0, 0), "unit", "4294967295 is not within"),
        invalid(logs(0, 1, 0), "task", "1 is not within 0 and 0"),
        refused(logs(0, 0, 7), "attempt", Code::NotFound, "attempt \"7 of unit 0 of job waits\" does not"),
    ]);
    all
}

type SetText = fn(&str) -> Call;

/// Every name and label with hostile text, with NUL, and with a mebibyte of text.
pub fn text_cases() -> Vec<Case> {
    let fields: &[(&str, SetText)] = &[
        ("jobs[0].name", |t| submit(|r| r.jobs[0].name = t.to_owned())),
        ("jobs[0].name_prefix", |t| submit(|r| r.jobs[0].name_prefix = t.to_owned())),
        ("jobs[0].queue", |t| submit(|r| r.jobs[0].queue = t.to_owned())),
        ("jobs[0].spec.labels", |t| spec(|s| drop(s.labels.insert(t.to_owned(), String::new())))),
        ("jobs[0].spec.labels", |t| spec(|s| drop(s.labels.insert("a".to_owned(), t.to_owned())))),
        ("jobs[0].spec.groups[0].name", |t| group(|g| g.name = t.to_owned())),
        ("jobs[0].spec.groups[0].resources.other", |t| {
            resources(|r| {
                r.other.insert(t.to_owned(), 1);
            })
        }),
        ("jobs[0].spec.groups[0].resources.devices.models", |t| devices(&[t], Some(Amount::Count(1)))),
        ("jobs[0].spec.groups[0].process.env[0].name", |t| process(|p| p.env = vec![env(t, plain(""))])),
        ("jobs[0].spec.groups[0].process.env[0].value_from.name", |t| {
            process(|p| p.env = vec![env("A", secret(t, "k"))])
        }),
        ("jobs[0].spec.groups[0].process.env[0].value_from.key", |t| {
            process(|p| p.env = vec![env("A", secret("s", t))])
        }),
        ("jobs[0].spec.groups[0].container.image", |t| container(t, |_| {})),
        ("jobs[0].spec.constraints.regions_allowed[0]", |t| {
            constraints(|c| c.regions_allowed = vec![t.to_owned()])
        }),
        ("jobs[0].spec.constraints.pools", |t| constraints(|c| c.pools = vec![t.to_owned()])),
        ("jobs[0].spec.constraints.node_labels", |t| {
            constraints(|c| drop(c.node_labels.insert(t.to_owned(), String::new())))
        }),
        ("jobs[0].spec.constraints.tolerations[0].key", |t| {
            constraints(|c| c.tolerations = vec![v1::Toleration { key: t.to_owned(), value: None }])
        }),
        ("jobs[0].spec.display_name", |t| spec(|s| s.display_name = t.to_owned())),
        ("jobs[0].spec.required_features", |t| spec(|s| s.required_features = vec![t.to_owned()])),
    ];
    let texts = ["a\u{202e}b", "a\u{0}b", "a\u{200b}", "a\nb", "\u{1b}[31m", &"n".repeat(1 << 20)];
    let mut all = Vec::new();
    for (field, set) in fields {
        all.extend(texts.iter().map(|text| invalid(set(text), field, "")));
    }
    all
}

#[tokio::test]
async fn error_of_many_fields_reaches_the_client_in_any_script() {
    let broker = Broker::start();
    let client = broker.client();
    // Three bytes per character, tripled by percent encoding: twenty of these exceed the headers that a
    // client accepts.
    let vars = (0..30).map(|_| env(&"重庆".repeat(40), plain("")));
    let Call::Submit(request) = process(|p| p.env = vars.collect()) else { panic!("a submit") };
    let status = client.jobs().submit(request).await.expect_err("no environment names");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations =
        tonic_types::StatusExt::get_details_bad_request(&status).expect("fields").field_violations;
    assert_eq!(violations[0].field, "jobs[0].spec.groups[0].process.env[0].name");
    assert!(violations.len() > 5, "{violations:?}");
    broker.check_health(&client).await;
}

#[tokio::test]
async fn token_of_the_same_request_returns_the_same_jobs_and_of_another_is_refused() {
    let broker = Broker::start();
    let client = broker.client();
    let first = waiting_job(&client, "first").await;
    let mut request = valid();
    request.token = "once".to_owned();
    let spec = request.jobs[0].spec.as_mut().expect("a spec");
    spec.depends_on = vec![v1::Dependency { job_id: first, ..Default::default() }];
    let given = client.jobs().submit(request.clone()).await.expect("accepted").into_inner();
    // Its dependency now ends with the wrong outcome. The repeated request still returns the jobs.
    let job = v1::JobRef { id: first, ..Default::default() };
    let cancel = v1::CancelRequest { jobs: vec![job], ..Default::default() };
    client.jobs().cancel(cancel).await.expect("cancelled");
    let again = client.jobs().submit(request.clone()).await.expect("repeated").into_inner();
    assert_eq!(again.jobs, given.jobs);
    request.jobs[0].name = "other".to_owned();
    let status = client.jobs().submit(request.clone()).await.expect_err("the token is used");
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    request.token = "fresh".to_owned();
    let status = client.jobs().submit(request).await.expect_err("its dependency has failed");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(
        status
            .message()
            .contains("job/default/first has been cancelled, which is not what the condition asks"),
        "{status:?}"
    );
}
