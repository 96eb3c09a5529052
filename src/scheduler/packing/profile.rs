//! The workload profile: what the workload's mix is, and which of its tasks overflow.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::policy::Scorer;
use super::random::Random;
use super::stratified::StratifiedSampler;
use super::{Node, Packer};
use crate::model::demand::{Demand, ProfileEntry, WorkloadProfile};
use crate::model::id::{NodeId, NodeRef, PoolId};
use crate::state::workload::Workload;

/// The mix has drifted if more than one in so many tasks differs: by chance alone, about one in forty does
/// (openb).
const MIX_DRIFT_ONE_IN: u128 = 32;
/// The same for the overflow, a small part of the simulated tasks: by chance alone, one in five to eight
/// differs.
const OVERFLOW_DRIFT_ONE_IN: u128 = 4;

/// Change of the turnover that counts as drift, in percentage points.
const TURNOVER_DRIFT_PERCENT: u32 = 20;

/// Nodes in the sample on which the overflow is simulated: it may miss rare kinds of nodes, but none that has
/// much of the capacity.
pub const SAMPLE_NODES_MAX: usize = 192;
/// Device thousandths that the simulated tasks ask for, in percent of those of the sample: enough to find
/// which tasks no longer fit.
const DEMANDED_PERCENT: u64 = 130;
/// Simulated tasks, at most: a mix may ask for hardly any devices.
const SIMULATED_TASKS_MAX: usize = 65_536;
/// Simulated tasks that are sampled together.
const SAMPLED_TOGETHER: usize = 64;

/// Computes a new profile: the workload's mix, and its overflow on the empty `nodes`.
///
/// Returns `None` if neither the mix, the overflow nor the turnover has drifted since the `last` profile:
/// all cached values of nodes depend on the profile, and a new one makes them invalid.
pub fn updated_profile<'a>(
    workload: &Workload,
    nodes: impl ExactSizeIterator<Item = &'a Node>,
    seed: u64,
    last: &WorkloadProfile,
) -> Option<WorkloadProfile> {
    let mix = workload.mix();
    let overflow = overflow_of(nodes, &mix, seed);
    let entry = |(demand, weight)| {
        let overflow = overflow.get(&demand).copied().unwrap_or_default();
        ProfileEntry { demand, weight, overflow }
    };
    let profile = WorkloadProfile {
        arrivals: workload.arrivals(),
        turnover_percent: workload.turnover_percent(),
        entries: mix.into_iter().map(entry).collect(),
    };
    let has_drifted = differs(last, &profile, |entry| entry.weight, MIX_DRIFT_ONE_IN)
        || differs(last, &profile, |entry| entry.overflow, OVERFLOW_DRIFT_ONE_IN)
        || profile.turnover_percent.abs_diff(last.turnover_percent) >= TURNOVER_DRIFT_PERCENT;
    has_drifted.then_some(profile)
}

