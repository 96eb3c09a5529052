//! What `weir describe` prints of a node.

use super::{pairs, push_field, push_given, push_text};
use crate::api::proto::v1;
use crate::cli::get::node_state;
use crate::cli::output::{bytes, now_ms, span, table, thousandths, time};

pub(super) fn node_text(node: &v1::Node) -> String {
    let (total, held) = (node.total.clone().unwrap_or_default(), node.committed.clone().unwrap_or_default());
    let mut out = String::new();
    push_field(&mut out, "node", &node.name);
    push_field(&mut out, "pool", &node.pool);
    push_field(&mut out, "state", node_state(node));
    if let Some(until) = node.quarantined_until_unix_ms {
        let left = span(until.saturating_sub(now_ms()));
        push_text(
            &mut out,
            "until",
            &format!("{} (in {left}): attempts of several jobs failed here", time(until)),
        );
    }
    push_given(&mut out, "labels", &pairs(&node.labels));
    let taints: Vec<String> =
        node.taints.iter().map(|taint| format!("{}={}", taint.key, taint.value)).collect();
    push_given(&mut out, "taints", &taints.join(","));
    let of = |held: String, total: String| format!("{held} of {total} allocated");
    push_text(&mut out, "cpus", &of(thousandths(held.cpu_millis), thousandths(total.cpu_millis)));
    push_text(&mut out, "memory", &of(bytes(held.memory_bytes), bytes(total.memory_bytes)));
    if total.storage_bytes > 0 {
        push_text(&mut out, "storage", &of(bytes(held.storage_bytes), bytes(total.storage_bytes)));
    }
    for (kind, amount) in &total.other {
        let used = held.other.get(kind).copied().unwrap_or_default();
        push_text(&mut out, kind, &of(used.to_string(), amount.to_string()));
    }
    push_text(&mut out, "devices", &of(thousandths(held.device_millis), thousandths(total.device_millis)));
    if let Some(stranded) = node.stranded_millis {
        push_text(
            &mut out,
            "stranded",
            &format!("{} free that no waiting task can use", thousandths(stranded)),
        );
    }
    push_field(&mut out, "tasks", &node.tasks.to_string());
    if !node.devices.is_empty() {
        let mut rows = vec![["DEVICE", "MODEL", "MEMORY", "ALLOCATED", "HEALTH"].map(str::to_owned).to_vec()];
        rows.extend(node.devices.iter().enumerate().map(device_row));
        out.push('\n');
        out.push_str(&table(&rows));
    }
    out
}

fn device_row((index, device): (usize, &v1::Device)) -> Vec<String> {
    let whole = device.millis.unwrap_or(1_000);
    vec![
        index.to_string(),
        device.model.clone(),
        bytes(device.memory_bytes),
        format!("{}/{}", thousandths(u64::from(device.committed_millis)), thousandths(u64::from(whole))),
        if device.healthy { "healthy" } else { "unhealthy" }.to_owned(),
    ]
}
