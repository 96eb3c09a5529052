//! Decides on pools: sessions, nodes, cordons, drains, reach.

use std::collections::BTreeSet;

use super::{Decision, Reply, check_revision};
use crate::model::attempt::OutcomeKind;
use crate::model::device::DeviceModel;
use crate::model::exchange::{Hello, Inventory};
use crate::model::id::{AttemptId, Epoch, NodeId, PoolId, Revision};
use crate::model::limit::{DURATION_MS_MAX, EPOCH_MAX, NODES_PER_POOL_MAX, POOLS_MAX};
use crate::model::mutant::Mutant;
use crate::model::pool::{Connectivity, Drain, DrainMode};
use crate::model::time::Timestamp;
use crate::model::validate::{self, Violations};
use crate::state::State;
use crate::state::event::Event;
use crate::state::pool::{Pool, digest_of};
use crate::state::rejection::{InUse, Rejection};

impl State {
    pub(super) fn decide_session(&self, hello: &Hello) -> Result<Decision, Rejection> {
        let mut out = Violations::default();
        validate::pool_spec("hello.pool", &hello.pool, &mut out);
        if !self.catalogue.regions.contains_key(&hello.pool.region) {
            out.push("hello.pool.region", format!("region {} does not exist", hello.pool.region));
        }
        let last_epoch = hello.last_epoch.unwrap_or_default();
        out.range("hello.last_epoch", last_epoch.0, 0, EPOCH_MAX);
        out.finish().map_err(Rejection::Invalid)?;
        let Some(pool) = self.pool_named(&hello.pool.name) else {
            if self.pools.len() >= POOLS_MAX {
                return Err(Rejection::LimitReached { what: "pools", max: POOLS_MAX });
            }
            let (pool, epoch) = (PoolId(self.next.pool), Epoch(last_epoch.0 + 1));
            let (spec, instance, key_digest) = (hello.pool.clone(), hello.instance, digest_of(&hello.key));
            let events = vec![
                Event::PoolRegistered { pool, spec, instance, key_digest },
                Event::SessionOpened { pool, epoch },
                Event::PoolConnectivityChanged { pool, connectivity: Connectivity::Suspect },
            ];
            return Ok(Decision { events, reply: Reply::Session { pool, epoch } });
        };
        if !pool.is_bound_to(hello) {
            return Err(Rejection::PoolClaimed { pool: hello.pool.name.clone() });
        }
        if pool.is_served_by_another_copy(hello) && !Mutant::AcceptCopies.is_on() {
            let (name, served) = (hello.pool.name.clone(), pool.served_epoch);
            return Err(Rejection::PoolServed { pool: name, served, last: last_epoch });
        }
        let mut events = Vec::new();
        if pool.spec != hello.pool {
            events.push(Event::PoolUpdated { pool: pool.id, spec: hello.pool.clone() });
        }
        let (connectivity, pool, epoch) =
            (pool.connectivity, pool.id, Epoch(pool.epoch.max(last_epoch).0 + 1));
        events.push(Event::SessionOpened { pool, epoch });
        // The accepted renews the pool's leases: from here on they must not be taken for ended.
        if connectivity > Connectivity::Suspect {
            events.push(Event::PoolConnectivityChanged { pool, connectivity: Connectivity::Suspect });
        }
        Ok(Decision { events, reply: Reply::Session { pool, epoch } })
    }

