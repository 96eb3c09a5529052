//! The mix of demands that is expected, learned from what arrives.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Node;
use super::overflow::overflow_of;
use crate::model::demand::{Demand, ProfileEntry, WorkloadProfile};
use crate::model::limit::PROFILE_ENTRIES_MAX;

/// Arrivals after which the weight of all before is halved: the mix of some thousand tasks is known
/// well, and a shift is followed within as many.
const HALVED_EVERY: u64 = 8_192;
/// A task weighs this much when it arrives, so that halves don't get lost at once.
const WEIGHT: u64 = 1 << 16;
/// Kinds of demands that are counted; the lightest give way when the weights are halved.
const KINDS_MAX: usize = 4_096;
/// The first arrivals that are enough to begin with: even a rough idea beats none.
const FIRST: u64 = 16;

/// A mix of which more than one in so many tasks is another one is news: by chance alone, one in forty or
/// so is (openb).
const MIX_NEWS: u128 = 32;
/// The same of the overflow, which is a small part of what is played: one in five to eight by chance.
const OVERFLOW_NEWS: u128 = 4;

/// A change of turnover that is news, in percent.
const TURNOVER_NEWS: u64 = 20;

/// Weights of demands.
#[derive(Clone, Debug, Default)]
pub struct Mix {
    weights: BTreeMap<Arc<Demand>, u64>,
    arrivals: u64,
    /// Tasks that have come and gone; old ones count less.
    came: u64,
    gone: u64,
    /// By the latest lesson.
    turnover_percent: u64,
    /// The arrivals after which the next lesson is due.
    profile_at: u64,
}

impl Mix {
    /// Goes on from what was learned. Tasks are expected to end as they come, until it is seen.
    pub fn resume(profile: &WorkloadProfile) -> Self {
        let kinds = profile.entries.iter().filter(|kind| kind.weight > 0);
        let weights = kinds.map(|kind| (kind.demand.clone(), kind.weight)).collect();
        let recent = profile.arrivals.min(HALVED_EVERY);
        Self {
            weights,
            arrivals: profile.arrivals,
            came: recent,
            gone: recent,
            turnover_percent: 100,
            profile_at: next_profile(profile.arrivals),
        }
    }

    /// Counts tasks that have come.
    pub fn arrive(&mut self, demand: &Arc<Demand>, count: u64) {
        let halvings = (self.arrivals + count) / HALVED_EVERY - self.arrivals / HALVED_EVERY;
        self.arrivals += count;
        self.came += count;
        let known = self.weights.len();
        let weight = WEIGHT * count.min(HALVED_EVERY);
        match self.weights.get_mut(demand) {
            Some(sum) => *sum = sum.saturating_add(weight),
            None if known < KINDS_MAX => {
                self.weights.insert(demand.clone(), weight);
            }
            None => {}
        }
        if halvings > 0 {
            (self.came, self.gone) = (self.came >> halvings.min(63), self.gone >> halvings.min(63));
            self.weights.values_mut().for_each(|weight| *weight >>= halvings.min(63));
            self.weights.retain(|_, weight| *weight > 0);
        }
    }

    /// Counts tasks that have ended.
    pub fn depart(&mut self, count: u64) {
        self.gone += count;
    }

    /// How many tasks end while a hundred come, by the latest lesson: a hundred where it is as many or more.
    pub fn turnover_percent(&self) -> u64 {
        self.turnover_percent
    }

    /// Enough has come since the last time to learn from it: after a few tasks, then whenever
    /// there are twice as many, in the end as often as weights are halved.
    pub fn is_update_due(&self) -> bool {
        self.arrivals >= self.profile_at.max(FIRST)
    }

    /// Learns what overflows from nodes like these, when empty; `None` if that is hardly more than is
    /// known since the `last` time. All values of nodes rest on a lesson, and must be found anew.
    pub fn update<'a>(
        &mut self,
        nodes: impl ExactSizeIterator<Item = &'a Node>,
        seed: u64,
        last: &WorkloadProfile,
    ) -> Option<WorkloadProfile> {
        self.profile_at = next_profile(self.arrivals);
        let mut kinds: Vec<_> = self.weights.iter().collect();
        kinds.sort_by_key(|(demand, weight)| {
            (Reverse(weight.saturating_mul(demand.device_millis() + 1)), (*demand).clone())
        });
        kinds.truncate(PROFILE_ENTRIES_MAX);
        let mix: Vec<_> = kinds.into_iter().map(|(demand, weight)| (demand.clone(), *weight)).collect();
        let overflow = overflow_of(nodes, &mix, seed);
        let expected = |(demand, weight): (Arc<Demand>, u64)| {
            let overflow = overflow.get(&demand).copied().unwrap_or_default();
            ProfileEntry { demand, weight, overflow }
        };
        let profile =
            WorkloadProfile { arrivals: self.arrivals, entries: mix.into_iter().map(expected).collect() };
        let turnover_percent = self.gone.saturating_mul(100).checked_div(self.came).unwrap_or(100).min(100);
        let is_news = differs(last, &profile, |kind| kind.weight, MIX_NEWS)
            || differs(last, &profile, |kind| kind.overflow, OVERFLOW_NEWS)
            || turnover_percent.abs_diff(self.turnover_percent) >= TURNOVER_NEWS;
        if is_news {
            self.turnover_percent = turnover_percent;
        }
        is_news.then_some(profile)
    }
}

