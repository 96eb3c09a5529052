//! The reference of stable reason and error codes, generated from the code.

use crate::api::error;
use crate::model::attempt::OutcomeKind;
use crate::model::exchange::RefusedCode;
use crate::model::reason::{JobReason, PoolReason};
use crate::state::rejection::Rejection;

/// Generates `docs/reference/reasons.md`.
pub fn manual() -> String {
    let mut text =
        "# Reasons\n\nStable codes, generated from the code: `weir admin reasons > docs/reference/reasons.md`.\n"
            .to_owned();
    let table = |title: &str, rows: &[(&str, &str, &str)]| {
        let mut part = format!("\n## {title}\n\n| code | meaning | remedy |\n|---|---|---|\n");
        for (code, meaning, help) in rows {
            part.push_str(&format!("| `{code}` | {meaning} | {help} |\n"));
        }
        part
    };
    text.push_str(&table("Why a pool does not take a job", PoolReason::manual()));
    text.push_str(&table("Why a job waits, independent of pools", JobReason::manual()));
    let refused: Vec<_> = Rejection::MANUAL.into_iter().chain(error::MANUAL).collect();
    text.push_str(&table("Why a request is rejected", &refused));
    text.push_str("\n## How an attempt ends\n\n| code | meaning | retried |\n|---|---|---|\n");
    for kind in OutcomeKind::ALL {
        let again = if kind.is_eviction() || kind == OutcomeKind::LeaseEnded {
            "always, without counting as an attempt"
        } else if matches!(kind, OutcomeKind::Succeeded | OutcomeKind::Cancelled) {
            "no"
        } else {
            "if `retry` allows it"
        };
        text.push_str(&format!("| `{}` | {} | {again} |\n", kind.code(), kind.meaning()));
    }
    text.push_str("\n## Why an agent is rejected\n\n");
    let codes = [
        (
            RefusedCode::PoolClaimed,
            "the pool's name is bound to another agent, or served from another copy of this one's state folder",
        ),
        (RefusedCode::InvalidPool, "the hello message, or the pool that it declares, is invalid"),
        (RefusedCode::Superseded, "a newer session is the active session of the pool"),
        (
            RefusedCode::UnknownWork,
            "the pool runs attempts that this journal never ordered: if the journal is an older copy, restore the newer one",
        ),
        (RefusedCode::ProtocolError, "a frame was lost or is invalid"),
        (RefusedCode::Unavailable, "the broker can't write its journal now"),
    ];
    for (code, meaning) in codes {
        text.push_str(&format!("- `{}`: {meaning}\n", code.code()));
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn reasons_reference_in_the_docs_is_up_to_date() {
        expect_test::expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/reasons.md")]
            .assert_eq(&super::manual());
    }
}
