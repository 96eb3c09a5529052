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
    /// When the client made it, if its text contains a time.
    pub made_at: Option<Timestamp>,
}

impl RequestToken {
    /// Hashes a client's token with its principal and its method, and the request it came with.
    ///
    /// A token that is a UUID of version 7 (RFC 9562) contains the time when it was made: it is refused once it
    /// may have been forgotten, so that a late repetition never does a thing twice.
    pub fn new(principal: &Principal, method: &str, token: &str, request: &[u8]) -> Self {
        let who = match principal {
            Principal::System => "system",
            Principal::Anonymous => "anonymous",
            Principal::Agent(name) | Principal::User(name) => name,
        };
        let key = Sha256::new().chain_update(who).chain_update([0]).chain_update(method).chain_update("/");
        let key = key.chain_update(token).finalize();
        let print = Sha256::digest(request);
        let fingerprint = u64::from_le_bytes(first_bytes(&print));
        Self { key: TokenKey(first_bytes(&key)), fingerprint, made_at: made_at(token) }
    }
}

/// The time in a UUID of version 7: its first 48 bits, in milliseconds since the Unix epoch.
fn made_at(token: &str) -> Option<Timestamp> {
    let groups: Vec<&str> = token.split('-').collect();
    let hexadecimal = groups.iter().all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let [time, more, version, variant, _] = groups[..] else { return None };
    let lens = groups.iter().map(|group| group.len());
    let version_7 = version.starts_with('7') && variant.starts_with(['8', '9', 'a', 'b', 'A', 'B']);
    if !hexadecimal || !lens.eq([8, 4, 4, 4, 12]) || !version_7 {
        return None;
    }
    Some(Timestamp(u64::from_str_radix(time, 16).ok()? << 16 | u64::from_str_radix(more, 16).ok()?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_has_a_time_only_as_a_uuid_of_version_7() {
        // The example of RFC 9562, appendix A.6: 2022-02-22 19:22:22 UTC.
        let example = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
        assert_eq!(made_at(example), Some(Timestamp(1_645_557_742_000)));
        let others =
            ["", "deploy-7", "017f22e2-79b0-4cc3-98c4-dc0c0c07398f", "017f22e279b07cc398c4dc0c0c07398f"];
        assert!(others.iter().all(|text| made_at(text).is_none()));
        assert_eq!(made_at(&example.replace('2', "x")), None);
    }
}
