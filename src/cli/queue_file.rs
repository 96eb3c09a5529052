//! Queue files: what fields they have, and how they become messages of the API and are made of them.

use std::cell::LazyCell;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::input::{Positions, Problem, Problems, Text, is_default, joined, read_documents};
use super::output::value_of;
use super::reference::{Bytes, Cpus, DeviceCount, Duration};
use super::{Failure, quantity};
use crate::api::proto::v1;
use crate::model::amount;
use crate::model::validate::{self, Violation, Violations};

/// The queues of a file. A file may also contain one queue, or a list of queues without `queues:`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "queues")]
pub struct QueuesFile {
    /// Queues to create or update. Required.
    queues: Vec<QueueFile>,
}

/// A queue: whose jobs share limits. A queue that exists is updated to exactly these values: absent fields return to their
/// defaults.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "queue")]
pub struct QueueFile {
    /// Path of names joined by `/`; the queue above is the path without its last name, and must exist. Required.
    name: String,
    /// Share among the queues beside it, 1 to 1,000,000. Stored, but without an effect yet. Default: 1.
    #[serde(skip_serializing_if = "is_default")]
    weight: u32,
    /// What the queue can always use. Stored, but without an effect yet.
    #[serde(skip_serializing_if = "is_default")]
    guarantee: AmountsFile,
    /// What the jobs of the queue and of those below it can use at most at a time. Default: no limit.
    #[serde(skip_serializing_if = "is_default")]
    limit: AmountsFile,
    /// Longest run of attempts whose job names none, up to 366 days. Default: 24 hours.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Duration>")]
    max_run: Option<String>,
    /// Lease of attempts whose job names none, 20 s to 24 h. Default: 5 minutes.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Duration>")]
    lease: Option<String>,
    /// Ignored: what `weir get queues -o yaml` prints can be applied again.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<BTreeMap<String, Value>>")]
    status: Option<IgnoredAny>,
}

/// Amounts by kind.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "amounts")]
struct AmountsFile {
    /// CPUs.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Cpus>")]
    cpus: Option<Text>,
    /// Memory.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Bytes>")]
    memory: Option<Text>,
    /// Storage.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Bytes>")]
    storage: Option<Text>,
    /// Accelerators of any model.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<DeviceCount>")]
    devices: Option<Text>,
}

/// A queue of a file, with where it is.
pub struct FileQueue {
    pub queue: v1::Queue,
    document: usize,
    /// The path in the document: `queues[3]`.
    path: String,
}

/// The queues of a file, and its text.
pub struct Queues {
    text: String,
    pub queues: Vec<FileQueue>,
}

impl Queues {
    /// What the broker reports about a queue, with the fields and their positions in the file.
    pub fn located(&self, queue: &FileQueue, fields: &[(String, String)]) -> Vec<Problem> {
        let mut problems = Problems::default();
        for (field, description) in fields {
            problems.push(&joined(&queue.path, &in_file(field)), description);
        }
        let positions = Positions::of(&self.text);
        problems.located(|field| positions.find(queue.document, field))
    }
}

/// The path of a field in a file, for its path in the API.
fn in_file(path: &str) -> String {
    super::job_file::in_file(path.strip_prefix("queue.").unwrap_or(path), |_, _| None)
}

/// Parses the queues of a file, and checks everything that can be checked without a broker.
///
/// # Errors
/// All problems of the file, up to one screen.
pub fn read_queues(text: &str) -> Result<Queues, Vec<Problem>> {
    let whole = |message: String| vec![Problem::of_file(message)];
    let (mut queues, mut found) = (Vec::new(), Vec::new());
    let positions = LazyCell::new(|| Positions::of(text));
    for (document, value) in read_documents(text).map_err(whole)?.into_iter().enumerate() {
        let mut problems = Problems::default();
        let mut read =
            |path: String, value: Value| problems.read::<QueueFile>(&path, value).map(|file| (path, file));
        let files: Vec<(String, QueueFile)> = match value {
            Value::Null => continue,
            Value::Array(list) => {
                let elements = list.into_iter().enumerate();
                elements.filter_map(|(index, value)| read(format!("[{index}]"), value)).collect()
            }
            // Any other map is meant as this one, and its fields are wrong.
            Value::Object(ref map) if !map.contains_key("name") => {
                let file = problems.read::<QueuesFile>("", value);
                let queues = file.into_iter().flat_map(|file| file.queues).enumerate();
                queues.map(|(index, file)| (format!("queues[{index}]"), file)).collect()
            }
            single => read(String::new(), single).into_iter().collect(),
        };
        for (path, file) in files {
            let queue = queue_message(&file, &path, &mut problems);
            check(&queue, &path, &mut problems);
            queues.push(FileQueue { queue, document, path });
        }
        if !problems.is_empty() {
            found.extend(problems.located(|field| positions.find(document, field)));
        }
    }
    if !found.is_empty() {
        return Err(found);
    }
    if queues.is_empty() {
        return Err(whole("the file contains no queue".to_owned()));
    }
    Ok(Queues { text: text.to_owned(), queues })
}

