//! The nodes and tasks of a packing trial, and the order in which the tasks arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::bail;
use weir::model::demand::{Demand, DeviceDemand, NodeClass};
use weir::model::device::DeviceModelId;
use weir::model::limit::DEVICE_MILLIS;
use weir::model::pool::NodeSpec;
use weir::model::resource::Resources;
use weir::model::shape::Needs;
use weir::model::spec::Constraints;
use weir::scheduler::packing::bucket::ClassRef;
use weir::scheduler::packing::random::Random;
use weir::scheduler::packing::{Device, Node};

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
