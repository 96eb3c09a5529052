//! The stable codes of reasons, errors and outcomes, each with its meaning and what helps.

use crate::api::error;
use crate::model::attempt::OutcomeKind;
use crate::model::exchange::RefusedCode;
use crate::model::reason::{JobReason, PoolReason};
use crate::state::rejection::Rejection;

/// A code, its meaning, and what helps.
pub(super) type Row = (&'static str, &'static str, &'static str);

/// What each table is about, its last column, and its rows.
pub(super) fn tables() -> Vec<(&'static str, &'static str, Vec<Row>)> {
    let agent = |(code, meaning, help): &(RefusedCode, _, _)| (code.code(), *meaning, *help);
    let outcome = |kind: &OutcomeKind| (kind.code(), kind.meaning(), retried(*kind));
    vec![
        ("Why a pool does not take a job", "remedy", PoolReason::manual().to_vec()),
        ("Why a job waits, independent of pools", "remedy", JobReason::manual().to_vec()),
        ("Why a request is rejected", "remedy", Rejection::MANUAL.into_iter().chain(error::MANUAL).collect()),
        ("How an attempt ends", "retried", OutcomeKind::ALL.iter().map(outcome).collect()),
        ("Why an agent is rejected", "remedy", AGENTS.iter().map(agent).collect()),
    ]
}

fn retried(kind: OutcomeKind) -> &'static str {
    if kind.is_eviction() || kind == OutcomeKind::LeaseEnded {
        "always, without counting as an attempt"
    } else if matches!(kind, OutcomeKind::Succeeded | OutcomeKind::Cancelled) {
        "no"
    } else {
        "if `retry` allows it"
    }
}

/// The row of a code, in any case, after the name of its last column.
pub(super) fn find(code: &str) -> Option<(&'static str, Row)> {
    let of = |(_, column, rows): (_, &'static str, Vec<Row>)| {
        let row = rows.into_iter().find(|(known, ..)| known.eq_ignore_ascii_case(code));
        row.map(|row| (column, row))
    };
    tables().into_iter().find_map(of)
}

/// All codes.
pub(super) fn codes() -> Vec<&'static str> {
    tables().into_iter().flat_map(|(.., rows)| rows).map(|(code, ..)| code).collect()
}

/// Why the broker refuses an agent.
const AGENTS: [(RefusedCode, &str, &str); 6] = [
    (
        RefusedCode::PoolClaimed,
        "the pool's name is bound to another agent, or served from another copy of this one's state folder",
        "use that agent's state folder, or another name",
    ),
    (
        RefusedCode::InvalidPool,
        "the hello message, or the pool that it declares, is invalid",
        "correct the agent's file",
    ),
    (
        RefusedCode::Superseded,
        "a newer session is the active session of the pool",
        "nothing: the newer session continues",
    ),
    (
        RefusedCode::UnknownWork,
        "the pool runs attempts that this journal never ordered",
        "restore the newer journal, if this one is an older copy",
    ),
    (RefusedCode::ProtocolError, "a frame was lost or is invalid", "nothing: the agent connects again"),
    (RefusedCode::Unavailable, "the broker can't write its journal now", "see the broker's log"),
];