    pub(super) fn decide_nodes(&self, id: PoolId, inventory: &Inventory) -> Result<Decision, Rejection> {
        let pool = self.pool_or_reject(id)?;
        if inventory.epoch != pool.epoch {
            let (name, current, epoch) = (pool.spec.name.clone(), pool.epoch, inventory.epoch);
            return Err(Rejection::StaleEpoch { pool: name, current, epoch });
        }
        let mut out = Violations::default();
        for (index, node) in inventory.nodes.iter().enumerate() {
            validate::node_spec(&format!("inventory.nodes[{index}]"), node, &mut out);
        }
        out.finish().map_err(Rejection::Invalid)?;
        self.check_total(pool, inventory)?;
        let (mut events, mut ids, mut next) = (Vec::new(), Vec::new(), pool.next_node);
        let mut models = Vec::new();
        let mut names = BTreeSet::new();
        for device in inventory.nodes.iter().flat_map(|node| &node.devices) {
            if self.model_named(&device.model).is_none() && names.insert(&device.model) {
                models.push(DeviceModel::unlisted(&device.model));
            }
        }
        if self.catalogue.models.len() + models.len() > usize::from(u16::MAX) {
            return Err(Rejection::LimitReached { what: "device models", max: usize::from(u16::MAX) });
        }
        if !models.is_empty() {
            events.push(Event::DeviceModelsAdded { models });
        }
        let mut seen = BTreeSet::new();
        for spec in &inventory.nodes {
            if !seen.insert(&spec.name) {
                return Err(Rejection::invalid(
                    "inventory.nodes",
                    format!("node {} is named twice", validate::quote(&spec.name)),
                ));
            }
            let known = pool.node_names.get(&spec.name).copied();
            let node = known.unwrap_or_else(|| {
                next += 1;
                NodeId(next - 1)
            });
            ids.push(node);
            let same = pool.nodes.get(&node).is_some_and(|node| node.spec == *spec && !node.gone);
            if !same {
                events.push(Event::NodeReported { pool: id, node, spec: spec.clone() });
            }
        }
        if pool.nodes.len() + (next - pool.next_node) as usize > NODES_PER_POOL_MAX {
            return Err(Rejection::LimitReached { what: "nodes in one pool", max: NODES_PER_POOL_MAX });
        }
        let gone = inventory.removed.iter().filter_map(|name| pool.node_names.get(name));
        events.extend(self.decide_remove_nodes(id, gone).events);
        Ok(Decision { events, reply: Reply::Nodes(ids) })
    }

    /// Checks that what the pool's nodes have still adds up.
    fn check_total(&self, pool: &Pool, inventory: &Inventory) -> Result<(), Rejection> {
        let mut total = Some(pool.total.clone());
        for spec in &inventory.nodes {
            // What a known node had before is counted too: totals near the edge are no pool's.
            total = total.and_then(|sum| sum.checked_add(&spec.allocatable));
        }
        match total {
            Some(_) => Ok(()),
            None => {
                Err(Rejection::invalid("inventory.nodes", "the pool's resources add up to more than 2^64-1"))
            }
        }
    }

