//! Explains why a unit waits: exactly one reason for each pool, and the changes to the job that would help.
//!
//! The checks of a pool run from the most permanent reason to the least (never, closed, busy, fits), and the
//! first that holds is reported.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::nodes::{class_of, emptied_copy, is_class, present_copy};
use super::packing::bucket::Bucket;
use super::packing::{GangShortage, Packer, may_try_by_best_fit};
use crate::model::demand::{Demand, NodeClass};
use crate::model::device::{DeviceAmount, DeviceModelId};
use crate::model::id::{NodeRef, PoolId};
use crate::model::limit::DEVICE_MILLIS;
use crate::model::mutant::Mutant;
use crate::model::pool::{Connectivity, Device};
use crate::model::reason::{Help, PoolReason};
use crate::model::resource::{ResourceKind, Resources};
use crate::model::shape::Shape;
use crate::model::spec::TaskRequest;
use crate::state::State;
use crate::state::pool::{Node, Pool};

/// Why a unit waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// The reason of each pool, in the order of registration.
    pub pools: Vec<PoolWhy>,
    /// Changes after which the unit could start now, as English phrases; at most four. Empty if a pool fits.
    pub would_help: Vec<Help>,
}

/// Why one pool does not take a unit, or [`PoolReason::Fits`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolWhy {
    pub pool: PoolId,
    pub reason: PoolReason,
}

/// The main packer, and the packer of the reserved nodes.
type Packers<'a> = (&'a Packer, &'a Packer);

/// Explains a shape: one reason for each pool.
pub(super) fn explain(state: &State, packers: Packers<'_>, shape: &Shape) -> Why {
    let asked = Asked::of(state, shape);
    let reason = |pool: &Pool| PoolWhy { pool: pool.id, reason: pool_reason(packers, pool, &asked) };
    let omitted = |pool: &&Pool| pool.cordoned && Mutant::OmitCordonedPools.is_on();
    let pools: Vec<PoolWhy> = state.pools().filter(|pool| !omitted(pool)).map(reason).collect();
    let would_help = if pools.iter().any(|why| why.reason == PoolReason::Fits) {
        Vec::new()
    } else {
        would_help(state, packers, shape, &pools)
    };
    Why { pools, would_help }
}

/// What is compared with every pool.
struct Asked<'a> {
    shape: &'a Shape,
    /// Each kind of task, with the number of tasks.
    demands: Vec<(Arc<Demand>, u32)>,
}

impl<'a> Asked<'a> {
    fn of(state: &State, shape: &'a Shape) -> Self {
        let task =
            |(request, count): &(TaskRequest, u32)| (Arc::new(state.demand_of(request, shape)), *count);
        Self { shape, demands: shape.tasks.iter().map(task).collect() }
    }

    /// The names of the device models that each kind of task allows.
    fn models(&self) -> impl Iterator<Item = &[String]> {
        let models =
            |request: &'a TaskRequest| request.devices.as_ref().map_or(&[][..], |asked| &asked.models);
        self.shape.tasks.iter().map(move |(request, _)| models(request))
    }
}

/// The reason of one pool: the first that holds.
fn pool_reason(packers: Packers<'_>, pool: &Pool, asked: &Asked<'_>) -> PoolReason {
    if let Some(reason) = never_reason(pool, asked) {
        return reason;
    }
    if let Some(reason) = closed(pool) {
        return reason;
    }
    for (demand, count) in &asked.demands {
        if let Some(reason) = busy(packers, pool, demand, *count) {
            return reason;
        }
    }
    let (unreserved, _) = packers;
    let copy = unreserved.best_fit_copy(pool.id, &asked.demands, None);
    if let Some(shortage) = shortage_of_unit(copy, pool, asked) {
        let Shortage { kind, needed, found } = shortage;
        return PoolReason::ResourcesBusy { kind, needed, free: found };
    }
    PoolReason::Fits
}

