//! Pools and nodes: unknown names, invalid modes and deadlines, attempts that have ended.

use tonic::Code;
use weir::api::proto::v1;

use crate::table::{Call, Case, invalid, refused};

fn text(value: &str) -> String {
    value.to_owned()
}

/// Bad values of everything about pools.
pub fn cases() -> Vec<Case> {
    let cordon = |token: &str, pool: &str, node: &str| {
        Call::Cordon(v1::CordonRequest { token: text(token), pool: text(pool), node: text(node) })
    };
    let uncordon = |token: &str, pool: &str, node: &str| {
        Call::Uncordon(v1::UncordonRequest { token: text(token), pool: text(pool), node: text(node) })
    };
    let drain = |token: &str, pool: &str, mode: i32, deadline_ms: u64| {
        Call::Drain(v1::DrainRequest { token: text(token), pool: text(pool), mode, deadline_ms })
    };
    let delete = |token: &str, name: &str, revision: u64| {
        Call::DeletePool(v1::DeletePoolRequest { token: text(token), name: text(name), revision })
    };
    let abandon = |token: &str, attempt: &str| {
        Call::Abandon(v1::AbandonRequest { token: text(token), attempt: text(attempt) })
    };
    let nodes = |pool: &str, page_size: u32, page_token: &str| {
        Call::ListNodes(v1::ListNodesRequest { pool: text(pool), page_size, page_token: text(page_token) })
    };
    let defrag = |pool: &str, labels: usize, moves_max: u32| {
        let labels = || (0..labels).map(|at| (at.to_string(), String::new())).collect();
        let request = v1::PlanDefragRequest { pool: text(pool), moves_max, ..Default::default() };
        [
            Call::PlanDefrag(v1::PlanDefragRequest { preemptible: labels(), ..request.clone() }),
            Call::PlanDefrag(v1::PlanDefragRequest { checkpointed: labels(), ..request }),
        ]
    };
    let [preemptible, checkpointed] = defrag("normal", 65, 0);
    let [moves, _] = defrag("normal", 0, 10_001);
    let long = "t".repeat(129);
    let mut all = vec![
        invalid(nodes("normal", 1_001, ""), "page_size", "1001 is not within 0 and 1000"),
        invalid(
            nodes("normal", 0, "\u{202e}1"),
            "page_token",
            "\"\\u{202e}1\" is not the next_page_token of an earlier page",
        ),
        invalid(
            nodes("normal", 0, "4294967296"),
            "page_token",
            "is not the next_page_token of an earlier page",
        ),
        refused(nodes("nope", 0, ""), "pool", Code::NotFound, "pool \"nope\" does not exist"),
        invalid(preemptible, "preemptible", "65 labels, at most 64 are allowed"),
        invalid(checkpointed, "checkpointed", "65 labels, at most 64 are allowed"),
        invalid(moves, "moves_max", "10001 is not within 0 and 10000"),
        invalid(cordon(&long, "normal", ""), "token", "129 bytes, at most 128"),
        invalid(uncordon(&long, "normal", ""), "token", "129 bytes, at most 128"),
        refused(cordon("", "normal", "nope"), "node", Code::NotFound, "node \"nope\" does not exist"),
        refused(uncordon("", "normal", "nope"), "node", Code::NotFound, "node \"nope\" does not exist"),
        invalid(drain(&long, "normal", 1, 0), "token", "129 bytes, at most 128"),
        invalid(drain("", "normal", 0, 0), "mode", "0 is not a drain mode: use WAIT or EVICT"),
        invalid(drain("", "normal", 7, 0), "mode", "7 is not a drain mode: use WAIT or EVICT"),
        invalid(drain("", "normal", 1, u64::MAX), "deadline_ms", "is not within 0 and 31622400000"),
        invalid(delete(&long, "normal", 0), "token", "129 bytes, at most 128"),
        refused(delete("", "normal", 999_999), "revision", Code::Aborted, "not 999999"),
        refused(delete("", "normal", 0), "name", Code::FailedPrecondition, "its agent is connected"),
        invalid(abandon(&long, "aaaaaaaaaa-1-0-1"), "token", "129 bytes, at most 128"),
        refused(
            abandon("", "aaaaaaaaaa-1-0-1"),
            "attempt",
            Code::NotFound,
            "live attempt \"aaaaaaaaaa-1-0-1\" does not exist",
        ),
    ];
    for attempt in ["", "1", "aaaaaaaaaa-1-0", "aaaaaaaaaa-01-0-1", "aaaaaaaaaa-1-0-1-1", "\u{202e}"] {
        all.push(invalid(abandon("", attempt), "attempt", "is not a"));
    }
    all.push(invalid(abandon("", &"a".repeat(1 << 20)), "attempt", "is not a"));
    for name in ["nope", "", "\u{202e}", &"n".repeat(1 << 20)] {
        let get = Call::GetPool(v1::GetPoolRequest { name: text(name) });
        all.push(refused(get, "name", Code::NotFound, "does not exist"));
        for (pool, node, field) in [(name, "n1", "pool"), ("normal", name, "name")] {
            let get = Call::GetNode(v1::GetNodeRequest { pool: text(pool), name: text(node) });
            all.push(refused(get, field, Code::NotFound, "does not exist"));
        }
        let [plan, _] = defrag(name, 0, 0);
        all.push(refused(plan, "pool", Code::NotFound, "does not exist"));
        all.push(refused(cordon("", name, ""), "pool", Code::NotFound, "does not exist"));
        all.push(refused(uncordon("", name, ""), "pool", Code::NotFound, "does not exist"));
        all.push(refused(delete("", name, 0), "name", Code::NotFound, "does not exist"));
        all.push(refused(drain("", name, 1, 0), "pool", Code::NotFound, "does not exist"));
    }
    all
}