/// Checks what the broker would check, too.
fn check(queue: &v1::Queue, path: &str, problems: &mut Problems) {
    let mut out = Violations::default();
    match crate::api::convert::queue_spec(Some(queue)) {
        Ok(spec) => validate::queue_spec("queue", &spec, &mut out),
        Err(violations) => out.extend(violations),
    }
    for Violation { field, description } in out.finish().err().unwrap_or_default() {
        problems.push(&joined(path, &in_file(&field)), description);
    }
}

/// Parses amounts by resource kind.
fn amounts(file: &AmountsFile, path: &str, problems: &mut Problems) -> v1::Limits {
    let mut read = |field: &str, text: &Option<Text>, parse: fn(&str) -> Result<u64, String>| {
        let found = parse(&text.as_ref()?.0);
        found.map_err(|message| problems.push(&joined(path, field), message)).ok()
    };
    v1::Limits {
        cpu_millis: read("cpus", &file.cpus, quantity::cpus),
        memory_bytes: read("memory", &file.memory, quantity::bytes),
        storage_bytes: read("storage", &file.storage, quantity::bytes),
        device_millis: read("devices", &file.devices, quantity::device_count),
    }
}

fn queue_message(file: &QueueFile, path: &str, problems: &mut Problems) -> v1::Queue {
    let guarantee = amounts(&file.guarantee, &joined(path, "guarantee"), problems);
    let limit = amounts(&file.limit, &joined(path, "limit"), problems);
    let mut time = |field: &str, text: &Option<String>| {
        let Some(text) = text else { return 0 };
        // Neither a run nor a lease of no time is one.
        quantity::run_time_ms(text).unwrap_or_else(|message| {
            problems.push(&joined(path, field), message);
            0
        })
    };
    v1::Queue {
        name: file.name.clone(),
        weight: file.weight,
        guarantee: Some(v1::Resources {
            cpu_millis: guarantee.cpu_millis.unwrap_or(0),
            memory_bytes: guarantee.memory_bytes.unwrap_or(0),
            storage_bytes: guarantee.storage_bytes.unwrap_or(0),
            device_millis: guarantee.device_millis.unwrap_or(0),
            other: BTreeMap::new(),
        }),
        limit: Some(limit),
        max_run_ms_default: time("max_run", &file.max_run),
        lease_ms_default: time("lease", &file.lease),
        ..v1::Queue::default()
    }
}

/// A queue as JSON or YAML: its entry in a file, and its state as `status`.
///
/// # Errors
/// If a value can't be represented in JSON.
pub fn queue_value(queue: &v1::Queue) -> Result<Value, Failure> {
    let mut value = value_of(&queue_file(queue))?;
    let status = json!({ "jobs": queue.jobs, "usage": queue.usage, "revision": queue.revision });
    if let Some(value) = value.as_object_mut() {
        value.insert("status".to_owned(), status);
    }
    Ok(value)
}

fn queue_file(queue: &v1::Queue) -> QueueFile {
    let text = |amount: Option<u64>, show: fn(u64) -> String| amount.map(|amount| Text(show(amount)));
    let set = |amount: u64| Some(amount).filter(|amount| *amount > 0);
    let amounts = |limits: v1::Limits| AmountsFile {
        cpus: text(limits.cpu_millis, amount::thousandths),
        memory: text(limits.memory_bytes, amount::bytes),
        storage: text(limits.storage_bytes, amount::bytes),
        devices: text(limits.device_millis, amount::thousandths),
    };
    let guarantee = queue.guarantee.clone().unwrap_or_default();
    QueueFile {
        name: queue.name.clone(),
        weight: queue.weight,
        guarantee: amounts(v1::Limits {
            cpu_millis: set(guarantee.cpu_millis),
            memory_bytes: set(guarantee.memory_bytes),
            storage_bytes: set(guarantee.storage_bytes),
            device_millis: set(guarantee.device_millis),
        }),
        limit: amounts(queue.limit.unwrap_or_default()),
        max_run: set(queue.max_run_ms_default).map(amount::duration),
        lease: set(queue.lease_ms_default).map(amount::duration),
        status: None,
    }
}