/// Why a pool could not take the unit even if it were empty and open; `None` if it could.
fn never_reason(pool: &Pool, asked: &Asked<'_>) -> Option<PoolReason> {
    if let Some(reason) = pool.exclusion(asked.shape) {
        return Some(reason);
    }
    for ((demand, count), models) in asked.demands.iter().zip(asked.models()) {
        if let Some(reason) = never(pool, demand, models, *count, asked.shape) {
            return Some(reason);
        }
    }
    let emptied = may_try_by_best_fit(pool.nodes.len() as u64, &asked.demands).then(|| emptied_copy(pool));
    let Shortage { kind, needed, found } = shortage_of_unit(emptied, pool, asked)?;
    Some(PoolReason::PoolTooSmall { kind, needed, total: found })
}

/// Returns each pool's reason if no pool could ever take a unit of this shape; `None` if one could, or if that is
/// unknown: there is no pool, one has not reported its nodes, or more than `budget` pools and nodes would have to
/// be compared. The budget is reduced by what was compared.
pub fn never_fits(state: &State, shape: &Shape, budget: &mut usize) -> Option<Vec<PoolWhy>> {
    let asked = Asked::of(state, shape);
    let mut found = Vec::new();
    for pool in state.pools() {
        let work = 1 + pool.nodes.len();
        if *budget < work {
            *budget = 0;
            return None;
        }
        *budget -= work;
        let reason = never_reason(pool, &asked).filter(|reason| *reason != PoolReason::NoNodes)?;
        found.push(PoolWhy { pool: pool.id, reason });
    }
    (!found.is_empty()).then_some(found)
}

/// What a pool lacks for a unit of several kinds of tasks.
struct Shortage {
    kind: ResourceKind,
    needed: u64,
    /// What the tasks took that could be placed.
    found: u64,
}

/// Tries to place a unit of several kinds of tasks on a copy of a pool as [`Packer::place_in`] does. Each kind
/// may fit by itself and all kinds together not. In a pool that is too large for that each kind of task is
/// only compared by itself.
fn shortage_of_unit(copy: Option<Packer>, pool: &Pool, asked: &Asked<'_>) -> Option<Shortage> {
    let mut copy = copy?;
    let tasks: Vec<_> =
        asked.demands.iter().map(|(demand, count)| (copy.demand(demand, None), *count)).collect();
    let GangShortage { lacking, placed } = copy.place_or_shortage(pool.id, &tasks, None).err()?;
    let (demand, _) = &asked.demands[lacking];
    let kind = if demand.devices.is_some() { ResourceKind::Device } else { ResourceKind::Cpu };
    let placed = asked.shape.tasks.iter().zip(placed);
    let found =
        placed.map(|((request, _), count)| request.total().get(&kind).saturating_mul(count as u64)).sum();
    let needed = asked.shape.total().get(&kind);
    Some(Shortage { kind, needed, found })
}

