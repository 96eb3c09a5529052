//! The workload mix: how often tasks of each demand arrive, counted with older arrivals weighing less.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Node;
use super::overflow::overflow_of;
use crate::model::demand::{Demand, ProfileEntry, WorkloadProfile};
use crate::model::limit::PROFILE_ENTRIES_MAX;

/// Arrivals after which all earlier weights are halved: some thousand tasks determine a mix well, and a shift
/// is followed within as many.
const HALVE_EVERY: u64 = 8_192;
/// Weight of a task when it arrives, large enough that it can be halved many times.
const WEIGHT: u64 = 1 << 16;
/// Demands that are counted; while there are so many, new ones are ignored. Those whose weight falls to zero
/// are dropped when the weights are halved.
const KINDS_MAX: usize = 4_096;
/// Arrivals before the first profile: even a rough profile is better than none.
const ARRIVALS_MIN: u64 = 16;

/// The mix has drifted if more than one in so many tasks differs: by chance alone, about one in forty does
/// (openb).
const MIX_DRIFT_ONE_IN: u128 = 32;
/// The same for the overflow, a small part of the simulated tasks: by chance alone, one in five to eight
/// differs.
const OVERFLOW_DRIFT_ONE_IN: u128 = 4;

/// Change of the turnover that counts as drift, in percentage points.
const TURNOVER_DRIFT_PERCENT: u64 = 20;

/// The weights of demands by their arrivals, and the turnover.
#[derive(Clone, Debug, Default)]
pub struct Mix {
    weights: BTreeMap<Arc<Demand>, u64>,
    arrivals: u64,
    /// Arrived tasks, old ones weighing less.
    recent_arrivals: u64,
    /// Ended tasks, old ones weighing less.
    recent_ends: u64,
    /// Of the latest profile.
    turnover_percent: u64,
    /// The number of arrivals at which the next profile is due.
    next_profile_at: u64,
}

impl Mix {
    /// Continues from a profile after a restart. The turnover, which is not part of it, is 100 % until it is
    /// measured again.
    pub fn resume(profile: &WorkloadProfile) -> Self {
        let entries = profile.entries.iter().filter(|kind| kind.weight > 0);
        let weights = entries.map(|kind| (kind.demand.clone(), kind.weight)).collect();
        let recent = profile.arrivals.min(HALVE_EVERY);
        Self {
            weights,
            arrivals: profile.arrivals,
            recent_arrivals: recent,
            recent_ends: recent,
            turnover_percent: 100,
            next_profile_at: next_profile(profile.arrivals),
        }
    }

    /// Counts tasks that have arrived.
    pub fn arrive(&mut self, demand: &Arc<Demand>, count: u64) {
        let halvings = (self.arrivals + count) / HALVE_EVERY - self.arrivals / HALVE_EVERY;
        self.arrivals += count;
        self.recent_arrivals += count;
        let demands = self.weights.len();
        let weight = WEIGHT * count.min(HALVE_EVERY);
        match self.weights.get_mut(demand) {
            Some(sum) => *sum = sum.saturating_add(weight),
            None if demands < KINDS_MAX => {
                self.weights.insert(demand.clone(), weight);
            }
            None => {}
        }
        if halvings > 0 {
            (self.recent_arrivals, self.recent_ends) =
                (self.recent_arrivals >> halvings.min(63), self.recent_ends >> halvings.min(63));
            self.weights.values_mut().for_each(|weight| *weight >>= halvings.min(63));
            self.weights.retain(|_, weight| *weight > 0);
        }
    }

    /// Counts tasks that have ended.
    pub fn depart(&mut self, count: u64) {
        self.recent_ends += count;
    }

    /// Returns how many tasks ended while a hundred arrived, at the latest profile; at most 100.
    pub fn turnover_percent(&self) -> u64 {
        self.turnover_percent
    }

    /// Returns whether [`Self::update`] should be called: after the first few arrivals, then at each
    /// doubling, and from some thousand arrivals on as often as the weights are halved.
    pub fn is_update_due(&self) -> bool {
        self.arrivals >= self.next_profile_at.max(ARRIVALS_MIN)
    }

    /// Computes a new profile: the mix, and its overflow on the empty `nodes`.
    ///
    /// Returns `None` if neither the mix, the overflow nor the turnover has drifted since the `last` profile:
    /// all cached values of nodes depend on the profile, and a new one makes them invalid.
    pub fn update<'a>(
        &mut self,
        nodes: impl ExactSizeIterator<Item = &'a Node>,
        seed: u64,
        last: &WorkloadProfile,
    ) -> Option<WorkloadProfile> {
        self.next_profile_at = next_profile(self.arrivals);
        let mut entries: Vec<_> = self.weights.iter().collect();
        entries.sort_by_key(|(demand, weight)| {
            (Reverse(weight.saturating_mul(demand.device_millis() + 1)), (*demand).clone())
        });
        entries.truncate(PROFILE_ENTRIES_MAX);
        let mix: Vec<_> = entries.into_iter().map(|(demand, weight)| (demand.clone(), *weight)).collect();
        let overflow = overflow_of(nodes, &mix, seed);
        let expected = |(demand, weight): (Arc<Demand>, u64)| {
            let overflow = overflow.get(&demand).copied().unwrap_or_default();
            ProfileEntry { demand, weight, overflow }
        };
        let profile =
            WorkloadProfile { arrivals: self.arrivals, entries: mix.into_iter().map(expected).collect() };
        let turnover_percent =
            self.recent_ends.saturating_mul(100).checked_div(self.recent_arrivals).unwrap_or(100).min(100);
        let has_drifted = differs(last, &profile, |kind| kind.weight, MIX_DRIFT_ONE_IN)
            || differs(last, &profile, |kind| kind.overflow, OVERFLOW_DRIFT_ONE_IN)
            || turnover_percent.abs_diff(self.turnover_percent) >= TURNOVER_DRIFT_PERCENT;
        if has_drifted {
            self.turnover_percent = turnover_percent;
        }
        has_drifted.then_some(profile)
    }
}

