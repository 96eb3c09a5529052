//! What `weir describe` prints of a pool.

use super::{push_field, push_text};
use crate::api::proto::v1;
use crate::cli::get::pool_state;
use crate::cli::language::translated;
use crate::cli::output::{age, bytes, thousandths, time};

pub(super) fn pool_text(pool: &v1::Pool, free_blocks: &[v1::FreeBlock]) -> String {
    let (total, held) = (pool.total.clone().unwrap_or_default(), pool.committed.clone().unwrap_or_default());
    let mut out = String::new();
    push_field(&mut out, "pool", &pool.name);
    push_field(&mut out, "region", &pool.region);
    push_text(
        &mut out,
        "backend",
        &format!("{}{}", pool.backend, if pool.real { "" } else { " (simulated)" }),
    );
    push_text(
        &mut out,
        "state",
        &format!("{}{}", pool_state(pool), if pool.connected { "" } else { ", agent not connected" }),
    );
    if let Some(since) = pool.not_ready_since_unix_ms {
        push_text(&mut out, "since", &format!("{} ({} ago)", time(since), age(since)));
    }
    push_field(&mut out, "nodes", &pool.nodes.to_string());
    push_text(
        &mut out,
        "cpus",
        &format!("{} of {} allocated", thousandths(held.cpu_millis), thousandths(total.cpu_millis)),
    );
    push_text(
        &mut out,
        "memory",
        &format!("{} of {} allocated", bytes(held.memory_bytes), bytes(total.memory_bytes)),
    );
    push_text(
        &mut out,
        "devices",
        &format!("{} of {} allocated", thousandths(held.device_millis), thousandths(total.device_millis)),
    );
    for block in free_blocks {
        push_text(&mut out, "free", &block_text(block));
    }
    if free_blocks.is_empty() && total.device_millis > 0 {
        push_text(&mut out, "free", "no whole device on any node");
    }
    push_field(&mut out, "attempts", &pool.attempts.to_string());
    for (key, value) in &pool.labels {
        push_field(&mut out, "label", &format!("{key}={value}"));
    }
    for note in &pool.notes {
        push_field(&mut out, "note", &translated(note));
    }
    out
}

/// Formats free whole devices: `8 devices on one node: 12 nodes (A100-80G)`.
fn block_text(block: &v1::FreeBlock) -> String {
    let count = |count: u32, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let (devices, nodes) = (count(block.devices, "device"), count(block.nodes, "node"));
    format!("{devices} on one node: {nodes} ({})", block.model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_of_a_pool_lists_its_free_blocks_or_that_it_has_none() {
        let total = v1::Resources { device_millis: 16_000, ..Default::default() };
        let pool = v1::Pool { total: Some(total), ..Default::default() };
        let block = |devices: u32, nodes: u32| v1::FreeBlock { model: "A100".to_owned(), devices, nodes };
        let free = |pool: &v1::Pool, blocks: &[v1::FreeBlock]| {
            let text = pool_text(pool, blocks);
            let lines = text.lines().filter_map(|line| line.strip_prefix("free"));
            lines.map(|line| line.trim().to_owned()).collect::<Vec<_>>()
        };
        let blocks = [block(8, 12), block(1, 1)];
        let listed = ["8 devices on one node: 12 nodes (A100)", "1 device on one node: 1 node (A100)"];
        assert_eq!(free(&pool, &blocks), listed);
        assert_eq!(free(&pool, &[]), ["no whole device on any node"]);
        assert_eq!(free(&v1::Pool::default(), &[]), [""; 0], "the pool has no devices");
    }
}
