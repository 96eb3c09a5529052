//! `weir apply`: creates or updates the queues of a file.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::connect::new_token;
use super::input::Text;
use super::output::{bytes, print, report, thousandths};
use super::{Connect, Failure, input, quantity};
use crate::api::proto::v1;
use crate::model::queue::default_settings;
use crate::model::validate::quote;

/// Create or update queues from a file.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir apply queues.yaml\n  weir apply -f - < queues.yaml\n\nqueues.yaml:\n  queues:\n  - name: chongqing\n    limit: {devices: '64'}\n  - name: chongqing/yubei\n    weight: 3\n    limit: {cpus: '500', memory: 2Ti}\n\nFields: name, weight, guarantee, limit, max_run (default run time limit of its jobs). Amounts: cpus,\nmemory, storage, devices. An existing queue is updated to\nexactly these values; absent fields return to their defaults, and each change is printed.\nweight and guarantee are stored, but have no effect yet."
)]
pub struct Apply {
    #[command(flatten)]
    file: input::FileArgument,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueuesFile {
    queues: Vec<QueueFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueFile {
    name: String,
    #[serde(default)]
    weight: u32,
    #[serde(default)]
    guarantee: BTreeMap<String, Text>,
    #[serde(default)]
    limit: BTreeMap<String, Text>,
    max_run: Option<String>,
    lease: Option<String>,
}

/// Parses amounts by resource kind: cpus, memory, storage, devices.
fn amounts(field: &str, map: &BTreeMap<String, Text>) -> Result<v1::Limits, String> {
    let mut limits = v1::Limits::default();
    for (kind, Text(text)) in map {
        let invalid = |error: String| format!("{field}.{kind}: {error}");
        match kind.as_str() {
            "cpus" => limits.cpu_millis = Some(quantity::cpus(text).map_err(invalid)?),
            "memory" => limits.memory_bytes = Some(quantity::bytes(text).map_err(invalid)?),
            "storage" => limits.storage_bytes = Some(quantity::bytes(text).map_err(invalid)?),
            "devices" => {
                let wrong =
                    |_| invalid(format!("{} is not an amount of devices: write 8 or 0.5", quote(text)));
                limits.device_millis = Some(quantity::cpus(text).map_err(wrong)?);
            }
            _ => {
                let rule = "is not a resource kind: use cpus, memory, storage or devices";
                return Err(format!("{field}: {} {rule}", quote(kind)));
            }
        }
    }
    Ok(limits)
}

/// Parses the queues of a file.
fn read_queues(text: &str) -> Result<Vec<v1::Queue>, String> {
    let mut queues = Vec::new();
    for document in input::read_documents(text)? {
        if document.is_null() {
            continue;
        }
        let file: QueuesFile = input::strict(document)?;
        for (index, queue) in file.queues.into_iter().enumerate() {
            queues.push(queue_message(queue).map_err(|error| format!("queues[{index}].{error}"))?);
        }
    }
    if queues.is_empty() {
        return Err("the file contains no queue".to_owned());
    }
    Ok(queues)
}

fn queue_message(queue: QueueFile) -> Result<v1::Queue, String> {
    let guarantee = amounts("guarantee", &queue.guarantee)?;
    let max_run = queue.max_run.as_deref().map_or(Ok(0), quantity::duration_ms);
    let lease = queue.lease.as_deref().map_or(Ok(0), quantity::duration_ms);
    Ok(v1::Queue {
        name: queue.name,
        weight: queue.weight,
        guarantee: Some(v1::Resources {
            cpu_millis: guarantee.cpu_millis.unwrap_or(0),
            memory_bytes: guarantee.memory_bytes.unwrap_or(0),
            storage_bytes: guarantee.storage_bytes.unwrap_or(0),
            device_millis: guarantee.device_millis.unwrap_or(0),
            other: BTreeMap::new(),
        }),
        limit: Some(amounts("limit", &queue.limit)?),
        max_run_ms_default: max_run.map_err(|error| format!("max_run: {error}"))?,
        lease_ms_default: lease.map_err(|error| format!("lease: {error}"))?,
        ..v1::Queue::default()
    })
}

/// The fields of a queue as they are printed, by the names in the file. Absent fields have their defaults.
fn fields(queue: &v1::Queue) -> BTreeMap<String, String> {
    let default = default_settings(&queue.name);
    let weight = Some(queue.weight).filter(|weight| *weight > 0).unwrap_or(default.weight);
    let time = |ms: u64, default_ms| {
        humantime::format_duration(Duration::from_millis(if ms > 0 { ms } else { default_ms })).to_string()
    };
    let mut fields = BTreeMap::from([
        ("weight".to_owned(), weight.to_string()),
        ("max_run".to_owned(), time(queue.max_run_ms_default, default.max_run_ms_default)),
        ("lease".to_owned(), time(queue.lease_ms_default, default.lease_ms_default)),
    ]);
    let (guarantee, limit) = (queue.guarantee.clone().unwrap_or_default(), queue.limit.unwrap_or_default());
    let set = |amount: u64| Some(amount).filter(|amount| *amount > 0);
    let guarantee = v1::Limits {
        cpu_millis: set(guarantee.cpu_millis),
        memory_bytes: set(guarantee.memory_bytes),
        storage_bytes: set(guarantee.storage_bytes),
        device_millis: set(guarantee.device_millis),
    };
    // Bytes are exact here: two amounts that differ must not look alike.
    let exact = |amount: u64| {
        let short = bytes(amount);
        if quantity::bytes(&short) == Ok(amount) { short } else { amount.to_string() }
    };
    for (field, amounts) in [("guarantee", guarantee), ("limit", limit)] {
        let amounts = [
            ("cpus", amounts.cpu_millis.map(thousandths)),
            ("memory", amounts.memory_bytes.map(exact)),
            ("storage", amounts.storage_bytes.map(exact)),
            ("devices", amounts.device_millis.map(thousandths)),
        ];
        let shown = amounts
            .into_iter()
            .map(|(kind, amount)| (format!("{field}.{kind}"), amount.unwrap_or_else(|| "none".to_owned())));
        fields.extend(shown);
    }
    fields
}

/// What an update changes, such as `limit.cpus 8 → none`.
fn changes(current: &v1::Queue, wanted: &v1::Queue) -> Vec<String> {
    let (current, wanted) = (fields(current), fields(wanted));
    let differing = current.iter().zip(wanted.values()).filter(|((_, before), after)| before != after);
    differing.map(|((field, before), after)| format!("{field} {before} → {after}")).collect()
}

/// The queue asks for a share of the capacity.
fn has_share(queue: &v1::Queue) -> bool {
    let shown = fields(queue);
    shown["weight"] != "1"
        || shown.iter().any(|(field, amount)| field.starts_with("guarantee") && amount != "none")
}

impl Apply {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let file = self.file.name();
        let text = input::read_text(&file)?;
        // An error in the file must leave all queues unchanged, so parse all of it first.
        let queues = read_queues(&text).map_err(|error| input::in_file(&file, error))?;
        let client = connect.client()?;
        let existing = client.queues().list_queues(v1::ListQueuesRequest {}).await?.into_inner().queues;
        for mut queue in queues {
            let (name, token) = (queue.name.clone(), new_token());
            if has_share(&queue) {
                report(&format!("queue/{name}: weight and guarantee are stored, but have no effect yet"));
            }
            let result = match existing.iter().find(|current| current.name == name) {
                Some(current) => {
                    let changes = changes(current, &queue);
                    if changes.is_empty() {
                        print(&format!("queue/{name} unchanged\n"))?;
                        continue;
                    }
                    queue.revision = current.revision;
                    let request = v1::UpdateQueueRequest { token, queue: Some(queue) };
                    let updated = client.queues().update_queue(request).await;
                    updated.map(|_| format!("updated: {}", changes.join(", ")))
                }
                None => {
                    let request = v1::CreateQueueRequest { token, queue: Some(queue) };
                    client.queues().create_queue(request).await.map(|_| "created".to_owned())
                }
            };
            let done = result.map_err(|status| Failure::from(status).in_file(&file))?;
            print(&format!("queue/{name} {done}\n"))?;
        }
        Ok(0)
    }
}
