//! `weir apply`: queues from a file.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::connect::new_token;
use super::exit::INVALID;
use super::output::print;
use super::{Connect, Failure, quantity, spec_file};
use crate::api::proto::v1;

/// Creates or updates queues.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  weir apply queues.yaml\n\nwith\n  queues:\n  - name: chongqing\n    limit: {devices: '64'}\n  - name: chongqing/yubei\n    weight: 3\n    limit: {cpus: '500', memory: 2Ti}"
)]
pub struct Apply {
    /// YAML or JSON.
    file: String,
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
    guarantee: BTreeMap<String, String>,
    #[serde(default)]
    limit: BTreeMap<String, String>,
    max_run: Option<String>,
}

/// Amounts by kind: cpus, memory, storage, devices.
fn amounts(field: &str, map: &BTreeMap<String, String>) -> Result<v1::Limits, Failure> {
    let mut limits = v1::Limits::default();
    for (kind, text) in map {
        let invalid = |error: String| Failure::new(INVALID, format!("{field}.{kind}: {error}"));
        match kind.as_str() {
            "cpus" => limits.cpu_millis = Some(quantity::cpus(text).map_err(invalid)?),
            "memory" => limits.memory_bytes = Some(quantity::bytes(text).map_err(invalid)?),
            "storage" => limits.storage_bytes = Some(quantity::bytes(text).map_err(invalid)?),
            "devices" => limits.device_millis = Some(quantity::cpus(text).map_err(invalid)?),
            _ => return Err(invalid("is not a kind: use cpus, memory, storage or devices".to_owned())),
        }
    }
    Ok(limits)
}

impl Apply {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let text = std::fs::read_to_string(&self.file)
            .map_err(|error| Failure::new(INVALID, format!("{}: {error}", self.file)))?;
        let invalid = |error: String| Failure::new(INVALID, format!("{}: {error}", self.file));
        let client = connect.client()?;
        let existing = client.queues().list_queues(v1::ListQueuesRequest {}).await?.into_inner().queues;
        for document in spec_file::read_documents(&text).map_err(invalid)? {
            let file: QueuesFile = spec_file::strict(document).map_err(invalid)?;
            for queue in file.queues {
                let guarantee = amounts("guarantee", &queue.guarantee)?;
                let message = v1::Queue {
                    weight: queue.weight,
                    guarantee: Some(v1::Resources {
                        cpu_millis: guarantee.cpu_millis.unwrap_or(0),
                        memory_bytes: guarantee.memory_bytes.unwrap_or(0),
                        storage_bytes: guarantee.storage_bytes.unwrap_or(0),
                        device_millis: guarantee.device_millis.unwrap_or(0),
                        other: BTreeMap::new(),
                    }),
                    limit: Some(amounts("limit", &queue.limit)?),
                    max_run_ms_default: queue
                        .max_run
                        .as_deref()
                        .map_or(Ok(0), quantity::duration_ms)
                        .map_err(invalid)?,
                    revision: existing
                        .iter()
                        .find(|kept| kept.name == queue.name)
                        .map_or(0, |kept| kept.revision),
                    name: queue.name.clone(),
                    ..v1::Queue::default()
                };
                let token = new_token();
                if existing.iter().any(|kept| kept.name == queue.name) {
                    client
                        .queues()
                        .update_queue(v1::UpdateQueueRequest { token, queue: Some(message) })
                        .await?;
                } else {
                    client
                        .queues()
                        .create_queue(v1::CreateQueueRequest { token, queue: Some(message) })
                        .await?;
                }
                print(&format!("queue/{} applied\n", queue.name))?;
            }
        }
        Ok(0)
    }
}
