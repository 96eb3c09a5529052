//! Runs a packing trial: places arrivals on a cluster by a policy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use anyhow::bail;
use weir::model::demand::{Demand, DeviceDemand, NodeClass, WorkloadProfile};
use weir::model::device::DeviceModelId;
use weir::model::id::{NodeId, NodeRef, PoolId};
use weir::model::limit::DEVICE_MILLIS;
use weir::model::pool::NodeSpec;
use weir::model::resource::Resources;
use weir::model::shape::Needs;
use weir::model::spec::Constraints;
use weir::scheduler::packing::bucket::ClassRef;
use weir::scheduler::packing::fgd::Fgd;
use weir::scheduler::packing::overflow::Overflow;
use weir::scheduler::packing::policy::Scorer;
use weir::scheduler::packing::profile::updated_profile;
use weir::scheduler::packing::random::Random;
use weir::scheduler::packing::{DemandId, Device, Node, Packer, Place, Undo};
use weir::state::workload::Workload;

use super::PolicyName;
use super::window;
use crate::traces::openb::Task;
use crate::traces::shuffle;

/// Nodes and tasks in the types of the packing engine.
pub(crate) struct Cluster {
    pub(crate) node_names: Vec<String>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) tasks: Vec<Task>,
    /// Distinct demands of the tasks.
    pub(crate) demands: Vec<Arc<Demand>>,
    /// For each task, the index of its demand in `demands`.
    pub(crate) demand_of: Vec<usize>,
    /// Sum of all nodes' GPUs, in thousandths.
    pub(crate) capacity_millis: u64,
}

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

/// A task that was placed.
pub(crate) struct Placed {
    /// Index in the order of arrival.
    pub(crate) arrival: usize,
    pub(crate) node: usize,
    pub(crate) devices: Vec<u16>,
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

impl Cluster {
    pub(crate) fn new(nodes: Vec<NodeSpec>, tasks: Vec<Task>, scale: u32) -> anyhow::Result<Self> {
        if nodes.is_empty() || tasks.is_empty() {
            bail!(
                "there are {} nodes and {} tasks: at least one of each is needed",
                nodes.len(),
                tasks.len()
            );
        }
        let names: BTreeSet<&String> =
            nodes.iter().flat_map(|node| &node.devices).map(|d| &d.model).collect();
        let models: BTreeMap<String, DeviceModelId> = names
            .into_iter()
            .enumerate()
            .map(|(at, name)| (name.clone(), DeviceModelId(at as u16)))
            .collect();
        let class = ClassRef::new(NodeClass::default());
        let (mut node_names, mut all) = (Vec::new(), Vec::new());
        for copy in 0..scale {
            for node in &nodes {
                let suffix = if copy == 0 { String::new() } else { format!("-x{copy}") };
                node_names.push(format!("{}{suffix}", node.name));
                let device = |device: &weir::model::pool::Device| Device {
                    model: models[&device.model],
                    topology_group: device.topology_group,
                };
                all.push(Node {
                    class: class.clone(),
                    free: node.allocatable.clone(),
                    devices: node.devices.iter().map(device).collect(),
                    device_free: vec![DEVICE_MILLIS; node.devices.len()],
                });
            }
        }
        let copies = (0..scale).flat_map(|copy| {
            tasks.iter().map(move |task| {
                let suffix = if copy == 0 { String::new() } else { format!("-x{copy}") };
                Task { name: format!("{}{suffix}", task.name), ..task.clone() }
            })
        });
        let tasks: Vec<Task> = copies.collect();
        let (mut demands, mut index_of, mut demand_of) = (Vec::new(), BTreeMap::new(), Vec::new());
        for task in &tasks {
            let demand = Arc::new(demand(task, &models)?);
            let index = *index_of.entry(demand.clone()).or_insert_with(|| {
                demands.push(demand);
                demands.len() - 1
            });
            demand_of.push(index);
        }
        let capacity_millis: u64 =
            all.iter().flat_map(|node| &node.device_free).map(|free| u64::from(*free)).sum();
        if capacity_millis == 0 {
            bail!("the nodes have no GPUs: the trial measures the allocated share of GPUs");
        }
        Ok(Self { node_names, nodes: all, tasks, demands, demand_of, capacity_millis })
    }