/// More than one in so many tasks would have to be another for the one distribution to become the other.
fn differs(
    old: &WorkloadProfile,
    new: &WorkloadProfile,
    weight: fn(&ProfileEntry) -> u64,
    one_in: u128,
) -> bool {
    let sum =
        |profile: &WorkloadProfile| profile.entries.iter().map(|kind| u128::from(weight(kind))).sum::<u128>();
    let (of_old, of_new) = (sum(old), sum(new));
    if of_old == 0 || of_new == 0 {
        return of_old != of_new;
    }
    let mut both = BTreeMap::<&Demand, (u128, u128)>::new();
    old.entries.iter().for_each(|kind| both.entry(&kind.demand).or_default().0 = u128::from(weight(kind)));
    new.entries.iter().for_each(|kind| both.entry(&kind.demand).or_default().1 = u128::from(weight(kind)));
    // Each task that is another is missing from one kind and surplus in another.
    let moved = both
        .values()
        .map(|(old, new)| old.saturating_mul(of_new).abs_diff(new.saturating_mul(of_old)))
        .fold(0u128, u128::saturating_add);
    (moved / 2).saturating_mul(one_in) > of_old.saturating_mul(of_new)
}

fn next_profile(arrivals: u64) -> u64 {
    arrivals + arrivals.min(HALVED_EVERY)
}

#[cfg(test)]
mod tests {
    use super::super::Device;
    use super::super::bucket::ClassRef;
    use super::super::random::Random;
    use super::*;
    use crate::model::demand::DeviceDemand;
    use crate::model::device::{DeviceAmount, DeviceModelId};
    use crate::model::limit::DEVICE_MILLIS;
    use crate::model::resource::Resources;
    use crate::model::shape::Needs;
    use crate::model::spec::Constraints;

    fn demand(amount: DeviceAmount) -> Arc<Demand> {
        Arc::new(Demand {
            resources: Resources { cpu_millis: 1_000, ..Resources::default() },
            devices: Some(DeviceDemand { models: None, amount }),
            constraints: Constraints::default(),
            needs: Needs::default(),
        })
    }

    fn nodes(devices: u16) -> Vec<Node> {
        let device = |_| Device { model: DeviceModelId(0), topology_group: 0 };
        let node = Node {
            class: ClassRef::new(Default::default()),
            free: Resources { cpu_millis: 64_000, ..Resources::default() },
            devices: (0..devices).map(device).collect(),
            device_free: vec![DEVICE_MILLIS; usize::from(devices)],
        };
        vec![node; 64]
    }

    /// Tasks in random order, each of the demands as likely.
    fn arrive(mix: &mut Mix, demands: &[Arc<Demand>], random: &mut Random, count: u32) {
        (0..count).for_each(|_| mix.arrive(&demands[random.below(demands.len() as u64) as usize], 1));
    }

    #[test]
    fn only_what_is_news_is_learned() {
        let (mut mix, mut random, nodes) = (Mix::default(), Random::new(1), nodes(8));
        let usual: Vec<_> = [1, 2, 4, 8].map(|count| demand(DeviceAmount::Whole(count))).into();
        arrive(&mut mix, &usual, &mut random, 16_384);
        let first =
            mix.update(nodes.iter(), 0, &WorkloadProfile::default()).expect("something of nothing is news");
        for _ in 0..8 {
            arrive(&mut mix, &usual, &mut random, 8_192);
            assert!(mix.is_update_due());
            assert_eq!(mix.update(nodes.iter(), 0, &first), None, "the same mix");
            assert!(!mix.is_update_due(), "it was looked at");
        }
        // On smaller nodes others find no room.
        let smaller = self::nodes(2);
        let second = mix.update(smaller.iter(), 0, &first).expect("another cluster is news");
        assert_eq!(mix.update(smaller.iter(), 0, &second), None);
        // One in eight is a fraction from now on.
        let mut changed = [&usual[..], &usual[..]].concat();
        changed[0] = demand(DeviceAmount::Fraction(300));
        arrive(&mut mix, &changed, &mut random, 8_192);
        assert!(mix.update(smaller.iter(), 0, &second).is_some(), "another mix is news");
    }

    #[test]
    fn turnover_is_learned_and_taken_for_granted_after_a_restart() {
        let (mut mix, mut random, nodes) = (Mix::default(), Random::new(1), nodes(8));
        let usual = [demand(DeviceAmount::Whole(1)), demand(DeviceAmount::Whole(8))];
        arrive(&mut mix, &usual, &mut random, 4_096);
        let first =
            mix.update(nodes.iter(), 0, &WorkloadProfile::default()).expect("the first lesson is news");
        assert_eq!(mix.turnover_percent(), 0);
        // From now on two tasks end while three come.
        let mut second = None;
        for _ in 0..4 {
            arrive(&mut mix, &usual, &mut random, 6_000);
            mix.depart(4_000);
            second = second.or(mix.update(nodes.iter(), 0, &first));
        }
        assert!((40..=66).contains(&mix.turnover_percent()), "{}", mix.turnover_percent());
        let second = second.expect("that tasks end is news");
        let mut resumed = Mix::resume(&second);
        assert_eq!(resumed.turnover_percent(), 100);
        for _ in 0..4 {
            arrive(&mut resumed, &usual, &mut random, 6_000);
            resumed.update(nodes.iter(), 0, &second);
        }
        assert!(resumed.turnover_percent() < 20, "{}", resumed.turnover_percent());
    }
}
