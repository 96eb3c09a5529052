//! A cache of how one demand fits each bucket, by bucket id.
//!
//! Ids given at about the same time are read together, so the entries of 64 neighbouring ids are stored side
//! by side.

use super::bucket::BucketId;
use super::bucket::DeviceChoice;
use super::buckets::BucketRef;
use super::policy::Score;
use crate::model::id::NodeRef;

/// How a demand fits a bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fit {
    pub(super) score: Score,
    pub(super) choice: DeviceChoice,
    /// The bucket of a node after the task; `None` until it is first needed.
    pub(super) next: Option<BucketRef>,
    /// The node under which the bucket is in the ranking's heap; `None` if it is not there.
    pub(super) key: Option<NodeRef>,
}

/// The cached fits of one demand.
#[derive(Debug, Default)]
pub(super) struct Fits {
    pages: Vec<Page>,
}

/// The fits of 64 buckets, with one bit for each bucket in each bit set.
#[derive(Clone, Debug, Default)]
struct Page {
    /// Buckets that the demand does not fit.
    unfit: u64,
    /// Buckets that it fits.
    fit: u64,
    /// One for each bit of `fit`, in the order of the bits.
    fits: Vec<Fit>,
}

/// A bucket's page and its bit there.
fn page_and_bit(id: BucketId) -> (usize, u64) {
    (id.0 as usize / 64, 1 << (id.0 % 64))
}

impl Page {
    /// The index in `fits` of the fit of a bit, or where it would be inserted.
    fn index_of(&self, bit: u64) -> usize {
        (self.fit & (bit - 1)).count_ones() as usize
    }
}

impl Fits {
    /// Returns whether it is cached that the demand does not fit the bucket.
    pub(super) fn is_unfit(&self, id: BucketId) -> bool {
        let (page, bit) = page_and_bit(id);
        self.pages.get(page).is_some_and(|page| page.unfit & bit != 0)
    }

    pub(super) fn get(&self, id: BucketId) -> Option<&Fit> {
        let (page, bit) = page_and_bit(id);
        let page = self.pages.get(page).filter(|page| page.fit & bit != 0)?;
        page.fits.get(page.index_of(bit))
    }

    pub(super) fn get_mut(&mut self, id: BucketId) -> Option<&mut Fit> {
        let (page, bit) = page_and_bit(id);
        let page = self.pages.get_mut(page).filter(|page| page.fit & bit != 0)?;
        let at = page.index_of(bit);
        page.fits.get_mut(at)
    }

    /// Caches how the demand fits a bucket, `None` if it does not. The bucket must not be cached yet.
    pub(super) fn insert(&mut self, id: BucketId, fit: Option<Fit>) -> Option<&mut Fit> {
        let (page, bit) = page_and_bit(id);
        if self.pages.len() <= page {
            self.pages.resize(page + 1, Page::default());
        }
        let page = &mut self.pages[page];
        let Some(fit) = fit else {
            page.unfit |= bit;
            return None;
        };
        let at = page.index_of(bit);
        page.fit |= bit;
        page.fits.insert(at, fit);
        page.fits.get_mut(at)
    }

    /// Drops evicted buckets, whose ids will be reused.
    pub(super) fn forget(&mut self, ids: &[BucketId]) {
        for id in ids {
            let (page, bit) = page_and_bit(*id);
            let Some(page) = self.pages.get_mut(page) else { continue };
            page.unfit &= !bit;
            if page.fit & bit != 0 {
                let at = page.index_of(bit);
                page.fits.remove(at);
                page.fit &= !bit;
            }
        }
    }

    /// Drops all fits, but not which buckets do not fit: that is the same under every policy.
    pub(super) fn forget_scores(&mut self) {
        for page in &mut self.pages {
            page.fit = 0;
            page.fits.clear();
        }
    }

    /// Marks all buckets as not in the heap.
    pub(super) fn forget_keys(&mut self) {
        self.pages.iter_mut().flat_map(|page| &mut page.fits).for_each(|fit| fit.key = None);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::scheduler::packing::random::Random;

    #[test]
    fn each_bucket_has_what_was_cached_for_it() {
        let mut random = Random::new(3);
        let (mut fits, mut expected) = (Fits::default(), BTreeMap::<u32, Option<i64>>::new());
        for step in 0..20_000 {
            let id = BucketId(random.below(300) as u32);
            match random.below(200) {
                0 => {
                    fits.forget_scores();
                    expected.retain(|_, cost| cost.is_none());
                }
                1..40 => {
                    fits.forget(&[id]);
                    expected.remove(&id.0);
                }
                _ if expected.contains_key(&id.0) => {}
                drawn => {
                    let score = Score { cost: step, left: 0 };
                    let fit = Fit { score, choice: DeviceChoice::None, next: None, key: None };
                    let fit = (drawn % 3 > 0).then_some(fit);
                    assert_eq!(fits.insert(id, fit).map(|fit| fit.score.cost), fit.map(|_| step));
                    expected.insert(id.0, fit.map(|_| step));
                }
            }
            let asked = random.below(300) as u32;
            let found = fits.get(BucketId(asked)).map(|fit| fit.score.cost);
            assert_eq!(found, expected.get(&asked).copied().flatten(), "{asked} at step {step}");
            assert_eq!(found, fits.get_mut(BucketId(asked)).map(|fit| fit.score.cost));
            assert_eq!(fits.is_unfit(BucketId(asked)), expected.get(&asked) == Some(&None));
        }
    }
}
