//! What a policy makes of buckets, remembered.
//!
//! Most of them are only looked at: what a node would be if a task went there. They are known by
//! fingerprint, which takes a tenth of what the bucket itself does.

use rustc_hash::FxHashMap;

use super::bucket::Bucket;

/// Values kept in one generation; there are two. A value takes some 40 bytes.
const GENERATION_MAX: usize = 1 << 19;

/// Values by fingerprint. When one generation is full it becomes the old one, and what the old one
/// had that nobody has asked for since is forgotten.
#[derive(Debug, Default)]
pub(super) struct Values {
    young: FxHashMap<u128, i64>,
    old: FxHashMap<u128, i64>,
}

impl Values {
    /// A bucket's value, found out if it isn't known.
    pub(super) fn get(&mut self, bucket: &Bucket, value: impl FnOnce(&Bucket) -> i64) -> i64 {
        let print = bucket.fingerprint();
        if let Some(known) = self.young.get(&print) {
            return *known;
        }
        let found = self.old.get(&print).copied().unwrap_or_else(|| value(bucket));
        if self.young.len() >= GENERATION_MAX {
            std::mem::swap(&mut self.old, &mut self.young);
            // Keeps its memory: it will be as full again.
            self.young.clear();
        }
        self.young.insert(print, found);
        found
    }

    /// Forgets all values.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
