//! Errors of calls to the broker, and how errors are written on one line.

use crate::state::rejection::Rejection;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The command was decided and changes nothing.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The journal can't be read or written now, or the broker has stopped. The outcome of a request is
    /// unknown: it may have been written.
    #[error("the broker can't write now; repeating with the same token is safe")]
    Unavailable,
    /// The journal can't be written, such as for a full disk; reads go on. The outcome of a request is unknown.
    #[error(
        "the broker only reads until its journal can be written again: {0}; repeating with the same token is safe"
    )]
    ReadOnly(String),
    /// What was asked for can't be read any more.
    #[error("{0}; `weir admin verify` lists all damage, docs/guide/back-up.md has what helps")]
    Damaged(String),
}

/// An error and its sources on one line, separated by colons.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
