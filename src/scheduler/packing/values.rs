//! A cache of a policy's values of buckets.
//!
//! Most of these buckets never have a node: they are what a node would be after a task. They are cached by
//! fingerprint, which takes a tenth of the memory of the bucket itself.

use rustc_hash::FxHashMap;

use super::bucket::Bucket;
use super::bucket::BucketId;

/// Values in one generation; there are two. A value takes some 40 bytes.
const GENERATION_MAX: usize = 1 << 19;

/// Values by fingerprint. When the young generation is full, it becomes the old one. Values of the old one
/// that were not read meanwhile are then dropped.
#[derive(Debug, Default)]
pub(super) struct Values {
    young: FxHashMap<u128, i64>,
    old: FxHashMap<u128, i64>,
    /// Values of buckets that have an id, by id.
    by_id: Vec<Option<i64>>,
    /// Memory in which the bucket after a task is built, so that not each one is allocated.
    pub(super) after: Option<Bucket>,
}

impl Values {
    /// Returns the value of a bucket that has an id, computed by `value` unless it is cached.
    pub(super) fn of(&mut self, id: BucketId, bucket: &Bucket, value: impl FnOnce(&Bucket) -> i64) -> i64 {
        let at = id.0 as usize;
        if let Some(cached) = self.by_id.get(at).copied().flatten() {
            return cached;
        }
        let found = self.get(bucket, value);
        if self.by_id.len() <= at {
            self.by_id.resize(at + 1, None);
        }
        self.by_id[at] = Some(found);
        found
    }

    /// Drops the values of evicted buckets, whose ids will be reused.
    pub(super) fn forget(&mut self, ids: &[BucketId]) {
        for id in ids {
            if let Some(cached) = self.by_id.get_mut(id.0 as usize) {
                *cached = None;
            }
        }
    }

    /// Returns the value of any bucket, computed by `value` unless it is cached.
    pub(super) fn get(&mut self, bucket: &Bucket, value: impl FnOnce(&Bucket) -> i64) -> i64 {
        let fingerprint = bucket.fingerprint();
        if let Some(cached) = self.young.get(&fingerprint) {
            return *cached;
        }
        let found = self.old.get(&fingerprint).copied().unwrap_or_else(|| value(bucket));
        if self.young.len() >= GENERATION_MAX {
            std::mem::swap(&mut self.old, &mut self.young);
            // `clear` retains the memory, which is needed again.
            self.young.clear();
        }
        self.young.insert(fingerprint, found);
        found
    }

    /// Drops all values.
    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
        self.by_id.clear();
    }
}