/// Returns whether more than one in so many tasks would have to change for one distribution to become the
/// other.
fn differs(
    old: &WorkloadProfile,
    new: &WorkloadProfile,
    weight: fn(&ProfileEntry) -> u64,
    one_in: u128,
) -> bool {
    let sum =
        |profile: &WorkloadProfile| profile.entries.iter().map(|kind| u128::from(weight(kind))).sum::<u128>();
    let (old_sum, new_sum) = (sum(old), sum(new));
    if old_sum == 0 || new_sum == 0 {
        return old_sum != new_sum;
    }
    let mut both = BTreeMap::<&Demand, (u128, u128)>::new();
    old.entries.iter().for_each(|kind| both.entry(&kind.demand).or_default().0 = u128::from(weight(kind)));
    new.entries.iter().for_each(|kind| both.entry(&kind.demand).or_default().1 = u128::from(weight(kind)));
    // Each task that changes is missing from one kind and surplus in another, so it counts twice.
    let changed = both
        .values()
        .map(|(old, new)| old.saturating_mul(new_sum).abs_diff(new.saturating_mul(old_sum)))
        .fold(0u128, u128::saturating_add);
    (changed / 2).saturating_mul(one_in) > old_sum.saturating_mul(new_sum)
}

fn next_profile(arrivals: u64) -> u64 {
    arrivals + arrivals.min(HALVE_EVERY)
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

    /// Lets tasks arrive in random order, each of a random demand.
    fn arrive(mix: &mut Mix, demands: &[Arc<Demand>], random: &mut Random, count: u32) {
        (0..count).for_each(|_| mix.arrive(&demands[random.below(demands.len() as u64) as usize], 1));
    }

    #[test]
    fn profile_is_updated_only_after_drift() {
        let (mut mix, mut random, nodes) = (Mix::default(), Random::new(1), nodes(8));
        let usual: Vec<_> = [1, 2, 4, 8].map(|count| demand(DeviceAmount::Whole(count))).into();
        arrive(&mut mix, &usual, &mut random, 16_384);
        let first = mix
            .update(nodes.iter(), 0, &WorkloadProfile::default())
            .expect("a first profile is drift from an empty one");
        for _ in 0..8 {
            arrive(&mut mix, &usual, &mut random, 8_192);
            assert!(mix.is_update_due());
            assert_eq!(mix.update(nodes.iter(), 0, &first), None, "the same mix");
            assert!(!mix.is_update_due(), "the check itself resets the due time");
        }
        // On smaller nodes other tasks overflow.
        let smaller = self::nodes(2);
        let second = mix.update(smaller.iter(), 0, &first).expect("another cluster is drift");
        assert_eq!(mix.update(smaller.iter(), 0, &second), None);
        // From here on one task in eight asks for a fraction.
        let mut changed = [&usual[..], &usual[..]].concat();
        changed[0] = demand(DeviceAmount::Fraction(300));
        arrive(&mut mix, &changed, &mut random, 8_192);
        assert!(mix.update(smaller.iter(), 0, &second).is_some(), "another mix is drift");
    }

    #[test]
    fn turnover_is_measured_and_assumed_to_be_full_after_a_restart() {
        let (mut mix, mut random, nodes) = (Mix::default(), Random::new(1), nodes(8));
        let usual = [demand(DeviceAmount::Whole(1)), demand(DeviceAmount::Whole(8))];
        arrive(&mut mix, &usual, &mut random, 4_096);
        let first =
            mix.update(nodes.iter(), 0, &WorkloadProfile::default()).expect("a first profile is drift");
        assert_eq!(mix.turnover_percent(), 0);
        // From here on two tasks end while three arrive.
        let mut second = None;
        for _ in 0..4 {
            arrive(&mut mix, &usual, &mut random, 6_000);
            mix.depart(4_000);
            second = second.or(mix.update(nodes.iter(), 0, &first));
        }
        assert!((40..=66).contains(&mix.turnover_percent()), "{}", mix.turnover_percent());
        let second = second.expect("a changed turnover is drift");
        let mut resumed = Mix::resume(&second);
        assert_eq!(resumed.turnover_percent(), 100);
        for _ in 0..4 {
            arrive(&mut resumed, &usual, &mut random, 6_000);
            resumed.update(nodes.iter(), 0, &second);
        }
        assert!(resumed.turnover_percent() < 20, "{}", resumed.turnover_percent());
    }
}
