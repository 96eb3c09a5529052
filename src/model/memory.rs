//! How a broker divides the memory that it may use.

use super::limit::{REQUESTS_BYTES_MAX, RESPONSES_BYTES_MAX};

/// Smallest total: below it, the parts for requests would refuse ordinary ones.
pub const TOTAL_BYTES_MIN: u64 = 256 << 20;

/// What may take how much memory, in bytes. The rest of the total is for code, connections, caches of the journal, and
/// the difference between estimates and what the allocator takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Live jobs, pools and nodes, by the state's estimate: half of the total.
    pub live: u64,
    /// Requests of all clients while they are received and decided: an eighth, at most [`REQUESTS_BYTES_MAX`].
    pub requests: usize,
    /// Responses that clients have not read: an eighth, at most [`RESPONSES_BYTES_MAX`].
    pub responses: usize,
}

impl MemoryBudget {
    /// Divides a total.
    pub fn of(total_bytes: u64) -> Self {
        let eighth = usize::try_from(total_bytes / 8).unwrap_or(usize::MAX);
        Self {
            live: total_bytes / 2,
            requests: REQUESTS_BYTES_MAX.min(eighth),
            responses: RESPONSES_BYTES_MAX.min(eighth),
        }
    }
}