/// Why the pool could not take `count` such tasks even if it were empty and open.
fn never(pool: &Pool, demand: &Demand, models: &[String], count: u32, shape: &Shape) -> Option<PoolReason> {
    let count = u64::from(count);
    let mut admits = Admission::new(pool, demand);
    let mut fit_count = 0u64;
    let suffices = |node: &&Node| {
        let suits = !node.gone && admits.of(node) && has_device(node, demand);
        fit_count =
            fit_count.saturating_add(if suits { fit_count_on(&capacity_of(node), demand) } else { 0 });
        fit_count >= count
    };
    // The common case: the first few nodes suffice.
    if pool.nodes.values().find(suffices).is_some() {
        return None;
    }
    let all: Vec<&Node> = pool.nodes.values().filter(|node| !node.gone).collect();
    if all.is_empty() {
        return Some(PoolReason::NoNodes);
    }
    let has_label = |node: &&&Node| {
        demand.constraints.node_labels.iter().all(|(k, v)| node.spec.labels.get(k) == Some(v))
    };
    let labelled: Vec<&Node> = all.iter().filter(has_label).copied().collect();
    if labelled.is_empty() {
        return Some(PoolReason::NodeLabelMissing { nodes: all.len() as u64 });
    }
    let tolerated: Vec<&Node> =
        labelled.iter().filter(|node| demand.tolerates(&class_of(pool, node))).copied().collect();
    if tolerated.is_empty() {
        return Some(PoolReason::TaintNotTolerated { nodes: labelled.len() as u64 });
    }
    let fitting: Vec<&Node> = tolerated.iter().filter(|node| has_device(node, demand)).copied().collect();
    if fitting.is_empty() {
        return Some(PoolReason::DeviceMissing { models: models.to_vec() });
    }
    let usable = |node: &Node| usable_by(&capacity_of(node), demand);
    let needed = needed_by(demand);
    let (mut sum, mut enough) = (Resources::default(), false);
    for node in &fitting {
        let usable = usable(node);
        enough |= needed.fits(&usable);
        sum = sum.checked_add(&usable).unwrap_or(sum);
    }
    if !enough {
        // The kind that no node has enough of; if there is none, the first kind.
        let largest =
            |kind: &ResourceKind| fitting.iter().map(|node| usable(node).get(kind)).max().unwrap_or(0);
        let short =
            needed.iter().find(|(kind, amount)| *amount > largest(kind)).or_else(|| needed.iter().next())?;
        let (kind, needed) = short;
        let largest = largest(&kind);
        return Some(PoolReason::TaskTooLarge { kind, needed, largest });
    }
    if shape.task_count() == 1 {
        return None;
    }
    let unit = needed.checked_mul(count)?;
    if let Some(excess) = unit.first_excess(&sum) {
        return Some(PoolReason::PoolTooSmall {
            kind: excess.kind,
            needed: excess.needed,
            total: excess.have,
        });
    }
    // The total suffices, but it is split into pieces that too few tasks fit.
    let kind = if demand.devices.is_some() { ResourceKind::Device } else { ResourceKind::Cpu };
    let (needed, total) = (unit.get(&kind), needed.get(&kind).saturating_mul(fit_count));
    Some(PoolReason::PoolTooSmall { kind, needed, total })
}

/// Why the pool as such takes no work now.
fn closed(pool: &Pool) -> Option<PoolReason> {
    match pool.connectivity {
        Connectivity::Suspect => return Some(PoolReason::PoolSuspect),
        Connectivity::Unreachable => return Some(PoolReason::PoolUnreachable),
        Connectivity::Lost => return Some(PoolReason::PoolLost),
        Connectivity::Ready => {}
    }
    if pool.drain.is_some() {
        return Some(PoolReason::PoolDraining);
    }
    pool.cordoned.then_some(PoolReason::PoolCordoned)
}

/// Open nodes with equal free capacity, compared with one demand.
struct EqualNodes {
    nodes: u64,
    /// What the demand can use of one node.
    usable: Resources,
    /// Tasks that fit side by side on one node.
    fit_count: u64,
    fits: bool,
    /// Whether the nodes are reserved for other classes.
    reserved: bool,
}

impl EqualNodes {
    fn of_bucket(bucket: &Bucket, nodes: u32, demand: &Demand, reserved: bool) -> Self {
        let devices = bucket.devices.iter().map(|device| (device.model, device.free));
        let capacity = Capacity { free: bucket.free.clone(), devices: devices.collect() };
        Self::of(&capacity, u64::from(nodes), demand, bucket.fits(demand), reserved)
    }

    fn of(capacity: &Capacity, nodes: u64, demand: &Demand, fits: bool, reserved: bool) -> Self {
        let (usable, fit_count) = (usable_by(capacity, demand), fit_count_on(capacity, demand));
        Self { nodes, usable, fit_count, fits, reserved }
    }
}

