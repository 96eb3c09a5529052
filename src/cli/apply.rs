//! `weir apply`: creates or updates the queues of a file.

use std::collections::BTreeMap;

use super::connect::new_token;
use super::output::{announce, report, thousandths};
use super::queue_file::read_queues;
use super::{Connect, Failure, input};
use crate::api::proto::v1;
use crate::model::amount;
use crate::model::queue::default_settings;

/// Create or update queues from a file.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir apply queues.yaml\n  weir apply -f - < queues.yaml\n\nqueues.yaml:\n  queues:\n  - name: chongqing\n    limit: {devices: '64'}\n  - name: chongqing/yubei\n    weight: 3\n    limit: {cpus: '500', memory: 2Ti}\n\nFields: name, weight, guarantee, limit, max_run and lease (defaults of its jobs): see `weir explain queues`. An existing queue is updated to\nexactly these values; absent fields return to their defaults, and each change is printed.\nweight and guarantee are stored, but have no effect yet."
)]
pub struct Apply {
    #[command(flatten)]
    file: input::FileArgument,
}

/// The fields of a queue as they are printed, by the names in the file. Absent fields have their defaults.
fn fields(queue: &v1::Queue) -> BTreeMap<String, String> {
    let default = default_settings(&queue.name);
    let weight = Some(queue.weight).filter(|weight| *weight > 0).unwrap_or(default.weight);
    let time = |ms: u64, default_ms| amount::duration(if ms > 0 { ms } else { default_ms });
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
    for (field, amounts) in [("guarantee", guarantee), ("limit", limit)] {
        let amounts = [
            ("cpus", amounts.cpu_millis.map(thousandths)),
            ("memory", amounts.memory_bytes.map(amount::bytes)),
            ("storage", amounts.storage_bytes.map(amount::bytes)),
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
        let queues = read_queues(&text).map_err(|problems| input::failure(&file, &problems))?;
        let client = connect.client()?;
        let existing = client.queues().list_queues(v1::ListQueuesRequest {}).await?.into_inner().queues;
        for read in &queues.queues {
            let (mut queue, name, token) = (read.queue.clone(), read.queue.name.clone(), new_token());
            if has_share(&queue) {
                report(&format!("queue/{name}: weight and guarantee are stored, but have no effect yet"));
            }
            let result = match existing.iter().find(|current| current.name == name) {
                Some(current) => {
                    let changes = changes(current, &queue);
                    if changes.is_empty() {
                        announce(&format!("queue/{name} unchanged"))?;
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
            let done = result.map_err(|status| {
                let failure = Failure::from(status);
                let problems = queues.located(read, &failure.fields);
                let named = Failure { message: format!("queue/{name}: {}", failure.message), ..failure };
                input::relocated(named, &file, &problems)
            })?;
            announce(&format!("queue/{name} {done}"))?;
        }
        Ok(0)
    }
}