    pub(super) fn decide_remove_nodes<'a>(
        &self,
        id: PoolId,
        nodes: impl IntoIterator<Item = &'a NodeId>,
    ) -> Decision {
        let removed = |node: &NodeId| {
            let spec = self.pool(id)?.nodes.get(node).filter(|node| !node.gone).map(|node| &node.spec)?;
            Some(Event::NodeRemoved { pool: id, node: *node, name: spec.name.as_str().into() })
        };
        Decision::done(nodes.into_iter().filter_map(removed).collect())
    }

    pub(super) fn decide_connectivity(
        &self,
        id: PoolId,
        connectivity: Connectivity,
    ) -> Result<Decision, Rejection> {
        let pool = self.pool_or_reject(id)?;
        let changed =
            pool.connectivity != connectivity || (connectivity == Connectivity::Ready && !pool.is_served());
        Ok(Decision::done(
            changed
                .then_some(Event::PoolConnectivityChanged { pool: id, connectivity })
                .into_iter()
                .collect(),
        ))
    }

    pub(super) fn decide_cordon_pool(&self, id: PoolId, cordoned: bool) -> Result<Decision, Rejection> {
        let pool = self.pool_or_reject(id)?;
        let mut events = Vec::new();
        if pool.cordoned != cordoned {
            events.push(Event::PoolCordoned { pool: id, cordoned });
        }
        // Uncordoning also ends a drain: there is one way back into service.
        if !cordoned && pool.drain.is_some() {
            events.push(Event::PoolDrainChanged { pool: id, drain: None });
        }
        Ok(Decision::done(events))
    }

    pub(super) fn decide_drain(
        &self,
        now: Timestamp,
        id: PoolId,
        mode: DrainMode,
        deadline_ms: u64,
    ) -> Result<Decision, Rejection> {
        let pool = self.pool_or_reject(id)?;
        if deadline_ms > DURATION_MS_MAX {
            let description = format!("{deadline_ms} is not within 0 and {DURATION_MS_MAX}");
            return Err(Rejection::invalid("deadline_ms", description));
        }
        let drain = Some(Drain { mode, deadline: (deadline_ms > 0).then(|| now.plus_ms(deadline_ms)) });
        let changed = pool.drain != drain;
        Ok(Decision::done(
            changed.then_some(Event::PoolDrainChanged { pool: id, drain }).into_iter().collect(),
        ))
    }

    pub(super) fn decide_cordon_node(
        &self,
        id: PoolId,
        node: NodeId,
        cordoned: bool,
    ) -> Result<Decision, Rejection> {
        let pool = self.pool_or_reject(id)?;
        let Some(known) = pool.nodes.get(&node) else {
            return Err(Rejection::NotFound { kind: "node", name: node.to_string() });
        };
        let mut events = Vec::new();
        if known.cordoned != cordoned {
            events.push(Event::NodeCordoned { pool: id, node, cordoned });
        }
        // There is one way back into service.
        if !cordoned && known.failure_tracker.quarantined_until.is_some() {
            events.push(Event::NodeReleased { pool: id, node });
        }
        Ok(Decision::done(events))
    }

    /// Only a pool that no agent serves and where nothing may run: what it still held would be lost.
    pub(super) fn decide_delete_pool(&self, name: &str, based_on: Revision) -> Result<Decision, Rejection> {
        let Some(pool) = self.pool_named(name) else {
            return Err(Rejection::NotFound { kind: "pool", name: name.to_owned() });
        };
        check_revision("pool", name, pool.revision, based_on)?;
        let in_use = |by| Err(Rejection::InUse { kind: "pool", name: name.to_owned(), by });
        let (count, wait_s) = (pool.attempts.len() as u64, self.settings.unreachable_ms / 1_000);
        match pool.connectivity {
            Connectivity::Ready if count > 0 => return in_use(InUse::RunningAttempts { count, wait_s }),
            Connectivity::Ready => return in_use(InUse::Agent { wait_s }),
            Connectivity::Suspect => return in_use(InUse::RecentAgent { wait_s }),
            Connectivity::Unreachable | Connectivity::Lost => {}
        }
        if let Some(first) = pool.attempts.first().and_then(|unit| self.attempt(*unit)) {
            return in_use(InUse::UnknownAttempts { count, first: first.id(self.identity.journal) });
        }
        let reservations = self.market.reservations.values().filter(|entry| entry.pool == Some(pool.id));
        let ended = reservations.map(|entry| Event::ReservationEnded { reservation: entry.id });
        Ok(Decision::done(ended.chain([Event::PoolDeleted { pool: pool.id, name: name.into() }]).collect()))
    }

    pub(super) fn decide_abandon(&self, now: Timestamp, id: AttemptId) -> Result<Decision, Rejection> {
        let unit = id.unit_id();
        // Only the very attempt that was named: the unit may have begun another meanwhile.
        let live = self.attempt(unit).filter(|attempt| attempt.id(self.identity.journal) == id);
        let Some(attempt) = live else {
            return Err(Rejection::NotFound { kind: "live attempt", name: id.to_string() });
        };
        let connectivity = self.pool(attempt.pool).map_or(Connectivity::Lost, |pool| pool.connectivity);
        if matches!(connectivity, Connectivity::Ready | Connectivity::Suspect) {
            return Err(Rejection::Outdated {
                what: "the pool's agent was connected within 15 s: cancel the job instead, or wait; the pool's state",
            });
        }
        let message = "an admin gave it up; it may still run";
        Ok(Decision::done(self.end_unasked(now, unit, OutcomeKind::Abandoned, message)))
    }
}