    /// Indices of the arriving tasks, in random order: the whole list, plus tasks sampled from it until the
    /// requested GPUs reach `inflate` times the capacity.
    pub(crate) fn arrivals(&self, seed: u64, inflate: f64) -> Vec<usize> {
        let mut random = Random::new(seed);
        let gpus = |at: usize| self.demands[self.demand_of[at]].device_millis();
        let mut arrivals: Vec<usize> = (0..self.tasks.len()).collect();
        let mut requested: u64 = arrivals.iter().map(|at| gpus(*at)).sum();
        let limit = (self.capacity_millis as f64 * inflate) as u64;
        // A list without GPU requests never reaches the limit.
        let samples = if requested > 0 { usize::MAX } else { 0 };
        for _ in 0..samples {
            let sampled = random.below(self.tasks.len() as u64) as usize;
            if requested + gpus(sampled) > limit {
                break;
            }
            requested += gpus(sampled);
            arrivals.push(sampled);
        }
        shuffle(&mut arrivals, &mut random);
        arrivals
    }

    /// Names of the arrivals; a task that was sampled again gets a suffix with a number.
    pub(crate) fn names(&self, arrivals: &[usize]) -> Vec<String> {
        let mut uses = vec![0u32; self.tasks.len()];
        let name = |at: &usize| {
            let name = &self.tasks[*at].name;
            let times = uses[*at];
            uses[*at] += 1;
            if times == 0 { name.clone() } else { format!("{name}-tuned-{times}") }
        };
        arrivals.iter().map(name).collect()
    }

    /// The demands of the task list with their counts.
    pub(crate) fn mix(&self) -> Vec<(Arc<Demand>, u64)> {
        let mut counts = vec![0; self.demands.len()];
        self.demand_of.iter().for_each(|at| counts[*at] += 1);
        self.demands.iter().cloned().zip(counts).collect()
    }
}

fn demand(task: &Task, models: &BTreeMap<String, DeviceModelId>) -> anyhow::Result<Demand> {
    let amount = task.devices()?;
    let mut allowed: Vec<DeviceModelId> =
        task.models.iter().filter_map(|name| models.get(name).copied()).collect();
    allowed.sort_unstable();
    allowed.dedup();
    let models = (!task.models.is_empty()).then_some(allowed);
    Ok(Demand {
        resources: Resources {
            cpu_millis: task.cpu_millis,
            memory_bytes: task.memory_bytes,
            ..Resources::default()
        },
        devices: amount.map(|amount| DeviceDemand { models, amount }),
        constraints: Constraints::default(),
        needs: Needs::default(),
    })
}

/// A policy at work on a cluster, with the workload profile that it has built.
pub(crate) struct Player<'a> {
    cluster: &'a Cluster,
    pub(crate) packer: Packer,
    ids: Vec<DemandId>,
    /// Arrivals that the profile is computed from; `None` if the policy has no profile.
    workload: Option<Workload>,
    /// The latest profile.
    profile: WorkloadProfile,
    policy_seed: u64,
}

