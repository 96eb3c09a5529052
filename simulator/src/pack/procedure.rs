//! Runs a packing trial: places arrivals on a cluster by a policy.

use std::time::Instant;

use super::PolicyName;
use super::cluster::Cluster;
use super::player::{Observe, Placed, Player};
use super::window;

/// Settings of a run.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) policy: PolicyName,
    pub(crate) policy_seed: u64,
    /// Waiting tasks among which the next is chosen; 1 places each as it arrives.
    pub(crate) window: usize,
    /// Play the run twice before it is measured.
    pub(crate) warm: bool,
}

/// Result of a run.
pub(crate) struct Outcome {
    /// In order of placement.
    pub(crate) placed: Vec<Placed>,
    pub(crate) allocated_percent: f64,
    pub(crate) passed_over_max: usize,
    /// Real time of all placement decisions and workload-profile updates.
    pub(crate) seconds: f64,
}

/// Places all arrivals that fit.
fn place_all(player: &mut Player, arrivals: &[usize], window: usize, observe: Observe) -> Vec<Placed> {
    if window > 1 {
        return window::play(player, player.cluster, arrivals, window, observe);
    }
    let mut placed = Vec::new();
    for (arrival, task) in arrivals.iter().enumerate() {
        let demand = player.cluster.demand_of[*task];
        player.arrive(demand);
        placed.extend(player.place(demand, arrival));
        observe(arrival + 1, &player.packer);
    }
    placed
}

/// Runs a trial.
pub(crate) fn play(cluster: &Cluster, arrivals: &[usize], rules: Rules) -> Outcome {
    play_observed(cluster, arrivals, rules, &mut |_, _| {})
}

/// Runs a trial and calls `observe` as it goes on.
pub(crate) fn play_observed(
    cluster: &Cluster,
    arrivals: &[usize],
    rules: Rules,
    observe: Observe,
) -> Outcome {
    let mut player = Player::new(cluster, rules.policy, rules.policy_seed);
    // The first pass builds the profile, the second runs with it.
    for _ in 0..if rules.warm { 2 } else { 0 } {
        place_all(&mut player, arrivals, rules.window, &mut |_, _| {});
        player.clear();
    }
    let started = Instant::now();
    let placed = place_all(&mut player, arrivals, rules.window, observe);
    let seconds = started.elapsed().as_secs_f64();
    let used = cluster.capacity_millis - player.packer.device_free();
    let passed_over_max = window::passed_over_max(placed.iter().map(|placed| placed.arrival), arrivals.len());
    let allocated_percent = used as f64 * 100.0 / cluster.capacity_millis as f64;
    Outcome { placed, allocated_percent, passed_over_max, seconds }
}
