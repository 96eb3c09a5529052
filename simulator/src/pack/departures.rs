//! Plays a trace with departures: tasks come over time, wait if they must, run and end.
//!
//! By the engine alone, in virtual time. Arrivals are spread evenly, in random order, so that the GPU
//! time asked for is the given share of what the cluster has while they come.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use weir::scheduler::packing::Place;

use super::procedure::{Cluster, Player};
use super::window::Waiting;

/// The share of all arrivals that fills the cluster before anything is measured.
const WARM_UP: f64 = 0.3;

/// How tasks are played.
#[derive(Clone, Copy)]
pub(super) struct Load {
    pub(super) offered: f64,
    /// Waiting tasks of which the next is chosen.
    pub(super) window: usize,
}

/// What was seen after the warm-up.
pub(super) struct Seen {
    /// Of all GPU time while tasks came.
    pub(super) allocated_percent: f64,
    /// By GPUs asked for: waiting times in seconds.
    pub(super) waits: BTreeMap<u32, Vec<f64>>,
    /// What was seen on the way, warm-up and all, at even distances in time while tasks came.
    pub(super) samples: Vec<Sample>,
}

/// What was seen at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) hours: f64,
    pub(super) waiting: usize,
    pub(super) allocated_percent: f64,
}

/// Samples of a run, at the most.
const SAMPLES: u64 = 300;

struct Running {
    demand: usize,
    place: Place,
}

struct Play<'a> {
    player: Player<'a>,
    cluster: &'a Cluster,
    waiting: Waiting,
    /// In milliseconds.
    ends: BinaryHeap<Reverse<(u64, usize)>>,
    running: BTreeMap<usize, Running>,
    window: usize,
}

/// Plays arrivals, which are tasks by their place in the list.
pub(super) fn play(player: Player<'_>, cluster: &Cluster, arrivals: &[usize], load: Load) -> Seen {
    let asked = |task: &usize| {
        let millis = cluster.demands[cluster.demand_of[*task]].device_millis();
        millis as f64 * cluster.tasks[*task].duration_s.max(1) as f64
    };
    let span_s = arrivals.iter().map(asked).sum::<f64>() / (load.offered * cluster.capacity_millis as f64);
    let at = |arrival: usize| (span_s * 1_000.0 * arrival as f64 / arrivals.len() as f64) as u64;
    let from_ms = (span_s * 1_000.0 * WARM_UP) as u64;
    let (mut held, mut used, mut last_ms) = (0u64, 0f64, 0u64);
    let mut seen = Seen { allocated_percent: 0.0, waits: BTreeMap::new(), samples: Vec::new() };
    let mut play = Play {
        player,
        cluster,
        waiting: Waiting::default(),
        ends: BinaryHeap::new(),
        running: BTreeMap::new(),
        window: load.window,
    };
    let mut next = 0;
    let until_ms = at(arrivals.len());
    loop {
        let end = play.ends.peek().map(|Reverse((at, _))| *at);
        let arrival = (next < arrivals.len()).then(|| at(next));
        let Some(now) = end.into_iter().chain(arrival).min() else { break };
        let (from, until) = (last_ms.clamp(from_ms, until_ms), now.clamp(from_ms, until_ms));
        used += held as f64 * (until - from) as f64;
        last_ms = now;
        while play.ends.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((_, arrival))) = play.ends.pop() else { break };
            held -= play.end(arrival);
        }
        while next < arrivals.len() && at(next) <= now {
            let demand = cluster.demand_of[arrivals[next]];
            play.player.arrive(demand);
            play.waiting.push(demand, next);
            next += 1;
        }
        while let Some((demand, arrival)) = play.place() {
            held += cluster.demands[demand].device_millis();
            let task = &cluster.tasks[arrivals[arrival]];
            play.ends.push(Reverse((now + task.duration_s.max(1) * 1_000, arrival)));
            if at(arrival) >= from_ms {
                let waited = (now - at(arrival)) as f64 / 1_000.0;
                let gpus = if task.gpu_millis < 1_000 { 0 } else { task.gpu_count };
                seen.waits.entry(gpus).or_default().push(waited);
            }
        }
        let due = until_ms * seen.samples.len() as u64 / SAMPLES;
        if now >= due && now <= until_ms {
            seen.samples.push(Sample {
                hours: now as f64 / 3_600_000.0,
                waiting: play.waiting.len(),
                allocated_percent: held as f64 * 100.0 / cluster.capacity_millis as f64,
            });
        }
    }
    seen.allocated_percent = used * 100.0 / (cluster.capacity_millis as f64 * (until_ms - from_ms) as f64);
    seen
}

impl Play<'_> {
    /// Ends a task; returns its GPU thousandths.
    fn end(&mut self, arrival: usize) -> u64 {
        let Some(Running { demand, place }) = self.running.remove(&arrival) else { return 0 };
        let demand = &self.cluster.demands[demand];
        self.player.depart();
        if let Some(mut node) = self.player.packer.node(place.node).cloned() {
            node.free = node.free.checked_add(&demand.resources).unwrap_or(node.free);
            for share in &place.devices {
                node.device_free[usize::from(share.index)] += share.millis;
            }
            self.player.packer.set(place.node, node);
        }
        demand.device_millis()
    }

    /// Places one of the waiting tasks, if any fits.
    fn place(&mut self) -> Option<(usize, usize)> {
        // One by one, the oldest that fits goes; otherwise the best of the window, and of all if none
        // of those fits: smaller ones don't wait for a place that nobody before them can use.
        let demand = match self.window {
            1 => self.waiting.oldest_that_fits(&mut self.player),
            window => self
                .waiting
                .choose(&mut self.player, window)
                .0
                .or_else(|| self.waiting.oldest_that_fits(&mut self.player)),
        }?;
        let arrival = self.waiting.pop(demand)?;
        let place = self.player.find_place(demand)?;
        self.running.insert(arrival, Running { demand, place });
        Some((demand, arrival))
    }
}