/// Why the pool can't take `count` such tasks now, though it could when empty and takes work.
fn busy(packers: Packers<'_>, pool: &Pool, demand: &Demand, count: u32) -> Option<PoolReason> {
    let count = u64::from(count);
    if let Some(open) = open_by_bucket(packers, pool, demand) {
        return shortage_of_nodes(&open, demand, count);
    }
    let mut admits = Admission::new(pool, demand);
    let suits = |node: &&Node| !node.gone && admits.of(node) && has_device(node, demand);
    let suitable: Vec<&Node> = pool.nodes.values().filter(suits).collect();
    let is_quarantined = |node: &Node| node.failure_tracker.quarantined_until.is_some();
    let is_closed = |node: &&&Node| node.cordoned || node.spec.cordoned || is_quarantined(node);
    let closed: Vec<&Node> = suitable.iter().filter(is_closed).copied().collect();
    // If the other nodes would not suffice even when empty, running work is not what the unit waits for.
    let others = suitable.iter().filter(|node| !is_closed(node));
    let fit_count: u64 =
        others.map(|node| fit_count_on(&capacity_of(node), demand)).fold(0, u64::saturating_add);
    if fit_count < count && !closed.is_empty() {
        return Some(match closed.iter().filter(|node| is_quarantined(node)).count() as u64 {
            0 => PoolReason::NodesCordoned { nodes: closed.len() as u64 },
            nodes => PoolReason::NodesQuarantined { nodes },
        });
    }
    shortage_of_nodes(&open_by_node(packers, pool, demand, &suitable), demand, count)
}

/// The open nodes of a pool that suit a demand, grouped by the packers' buckets; `None` unless all nodes of
/// the pool are open, because the packers lack the others.
fn open_by_bucket(packers: Packers<'_>, pool: &Pool, demand: &Demand) -> Option<Vec<EqualNodes>> {
    let (unreserved, reserved) = packers;
    let both = [(unreserved, false), (reserved, true)];
    let buckets = || {
        both.iter().flat_map(|(packer, reserved)| packer.buckets_in(pool.id).map(|equal| (equal, *reserved)))
    };
    let open: usize = buckets().map(|((_, nodes), _)| nodes as usize).sum();
    let has_device = |bucket: &Bucket| {
        demand.devices.is_none() || bucket.devices.iter().any(|device| demand.allows(device.model))
    };
    let suits = |bucket: &Bucket| demand.admits(&bucket.class) && has_device(bucket);
    let suitable = buckets().filter(|((bucket, _), _)| suits(bucket));
    let equal = |((bucket, nodes), reserved)| EqualNodes::of_bucket(bucket, nodes, demand, reserved);
    (open == pool.nodes.len()).then(|| suitable.map(equal).collect())
}

/// The open nodes among `suitable`, one by one.
fn open_by_node(packers: Packers<'_>, pool: &Pool, demand: &Demand, suitable: &[&Node]) -> Vec<EqualNodes> {
    let (unreserved, reserved) = packers;
    let single = |node: &&Node| {
        let at = NodeRef { pool: pool.id, node: node.id };
        let fits = unreserved.fits(demand, at) || reserved.fits(demand, at);
        EqualNodes::of(&free_capacity_of(node), 1, demand, fits, reserved.node(at).is_some())
    };
    suitable.iter().filter(|node| node.is_open()).map(single).collect()
}

/// Asserts that a pool's nodes one by one give the same reason as its buckets. Returns whether the pool could
/// be explained by buckets.
#[cfg(test)]
pub(super) fn same_by_node(state: &State, packers: Packers<'_>, pool: &Pool, shape: &Shape) -> bool {
    let (request, count) = &shape.tasks[0];
    let demand = state.demand_of(request, shape);
    let Some(open) = open_by_bucket(packers, pool, &demand) else { return false };
    let mut admits = Admission::new(pool, &demand);
    let suits = |node: &&Node| admits.of(node) && has_device(node, &demand);
    let nodes: Vec<&Node> = pool.nodes.values().filter(suits).collect();
    let by_node = open_by_node(packers, pool, &demand, &nodes);
    for count in [1, u64::from(*count)] {
        assert_eq!(shortage_of_nodes(&open, &demand, count), shortage_of_nodes(&by_node, &demand, count));
    }
    true
}

