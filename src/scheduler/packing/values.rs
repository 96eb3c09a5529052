//! What a policy makes of buckets, remembered.
//!
//! Most of them are only looked at: what a node would be if a task went there. They are known by
//! fingerprint, which takes a tenth of what the bucket itself does.

use rustc_hash::FxHashMap;

use super::bucket::Bucket;
use super::buckets::BucketId;

/// Values kept in one generation; there are two. A value takes some 40 bytes.
const GENERATION_MAX: usize = 1 << 19;

/// Values by fingerprint. When one generation is full it becomes the old one, and what the old one
/// had that nobody has asked for since is forgotten.
#[derive(Debug, Default)]
pub(super) struct Values {
    young: FxHashMap<u128, i64>,
    old: FxHashMap<u128, i64>,
    /// Of buckets that have a number, by it.
    numbered: Vec<Option<i64>>,
    /// What a bucket would be after a task is made in here, so that not each one is allocated.
    pub(super) after: Option<Bucket>,
}

impl Values {
    /// The value of a bucket with a number, found out if it isn't known.
    pub(super) fn of(&mut self, id: BucketId, bucket: &Bucket, value: impl FnOnce(&Bucket) -> i64) -> i64 {
        let at = id.0 as usize;
        if let Some(known) = self.numbered.get(at).copied().flatten() {
            return known;
        }
        let found = self.get(bucket, value);
        if self.numbered.len() <= at {
            self.numbered.resize(at + 1, None);
        }
        self.numbered[at] = Some(found);
        found
    }

    /// These numbers are to mean other buckets.
    pub(super) fn forget(&mut self, ids: &[BucketId]) {
        for id in ids {
            if let Some(known) = self.numbered.get_mut(id.0 as usize) {
                *known = None;
            }
        }
    }

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
        self.young.clear();
        self.old.clear();
        self.numbered.clear();
    }
}