/// Places tasks of a mix by best fit on a sample of empty nodes until they have asked for 130 % of its
/// capacity. Returns how many tasks of each demand did not fit; demands that always fit are missing.
pub fn overflow_of<'a>(
    nodes: impl ExactSizeIterator<Item = &'a Node>,
    mix: &[(Arc<Demand>, u64)],
    seed: u64,
) -> BTreeMap<Arc<Demand>, u64> {
    let step = nodes.len().div_ceil(SAMPLE_NODES_MAX).max(1);
    let mut packer = Packer::new(Scorer::BestFit);
    for (index, node) in nodes.step_by(step).enumerate() {
        packer.set(NodeRef { pool: PoolId(0), node: NodeId(index as u32) }, node.clone());
    }
    // Where there are no devices, the overflow is measured in CPU.
    let capacity = packer.device_free();
    let of_cpu = capacity == 0;
    let cpu = || packer.nodes().map(|(_, node)| node.free.cpu_millis).sum();
    let demanded_max = if of_cpu { cpu() } else { capacity } / 100 * DEMANDED_PERCENT;
    let mut mix: Vec<&(Arc<Demand>, u64)> = mix.iter().collect();
    mix.sort_by_key(|(demand, _)| (demand.device_millis(), demand));
    let sampler = StratifiedSampler::new(mix.iter().map(|(_, weight)| *weight));
    let mut overflow = BTreeMap::new();
    if sampler.is_empty() {
        return overflow;
    }
    let mut random = Random::new(seed);
    let (mut demanded, mut tasks) = (0, 0);
    while demanded < demanded_max && tasks < SIMULATED_TASKS_MAX {
        tasks += SAMPLED_TOGETHER;
        for index in sampler.sample(SAMPLED_TOGETHER, &mut random) {
            let demand = &mix[index].0;
            demanded += if of_cpu { demand.resources.cpu_millis } else { demand.device_millis() };
            // No task ends here: a demand that did not fit once never fits again.
            if overflow.contains_key(demand) || packer.place(demand).is_none() {
                *overflow.entry(demand.clone()).or_default() += 1;
            }
        }
    }
    overflow
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
    fn arrive(workload: &mut Workload, demands: &[Arc<Demand>], random: &mut Random, count: u32) {
        (0..count).for_each(|_| workload.arrive(&demands[random.below(demands.len() as u64) as usize], 1));
    }

    /// Checks the profile against the last one, as the broker does.
    fn update(workload: &mut Workload, nodes: &[Node], last: &WorkloadProfile) -> Option<WorkloadProfile> {
        let updated = updated_profile(workload, nodes.iter(), 0, last);
        workload.note_check();
        updated
    }

    #[test]
    fn profile_is_updated_only_after_drift() {
        let (mut workload, mut random, nodes) = (Workload::default(), Random::new(1), nodes(8));
        let usual: Vec<_> = [1, 2, 4, 8].map(|count| demand(DeviceAmount::Whole(count))).into();
        arrive(&mut workload, &usual, &mut random, 16_384);
        let first = update(&mut workload, &nodes, &WorkloadProfile::default())
            .expect("a first profile is drift from an empty one");
        for _ in 0..8 {
            arrive(&mut workload, &usual, &mut random, 8_192);
            assert!(workload.is_check_due());
            assert_eq!(update(&mut workload, &nodes, &first), None, "the same mix");
            assert!(!workload.is_check_due(), "the check itself resets the due time");
        }
        // On smaller nodes other tasks overflow.
        let smaller = self::nodes(2);
        let second = update(&mut workload, &smaller, &first).expect("another cluster is drift");
        assert_eq!(update(&mut workload, &smaller, &second), None);
        // From here on one task in eight asks for a fraction.
        let mut changed = [&usual[..], &usual[..]].concat();
        changed[0] = demand(DeviceAmount::Fraction(300));
        arrive(&mut workload, &changed, &mut random, 8_192);
        assert!(update(&mut workload, &smaller, &second).is_some(), "another mix is drift");
    }

    #[test]
    fn changed_turnover_is_drift() {
        let (mut workload, mut random, nodes) = (Workload::default(), Random::new(1), nodes(8));
        let usual = [demand(DeviceAmount::Whole(1)), demand(DeviceAmount::Whole(8))];
        arrive(&mut workload, &usual, &mut random, 4_096);
        let first =
            update(&mut workload, &nodes, &WorkloadProfile::default()).expect("a first profile is drift");
        assert_eq!(first.turnover_percent, 0);
        // From here on two tasks end while three arrive.
        let mut second = None;
        for _ in 0..4 {
            arrive(&mut workload, &usual, &mut random, 6_000);
            workload.depart(4_000);
            second = second.or(update(&mut workload, &nodes, &first));
        }
        let second = second.expect("a changed turnover is drift");
        assert!((20..=66).contains(&second.turnover_percent), "{}", second.turnover_percent);
    }
}