/// What a pool's open nodes lack for `count` tasks: first an unreserved node, then the total, then a large
/// enough piece.
fn shortage_of_nodes(open: &[EqualNodes], demand: &Demand, count: u64) -> Option<PoolReason> {
    if count == 1 {
        if open.iter().any(|equal| equal.fits && !equal.reserved) {
            return None;
        }
        let nodes = open.iter().filter(|equal| equal.fits).map(|equal| equal.nodes).sum();
        if nodes > 0 {
            return Some(PoolReason::NodesReserved { nodes });
        }
    }
    let (needed, mut free, mut fit_count) = (needed_by(demand), Resources::default(), 0u64);
    let mut largest = Resources::default();
    for equal in open {
        fit_count = fit_count.saturating_add(equal.fit_count.saturating_mul(equal.nodes));
        largest = larger(&largest, &equal.usable);
        let sum = equal.usable.checked_mul(equal.nodes).and_then(|usable| free.checked_add(&usable));
        free = sum.unwrap_or(free);
    }
    if fit_count >= count {
        let reserved = open.iter().filter(|equal| equal.reserved);
        let (nodes, reserved_fit_count) = reserved.fold((0, 0), |(nodes, fit_count), equal| {
            (nodes + equal.nodes, equal.fit_count.saturating_mul(equal.nodes).saturating_add(fit_count))
        });
        return (fit_count.saturating_sub(reserved_fit_count) < count)
            .then_some(PoolReason::NodesReserved { nodes });
    }
    let unit = needed.checked_mul(count).unwrap_or_else(|| needed.clone());
    if let Some(excess) = unit.first_excess(&free) {
        return Some(PoolReason::ResourcesBusy {
            kind: excess.kind,
            needed: excess.needed,
            free: excess.have,
        });
    }
    let short = needed.first_excess(&largest);
    let kind = short.map_or_else(
        || if demand.devices.is_some() { ResourceKind::Device } else { ResourceKind::Cpu },
        |excess| excess.kind,
    );
    let (needed, free, largest) = (unit.get(&kind), free.get(&kind), largest.get(&kind));
    Some(PoolReason::NodeFragmentation { kind, needed, free, largest })
}

/// Which nodes of a pool a demand may use, by their labels and taints. Caches the latest class, as equal
/// nodes mostly follow each other.
struct Admission<'a> {
    pool: &'a Pool,
    demand: &'a Demand,
    last: Option<(NodeClass, bool)>,
}

impl<'a> Admission<'a> {
    fn new(pool: &'a Pool, demand: &'a Demand) -> Self {
        Self { pool, demand, last: None }
    }

    fn of(&mut self, node: &Node) -> bool {
        if let Some((class, admits)) = &self.last
            && is_class(class, self.pool, node)
        {
            return *admits;
        }
        let class = class_of(self.pool, node);
        let admits = self.demand.admits(&class);
        self.last = Some((class, admits));
        admits
    }
}

fn has_device(node: &Node, demand: &Demand) -> bool {
    demand.devices.is_none() || node.models.iter().any(|model| demand.allows(*model))
}

fn needed_by(demand: &Demand) -> Resources {
    let device_millis = demand.device_millis();
    Resources { device_millis, ..demand.resources.clone() }
}

/// What a node has, or has free: resources without devices, and thousandths by device.
struct Capacity {
    free: Resources,
    devices: Vec<(DeviceModelId, u32)>,
}

/// What a node would have free if it were empty.
fn capacity_of(node: &Node) -> Capacity {
    let millis = |device: &Device| if device.healthy { device.millis } else { 0 };
    let devices = node.models.iter().copied().zip(node.spec.devices.iter().map(millis));
    Capacity { free: node.spec.allocatable.clone(), devices: devices.collect() }
}

fn free_capacity_of(node: &Node) -> Capacity {
    let devices = node.models.iter().enumerate().map(|(index, model)| (*model, node.device_free(index)));
    Capacity { free: node.free(), devices: devices.collect() }
}

/// The part of a capacity that such tasks can use: of the devices only those of allowed models, and only
/// untouched ones if whole devices are asked for.
fn usable_by(capacity: &Capacity, demand: &Demand) -> Resources {
    let device = |millis: u32| match demand.devices.as_ref().map(|devices| devices.amount) {
        Some(DeviceAmount::Whole(_)) if millis == DEVICE_MILLIS => u64::from(millis),
        Some(DeviceAmount::Fraction(least)) if millis >= least => u64::from(millis),
        _ => 0,
    };
    let allowed = capacity.devices.iter().filter(|(model, _)| demand.allows(*model));
    Resources { device_millis: allowed.map(|(_, millis)| device(*millis)).sum(), ..capacity.free.clone() }
}

