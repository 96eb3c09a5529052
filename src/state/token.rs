//! Request tokens: what makes a repeated mutation harmless.

use std::collections::{BTreeMap, VecDeque};

use sha2::{Digest, Sha256};

use super::job::Principal;
use crate::model::id::JobId;
use crate::model::time::Timestamp;

/// A token with its principal, hashed: 128 bits of SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenKey(pub [u8; 16]);

/// What the first request with a token did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenEntry {
    pub at: Timestamp,
    /// Of the request: the same token with another request is an error.
    pub fingerprint: u64,
    pub reply: TokenReply,
}

/// The answer that a repeated request gets again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenReply {
    Jobs { first: JobId, count: u32 },
    Done,
}

/// A client's token and the fingerprint of what it sent with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestToken {
    pub key: TokenKey,
    pub fingerprint: u64,
}

impl RequestToken {
    /// Hashes a client's token with its principal, and the request it came with.
    pub fn new(principal: &Principal, token: &str, request: &[u8]) -> Self {
        let who = match principal {
            Principal::System => "system",
            Principal::Anonymous => "anonymous",
            Principal::Agent(name) | Principal::User(name) => name,
        };
        let key = Sha256::new().chain_update(who).chain_update([0]).chain_update(token).finalize();
        let print = Sha256::digest(request);
        Self { key: TokenKey(first_bytes(&key)), fingerprint: u64::from_le_bytes(first_bytes(&print)) }
    }
}

/// The first `N` bytes of a digest.
pub fn first_bytes<const N: usize>(digest: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&digest[..N]);
    bytes
}

/// The tokens of the last quarter of an hour.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    entries: BTreeMap<TokenKey, TokenEntry>,
    /// By age. Derived.
    ages: VecDeque<(Timestamp, TokenKey)>,
}

impl Tokens {
    /// What a token did.
    pub fn get(&self, key: &TokenKey) -> Option<&TokenEntry> {
        self.entries.get(key)
    }

    /// Remembers a token.
    pub fn insert(&mut self, key: TokenKey, entry: TokenEntry) {
        self.ages.push_back((entry.at, key));
        self.entries.insert(key, entry);
    }

    /// When the oldest token was used.
    pub fn oldest(&self) -> Option<(Timestamp, TokenKey)> {
        self.ages.front().copied()
    }

    /// How many of the oldest `most` tokens are `old`.
    pub fn count_older(&self, most: u32, old: impl Fn(&Timestamp) -> bool) -> u32 {
        self.ages.iter().take(most as usize).take_while(|(at, _)| old(at)).count() as u32
    }

    /// Forgets the oldest token.
    pub fn pop_oldest(&mut self) {
        if let Some((_, key)) = self.ages.pop_front() {
            self.entries.remove(&key);
        }
    }

    /// Tokens from `from` on, in the keys' order.
    pub fn range(&self, from: std::ops::Bound<TokenKey>) -> impl Iterator<Item = (&TokenKey, &TokenEntry)> {
        self.entries.range((from, std::ops::Bound::Unbounded))
    }

    /// Puts the ages in order after a restore.
    pub fn rebuild(&mut self) {
        let mut ages: Vec<_> = self.entries.iter().map(|(key, entry)| (entry.at, *key)).collect();
        ages.sort_unstable();
        self.ages = ages.into();
    }

    /// How many tokens are remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No token is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
