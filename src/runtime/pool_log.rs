//! Logs what happens to pools: an operator finds in the broker's log when a pool was lost, and when it was back.

use tracing::{info, warn};

use crate::model::id::{NodeRef, PoolId};
use crate::model::pool::Connectivity;
use crate::state::State;
use crate::state::event::Event;

/// Logs an event of a pool or a quarantined node. `state` is the state after it.
pub(super) fn log(state: &State, event: &Event) {
    let name = |id: &PoolId| state.pool(*id).map_or("", |pool| pool.spec.name.as_str());
    let attempts = |id: &PoolId| state.pool(*id).map_or(0, |pool| pool.attempts.len());
    match event {
        Event::PoolRegistered { pool, spec, .. } => {
            info!(pool = name(pool), region = %spec.region, backend = spec.backend, "the pool is registered");
        }
        Event::SessionOpened { pool, epoch } => {
            info!(pool = name(pool), epoch = epoch.0, "the pool's agent is connected");
        }
        Event::PoolConnectivityChanged { pool, connectivity } => {
            let (pool, attempts) = (name(pool), attempts(pool));
            match connectivity {
                Connectivity::Ready => info!(pool, attempts, "the pool is READY"),
                Connectivity::Suspect => info!(pool, attempts, "the pool is SUSPECT: it gets no new work"),
                Connectivity::Unreachable => {
                    warn!(
                        pool,
                        attempts, "the pool is UNREACHABLE: whether its attempts still run is unknown"
                    );
                }
                Connectivity::Lost => {
                    warn!(
                        pool,
                        attempts,
                        "the pool is LOST: attempts are started elsewhere when their lease has expired"
                    );
                }
            }
        }
        Event::PoolCordoned { pool, cordoned: true } => info!(pool = name(pool), "the pool is cordoned"),
        Event::PoolCordoned { pool, cordoned: false } => info!(pool = name(pool), "the pool is uncordoned"),
        Event::PoolDrainChanged { pool, drain: Some(_) } => info!(pool = name(pool), "the pool is draining"),
        Event::PoolDrainChanged { pool, drain: None } => {
            info!(pool = name(pool), "the pool is no longer draining");
        }
        Event::PoolDeleted { name, .. } => info!(pool = &**name, "the pool is deleted"),
        Event::NodeQuarantined { pool, node, .. } => {
            let at = state.node(NodeRef { pool: *pool, node: *node });
            let node = at.map_or("", |node| node.spec.name.as_str());
            warn!(pool = name(pool), node, "the node is quarantined: every attempt on it fails");
        }
        _ => {}
    }
}
