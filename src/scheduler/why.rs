//! Why a unit isn't placed: for every pool exactly one reason, and what would help.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::nodes::{class_of, demand_of, is_class, sketch};
use super::packing::Packer;
use super::packing::bucket::Bucket;
use crate::model::demand::{self, Demand, NodeClass};
use crate::model::device::{DeviceAmount, DeviceModelId};
use crate::model::id::{NodeRef, PoolId};
use crate::model::limit::DEVICE_MILLIS;
use crate::model::mutant::Mutant;
use crate::model::pool::{Connectivity, Device};
use crate::model::reason::{Permanence, PoolReason};
use crate::model::resource::{ResourceKind, Resources};
use crate::model::shape::Shape;
use crate::model::spec::TaskRequest;
use crate::state::State;
use crate::state::pool::{Node, Pool};

/// Every pool's part in a unit's waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// Each pool once, in the order they were registered.
    pub pools: Vec<PoolWhy>,
    /// Changes to the job that would let it start now.
    pub would_help: Vec<String>,
}

/// One pool's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolWhy {
    pub pool: PoolId,
    pub reason: PoolReason,
}

/// Why a pool as such can't take a shape, whatever its nodes hold: cheap, and asked often.
pub(super) fn exclusion(state: &State, id: PoolId, shape: &Shape) -> Option<PoolReason> {
    let pool = state.pool(id)?;
    let spec = &pool.spec;
    demand::exclusion(&shape.constraints, shape.needs, Some(&spec.name), spec.region, spec.capabilities)
}

/// What packs the nodes for all, and those that are kept for some.
type Packers<'a> = (&'a Packer, &'a Packer);

/// Explains every pool.
pub(super) fn explain(state: &State, packers: Packers<'_>, shape: &Shape) -> Why {
    let asked = Asked::of(state, shape);
    let reason = |pool: &Pool| PoolWhy { pool: pool.id, reason: pool_reason(state, packers, pool, &asked) };
    let omitted = |pool: &&Pool| pool.cordoned && Mutant::OmitCordonedPools.is_on();
    let pools: Vec<PoolWhy> = state.pools().filter(|pool| !omitted(pool)).map(reason).collect();
    let would_help = if pools.iter().any(|why| why.reason == PoolReason::Fits) {
        Vec::new()
    } else {
        would_help(state, packers, shape, &pools)
    };
    Why { pools, would_help }
}

/// What is asked of every pool: a shape, and of each kind of task what it demands and how many there are.
struct Asked<'a> {
    shape: &'a Shape,
    tasks: Vec<(Demand, &'a [String], u32)>,
}

impl<'a> Asked<'a> {
    fn of(state: &State, shape: &'a Shape) -> Self {
        let task = |(request, count): &'a (TaskRequest, u32)| {
            let models = request.devices.as_ref().map_or(&[][..], |devices| &devices.models);
            (demand_of(state, request, shape), models, *count)
        };
        Self { shape, tasks: shape.tasks.iter().map(task).collect() }
    }
}

fn pool_reason(state: &State, packers: Packers<'_>, pool: &Pool, asked: &Asked<'_>) -> PoolReason {
    let shape = asked.shape;
    if let Some(reason) = exclusion(state, pool.id, shape) {
        return reason;
    }
    for (demand, models, count) in &asked.tasks {
        if let Some(reason) = never(pool, demand, models, *count, shape) {
            return reason;
        }
    }
    if let Some(lack) = lack_together(state, pool, shape, true) {
        let Lack { kind, needed, found } = lack;
        return PoolReason::PoolTooSmall { kind, needed, total: found };
    }
    if let Some(reason) = closed(pool) {
        return reason;
    }
    for (demand, _, count) in &asked.tasks {
        if let Some(reason) = full(packers, pool, demand, *count) {
            return reason;
        }
    }
    if let Some(lack) = lack_together(state, pool, shape, false) {
        return PoolReason::ResourcesBusy { kind: lack.kind, needed: lack.needed, free: lack.found };
    }
    PoolReason::Fits
}

/// Nodes of a pool and tasks of a gang up to which a placement is tried out to explain one: it takes
/// a few milliseconds. Beyond that each kind of task is looked at by itself.
const TRIED_MAX: u64 = 1_024;