/// How many such tasks fit side by side.
fn fit_count_on(capacity: &Capacity, demand: &Demand) -> u64 {
    let free = &capacity.free;
    let others =
        demand.resources.iter().map(|(kind, amount)| free.get(&kind) / amount).min().unwrap_or(u64::MAX);
    let Some(amount) = demand.devices.as_ref().map(|devices| devices.amount) else { return others };
    let mut per_model: BTreeMap<DeviceModelId, u64> = BTreeMap::new();
    for (model, free) in capacity.devices.iter().filter(|(model, _)| demand.allows(*model)) {
        *per_model.entry(*model).or_default() += match amount {
            DeviceAmount::Whole(_) => u64::from(*free == DEVICE_MILLIS),
            DeviceAmount::Fraction(millis) => u64::from(free / millis),
        };
    }
    let devices: u64 = match amount {
        DeviceAmount::Whole(count) => per_model.values().map(|untouched| untouched / u64::from(count)).sum(),
        DeviceAmount::Fraction(_) => per_model.values().sum(),
    };
    others.min(devices)
}

/// The maximum of each kind, without those beyond the four common ones.
fn larger(left: &Resources, right: &Resources) -> Resources {
    Resources {
        cpu_millis: left.cpu_millis.max(right.cpu_millis),
        memory_bytes: left.memory_bytes.max(right.memory_bytes),
        storage_bytes: left.storage_bytes.max(right.storage_bytes),
        device_millis: left.device_millis.max(right.device_millis),
        other: None,
    }
}

/// Cordoned pools of which is found out whether a unit would fit: each takes as long as its nodes are many.
const CORDONED_TRIED_MAX: usize = 4;

/// The same with at most so many devices for each task; `None` if no task asks for more.
fn with_devices(shape: &Shape, devices: u64) -> Option<Shape> {
    let devices = u32::try_from(devices).ok()?;
    let (mut smaller, mut changed) = (shape.clone(), false);
    for (request, _) in &mut smaller.tasks {
        if let Some(DeviceAmount::Whole(count)) = request.devices.as_mut().map(|devices| &mut devices.amount)
            && *count > devices
        {
            (*count, changed) = (devices, true);
        }
    }
    changed.then_some(smaller)
}

/// Single changes to the job, or to a pool, that would let the unit start.
fn would_help(state: &State, packers: Packers<'_>, shape: &Shape, pools: &[PoolWhy]) -> Vec<Help> {
    let mut help = Vec::new();
    let mut relaxed = shape.clone();
    relaxed.constraints.regions_allowed.clear();
    relaxed.constraints.regions_denied.clear();
    let relaxed = Asked::of(state, &relaxed);
    for why in pools {
        let (Some(pool), PoolReason::RegionNotAllowed { region }) = (state.pool(why.pool), &why.reason)
        else {
            continue;
        };
        if pool_reason(packers, pool, &relaxed) == PoolReason::Fits {
            help.push(Help::AllowRegion { region: *region, pool: pool.spec.name.clone() });
        }
    }
    let largest_block = pools.iter().filter_map(|why| match &why.reason {
        PoolReason::NodeFragmentation { kind: ResourceKind::Device, largest, .. } => {
            Some(*largest / u64::from(DEVICE_MILLIS))
        }
        _ => None,
    });
    if let Some(devices) = largest_block.max().filter(|devices| *devices > 0)
        && let Some(smaller) = with_devices(shape, devices)
    {
        let asked = Asked::of(state, &smaller);
        if state.pools().any(|pool| pool_reason(packers, pool, &asked) == PoolReason::Fits) {
            help.push(Help::FewerDevices { devices });
        }
    }
    let asked = Asked::of(state, shape);
    let cordoned = pools.iter().filter(|why| why.reason == PoolReason::PoolCordoned);
    for pool in cordoned.take(CORDONED_TRIED_MAX).filter_map(|why| state.pool(why.pool)) {
        // Its nodes are in no packer.
        if shortage_of_unit(Some(present_copy(pool)), pool, &asked).is_none() {
            help.push(Help::UncordonPool { pool: pool.spec.name.clone() });
        }
    }
    help.truncate(4);
    help
}