impl<'a> Player<'a> {
    pub(crate) fn new(cluster: &'a Cluster, policy: PolicyName, policy_seed: u64) -> Self {
        let mut largest = Resources::default();
        for node in &cluster.nodes {
            largest.cpu_millis = largest.cpu_millis.max(node.free.cpu_millis);
            largest.memory_bytes = largest.memory_bytes.max(node.free.memory_bytes);
            largest.device_millis = largest.device_millis.max(node.free_millis());
        }
        let policy = policy.resolved();
        let scorer = match policy {
            PolicyName::Random => Scorer::Random { seed: policy_seed },
            PolicyName::BestFit => Scorer::BestFit,
            PolicyName::DotProduct => Scorer::DotProduct { largest },
            PolicyName::Fgd => {
                Scorer::Fgd(Fgd::new(cluster.mix().iter().map(|(demand, count)| (&**demand, *count))))
            }
            // Overflow places by best fit until the first profile.
            PolicyName::Overflow | PolicyName::Default => Scorer::BestFit,
        };
        let uses_profile = policy == PolicyName::Overflow;
        let mut packer = Packer::new(scorer);
        for (at, node) in cluster.nodes.iter().enumerate() {
            packer.set(node_ref(at), node.clone());
        }
        let ids = cluster.demands.iter().map(|demand| packer.demand(demand, None)).collect();
        Self {
            cluster,
            packer,
            ids,
            workload: uses_profile.then(Workload::default),
            profile: WorkloadProfile::default(),
            policy_seed,
        }
    }

    fn play(&mut self, arrivals: &[usize], window: usize, observe: Observe) -> Vec<Placed> {
        if window > 1 {
            return window::play(self, self.cluster, arrivals, window, observe);
        }
        let mut placed = Vec::new();
        for (arrival, task) in arrivals.iter().enumerate() {
            let demand = self.cluster.demand_of[*task];
            self.arrive(demand);
            placed.extend(self.place(demand, arrival));
            observe(arrival + 1, &self.packer);
        }
        placed
    }

    /// Empties the cluster. The policy's profile stays, and later arrivals no longer update it.
    fn clear(&mut self) {
        for (at, node) in self.cluster.nodes.iter().enumerate() {
            self.packer.set(node_ref(at), node.clone());
        }
        self.workload = None;
    }

    /// Records an arrival, and updates the profile if that is due.
    pub(crate) fn arrive(&mut self, demand: usize) {
        let Some(workload) = &mut self.workload else { return };
        workload.arrive(&self.cluster.demands[demand], 1);
        if !workload.is_check_due() {
            return;
        }
        let updated = updated_profile(workload, self.cluster.nodes.iter(), self.policy_seed, &self.profile);
        workload.note_check();
        if let Some(profile) = updated {
            self.packer.set_scorer(Scorer::Overflow(Overflow::of(&profile, self.policy_seed)));
            self.profile = profile;
        }
    }

    /// The packer's id of a demand.
    pub(crate) fn id(&mut self, demand: usize) -> DemandId {
        let id = self.packer.demand(&self.cluster.demands[demand], Some(self.ids[demand]));
        self.ids[demand] = id;
        id
    }

    /// Takes the best placement for a task of a demand; `None` if none fits.
    fn find_place(&mut self, demand: usize) -> Option<Place> {
        let id = self.id(demand);
        self.packer.place_of(id, None, &mut Undo::default())
    }

    /// Places a task of a demand; `None` if it doesn't fit.
    pub(crate) fn place(&mut self, demand: usize, arrival: usize) -> Option<Placed> {
        let place = self.find_place(demand)?;
        let devices = place.devices.iter().map(|share| share.index).collect();
        Some(Placed { arrival, node: place.node.node.0 as usize, devices })
    }
}

fn node_ref(at: usize) -> NodeRef {
    NodeRef { pool: PoolId(1), node: NodeId(at as u32) }
}

/// Called after each placement attempt with the number of arrivals so far and the packer.
pub(crate) type Observe<'a> = &'a mut dyn FnMut(usize, &Packer);

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
        player.play(arrivals, rules.window, &mut |_, _| {});
        player.clear();
    }
    let started = Instant::now();
    let placed = player.play(arrivals, rules.window, observe);
    let seconds = started.elapsed().as_secs_f64();
    let used = cluster.capacity_millis - player.packer.device_free();
    let passed_over_max = window::passed_over_max(placed.iter().map(|placed| placed.arrival), arrivals.len());
    let allocated_percent = used as f64 * 100.0 / cluster.capacity_millis as f64;
    Outcome { placed, allocated_percent, passed_over_max, seconds }
}