/// What tasks of several kinds lack that have to be placed together.
struct Lack {
    kind: ResourceKind,
    needed: u64,
    /// What those took that found a place.
    found: u64,
}

/// Tries to place a unit of unlike tasks: each kind may fit by itself, and all not beside each other.
fn lack_together(state: &State, pool: &Pool, shape: &Shape, empty: bool) -> Option<Lack> {
    let work = (pool.nodes.len() as u64).max(u64::from(shape.task_count()));
    if shape.tasks.len() < 2 || work > TRIED_MAX {
        return None;
    }
    let mut packer = sketch(pool, empty);
    let mut found = Resources::default();
    for (request, count) in &shape.tasks {
        let demand = Arc::new(demand_of(state, request, shape));
        for _ in 0..*count {
            if packer.place(&demand).is_none() {
                let kind = if request.devices.is_some() { ResourceKind::Device } else { ResourceKind::Cpu };
                let (needed, found) = (shape.total().get(&kind), found.get(&kind));
                return Some(Lack { kind, needed, found });
            }
            found = found.checked_add(&request.total()).unwrap_or(found);
        }
    }
    None
}

/// Why the pool could not take it even if it were empty and open.
fn never(pool: &Pool, demand: &Demand, models: &[String], count: u32, shape: &Shape) -> Option<PoolReason> {
    let count = u64::from(count);
    let mut admits = Admission::new(pool, demand);
    let mut places = 0u64;
    let would_do = |node: &&Node| {
        let suits = !node.gone && admits.of(node) && has_device(node, demand);
        places = places.saturating_add(if suits { places_on(&stock_of(node), demand) } else { 0 });
        places >= count
    };
    // Nearly always the first nodes would do.
    if pool.nodes.values().find(would_do).is_some() {
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
    let room = |node: &Node| room_of(&stock_of(node), demand);
    let needed = needed_by(demand);
    let (mut sum, mut enough) = (Resources::default(), false);
    for node in &fitting {
        let room = room(node);
        enough |= needed.fits(&room);
        sum = sum.checked_add(&room).unwrap_or(sum);
    }
    if !enough {
        // The kind that no node has enough of, or, where each kind is on some node, the first.
        let largest =
            |kind: &ResourceKind| fitting.iter().map(|node| room(node).get(kind)).max().unwrap_or(0);
        let lacking =
            needed.iter().find(|(kind, amount)| *amount > largest(kind)).or_else(|| needed.iter().next())?;
        let (kind, needed) = lacking;
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
    // Enough in all, but not in pieces that tasks fit into.
    let kind = if demand.devices.is_some() { ResourceKind::Device } else { ResourceKind::Cpu };
    let (needed, total) = (unit.get(&kind), needed.get(&kind).saturating_mul(places));
    Some(PoolReason::PoolTooSmall { kind, needed, total })
}

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

/// Open nodes that are alike, as far as a demand goes.
struct Alike {
    nodes: u64,
    room: Resources,
    /// On one of them.
    places: u64,
    fits: bool,
    /// They are kept for others.
    kept: bool,
}

impl Alike {
    fn of_bucket(bucket: &Bucket, nodes: u32, demand: &Demand, kept: bool) -> Self {
        let devices = bucket.devices.iter().map(|room| (room.model, room.free));
        let stock = Stock { free: bucket.free.clone(), devices: devices.collect() };
        Self::of(&stock, u64::from(nodes), demand, bucket.fits(demand), kept)
    }

    fn of(stock: &Stock, nodes: u64, demand: &Demand, fits: bool, kept: bool) -> Self {
        Self { nodes, room: room_of(stock, demand), places: places_on(stock, demand), fits, kept }
    }
}

/// Why the pool has no place now.
fn full(packers: Packers<'_>, pool: &Pool, demand: &Demand, count: u32) -> Option<PoolReason> {
    let count = u64::from(count);
    if let Some(open) = open_by_bucket(packers, pool, demand) {
        return lacking(&open, demand, count);
    }
    let mut admits = Admission::new(pool, demand);
    let suits = |node: &&Node| !node.gone && admits.of(node) && has_device(node, demand);
    let suitable: Vec<&Node> = pool.nodes.values().filter(suits).collect();
    let is_held = |node: &Node| node.failure_tracker.quarantined_until.is_some();
    let is_shut = |node: &&&Node| node.cordoned || node.spec.cordoned || is_held(node);
    let shut: Vec<&Node> = suitable.iter().filter(is_shut).copied().collect();
    // If the others would not do even when empty, it is not running work that must end first.
    let others = suitable.iter().filter(|node| !is_shut(node));
    let places: u64 = others.map(|node| places_on(&stock_of(node), demand)).fold(0, u64::saturating_add);
    if places < count && !shut.is_empty() {
        return Some(match shut.iter().filter(|node| is_held(node)).count() as u64 {
            0 => PoolReason::NodesCordoned { nodes: shut.len() as u64 },
            nodes => PoolReason::NodesQuarantined { nodes },
        });
    }
    lacking(&open_by_node(packers, pool, demand, &suitable), demand, count)
}

/// The open nodes of a pool that suit a demand, by what the packers know; `None` where others are shut or gone.
fn open_by_bucket(packers: Packers<'_>, pool: &Pool, demand: &Demand) -> Option<Vec<Alike>> {
    let (for_all, kept) = packers;
    let both = [(for_all, false), (kept, true)];
    let buckets =
        || both.iter().flat_map(|(packer, kept)| packer.buckets_in(pool.id).map(|alike| (alike, *kept)));
    let open: usize = buckets().map(|((_, nodes), _)| nodes as usize).sum();
    let has_device = |bucket: &Bucket| {
        demand.devices.is_none() || bucket.devices.iter().any(|room| demand.allows(room.model))
    };
    let suits = |bucket: &Bucket| demand.admits(&bucket.class) && has_device(bucket);
    let suitable = buckets().filter(|((bucket, _), _)| suits(bucket));
    let alike = |((bucket, nodes), kept)| Alike::of_bucket(bucket, nodes, demand, kept);
    (open == pool.nodes.len()).then(|| suitable.map(alike).collect())
}

fn open_by_node(packers: Packers<'_>, pool: &Pool, demand: &Demand, suitable: &[&Node]) -> Vec<Alike> {
    let (for_all, kept) = packers;
    let alike = |node: &&Node| {
        let at = NodeRef { pool: pool.id, node: node.id };
        let (fits, kept) = (for_all.fits(demand, at) || kept.fits(demand, at), kept.node(at).is_some());
        Alike::of(&free_of(node), 1, demand, fits, kept)
    };
    suitable.iter().filter(|node| node.is_open()).map(alike).collect()
}

/// Fails unless a pool's nodes explain the same as its buckets do; tells whether both could be asked.
#[cfg(test)]
pub(super) fn same_by_node(state: &State, packers: Packers<'_>, pool: &Pool, shape: &Shape) -> bool {
    let (request, count) = &shape.tasks[0];
    let demand = demand_of(state, request, shape);
    let Some(open) = open_by_bucket(packers, pool, &demand) else { return false };
    let mut admits = Admission::new(pool, &demand);
    let suits = |node: &&Node| admits.of(node) && has_device(node, &demand);
    let nodes: Vec<&Node> = pool.nodes.values().filter(suits).collect();
    let by_node = open_by_node(packers, pool, &demand, &nodes);
    for count in [1, u64::from(*count)] {
        assert_eq!(lacking(&open, &demand, count), lacking(&by_node, &demand, count));
    }
    true
}

/// What a pool's open nodes lack for so many tasks.
fn lacking(open: &[Alike], demand: &Demand, count: u64) -> Option<PoolReason> {
    if count == 1 {
        if open.iter().any(|alike| alike.fits && !alike.kept) {
            return None;
        }
        let nodes = open.iter().filter(|alike| alike.fits).map(|alike| alike.nodes).sum();
        if nodes > 0 {
            return Some(PoolReason::NodesReserved { nodes });
        }
    }
    let (needed, mut free, mut places) = (needed_by(demand), Resources::default(), 0u64);
    let mut largest = Resources::default();
    for alike in open {
        places = places.saturating_add(alike.places.saturating_mul(alike.nodes));
        largest = larger(&largest, &alike.room);
        let sum = alike.room.checked_mul(alike.nodes).and_then(|room| free.checked_add(&room));
        free = sum.unwrap_or(free);
    }
    if places >= count {
        let kept = open.iter().filter(|alike| alike.kept);
        let (nodes, kept_places) = kept.fold((0, 0), |(nodes, places), alike| {
            (nodes + alike.nodes, alike.places.saturating_mul(alike.nodes).saturating_add(places))
        });
        return (places.saturating_sub(kept_places) < count).then_some(PoolReason::NodesReserved { nodes });
    }
    let unit = needed.checked_mul(count).unwrap_or_else(|| needed.clone());
    if let Some(excess) = unit.first_excess(&free) {
        return Some(PoolReason::ResourcesBusy {
            kind: excess.kind,
            needed: excess.needed,
            free: excess.have,
        });
    }
    let lacking = needed.first_excess(&largest);
    let kind = lacking.map_or_else(
        || if demand.devices.is_some() { ResourceKind::Device } else { ResourceKind::Cpu },
        |excess| excess.kind,
    );
    let (needed, free, largest) = (unit.get(&kind), free.get(&kind), largest.get(&kind));
    Some(PoolReason::NodeFragmentation { kind, needed, free, largest })
}

/// Which nodes of a pool a demand may use, by their labels and taints: alike nodes come in a row.
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
struct Stock {
    free: Resources,
    devices: Vec<(DeviceModelId, u32)>,
}

/// What a node would have free if it were empty.
fn stock_of(node: &Node) -> Stock {
    let millis = |device: &Device| if device.healthy { device.millis } else { 0 };
    let devices = node.models.iter().copied().zip(node.spec.devices.iter().map(millis));
    Stock { free: node.spec.allocatable.clone(), devices: devices.collect() }
}

fn free_of(node: &Node) -> Stock {
    let devices = node.models.iter().enumerate().map(|(index, model)| (*model, node.device_free(index)));
    Stock { free: node.free(), devices: devices.collect() }
}

/// What of it is there for such tasks: devices of the allowed models, and whole ones if they are asked for.
fn room_of(stock: &Stock, demand: &Demand) -> Resources {
    let device = |millis: u32| match demand.devices.as_ref().map(|devices| devices.amount) {
        Some(DeviceAmount::Whole(_)) if millis == DEVICE_MILLIS => u64::from(millis),
        Some(DeviceAmount::Fraction(least)) if millis >= least => u64::from(millis),
        _ => 0,
    };
    let allowed = stock.devices.iter().filter(|(model, _)| demand.allows(*model));
    Resources { device_millis: allowed.map(|(_, millis)| device(*millis)).sum(), ..stock.free.clone() }
}

/// How many such tasks it takes side by side.
fn places_on(stock: &Stock, demand: &Demand) -> u64 {
    let free = &stock.free;
    let others =
        demand.resources.iter().map(|(kind, amount)| free.get(&kind) / amount).min().unwrap_or(u64::MAX);
    let Some(amount) = demand.devices.as_ref().map(|devices| devices.amount) else { return others };
    let mut per_model: BTreeMap<DeviceModelId, u64> = BTreeMap::new();
    for (model, free) in stock.devices.iter().filter(|(model, _)| demand.allows(*model)) {
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

fn larger(left: &Resources, right: &Resources) -> Resources {
    Resources {
        cpu_millis: left.cpu_millis.max(right.cpu_millis),
        memory_bytes: left.memory_bytes.max(right.memory_bytes),
        storage_bytes: left.storage_bytes.max(right.storage_bytes),
        device_millis: left.device_millis.max(right.device_millis),
        other: None,
    }
}

/// Single changes to the job after which some pool would take it now.
fn would_help(state: &State, packers: Packers<'_>, shape: &Shape, pools: &[PoolWhy]) -> Vec<String> {
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
        if pool_reason(state, packers, pool, &relaxed) == PoolReason::Fits {
            help.push(format!("region {region} ({} has room)", pool.spec.name));
        }
    }
    let largest_block = pools.iter().filter_map(|why| match &why.reason {
        PoolReason::NodeFragmentation { kind: ResourceKind::Device, largest, .. } => {
            Some(*largest / u64::from(DEVICE_MILLIS))
        }
        _ => None,
    });
    if let Some(devices) = largest_block.max().filter(|devices| *devices > 0) {
        help.push(format!("at most {devices} devices per task"));
    }
    for why in pools {
        let Some(pool) = state.pool(why.pool) else { continue };
        if why.reason.permanence() == Permanence::Closed && matches!(why.reason, PoolReason::PoolCordoned) {
            help.push(format!("pool {} uncordoned", pool.spec.name));
        }
    }
    help.truncate(4);
    help
}
