//! Watcher: maintains a copy of the state from the broker's notifications alone, and compares it with the
//! state.

use std::collections::BTreeMap;

use weir::model::change::Change;
use weir::model::id::{JobId, NodeRef, PoolId, Revision};
use weir::state::State;
use weir::state::view::JobView;

/// The watcher's copy, and the revision that it has reached.
#[derive(Default)]
pub(crate) struct Watch {
    through: Revision,
    last: Option<(Revision, Change)>,
    view: View,
    notifications: u64,
}

/// The parts of the state that the watcher compares, in short form.
#[derive(Default, PartialEq)]
struct View {
    jobs: BTreeMap<JobId, (Revision, u32, u32, u32, u32)>,
    pools: BTreeMap<PoolId, Revision>,
    nodes: BTreeMap<NodeRef, (Revision, u32)>,
}

/// The copy is compared with the whole state after this many notifications.
const COMPARED_EVERY: u64 = 32;

impl Watch {
    /// Lists the whole state again, as watchers do after a broker has started.
    pub(crate) fn relist(&mut self, state: &State) {
        let notifications = self.notifications;
        *self = Self { through: state.revision(), last: None, view: View::of(state), notifications };
    }

    /// Applies a notification; `state` is the durable state.
    ///
    /// # Errors
    /// If a change is repeated or out of order, or the copy differs from the state.
    pub(crate) fn apply(&mut self, changes: &[(Revision, Change)], state: &State) -> Result<(), String> {
        for (revision, change) in changes {
            if *revision <= self.through {
                return Err(format!("watchers at revision {} receive {revision} again", self.through));
            }
            if self.last.is_some_and(|(last, _)| last > *revision) {
                return Err(format!("watchers receive revision {revision} out of order"));
            }
            if self.last.replace((*revision, *change)) == Some((*revision, *change)) {
                return Err(format!("watchers receive {change:?} at {revision} twice"));
            }
            self.view.update(*change, state);
        }
        self.through = self.through.max(changes.last().map_or(self.through, |(revision, _)| *revision));
        self.notifications += 1;
        if self.notifications.is_multiple_of(COMPARED_EVERY) {
            self.view.compare(&View::of(state))?;
        }
        Ok(())
    }
}

impl View {
    fn of(state: &State) -> Self {
        let jobs =
            state.jobs_from(JobId(0)).filter_map(|job| Some((job.id, short(&state.job_view(job.id)?))));
        let nodes = state.pools().flat_map(|pool| {
            let at = |(id, node): (_, &weir::state::pool::Node)| {
                (NodeRef { pool: pool.id, node: id }, (node.revision, node.tasks))
            };
            pool.nodes.iter().map(move |(id, node)| at((*id, node)))
        });
        Self {
            jobs: jobs.collect(),
            pools: state.pools().map(|pool| (pool.id, pool.revision)).collect(),
            nodes: nodes.collect(),
        }
    }

    fn update(&mut self, change: Change, state: &State) {
        match change {
            Change::Job(id) => match state.job_view(id) {
                Some(view) => drop(self.jobs.insert(id, short(&view))),
                None => drop(self.jobs.remove(&id)),
            },
            Change::Pool(id) => match state.pool(id) {
                Some(pool) => drop(self.pools.insert(id, pool.revision)),
                None => drop(self.pools.remove(&id)),
            },
            Change::Node(at) => match state.node(at) {
                Some(node) => drop(self.nodes.insert(at, (node.revision, node.tasks))),
                None => drop(self.nodes.remove(&at)),
            },
            Change::Queue(_)
            | Change::UsageFell(_)
            | Change::Class(_)
            | Change::ClaimReusable(_)
            | Change::WorkloadProfile => {}
        }
    }

    fn compare(&self, whole: &Self) -> Result<(), String> {
        let what = if self.jobs != whole.jobs {
            let differs = |id: &&JobId| self.jobs.get(id) != whole.jobs.get(id);
            let id = self.jobs.keys().chain(whole.jobs.keys()).find(differs);
            format!("job {id:?}: {:?}", id.map(|id| (self.jobs.get(id), whole.jobs.get(id))))
        } else if self.pools != whole.pools {
            format!("pools {:?} and {:?}", self.pools, whole.pools)
        } else if self.nodes != whole.nodes {
            let differs = |at: &&NodeRef| self.nodes.get(at) != whole.nodes.get(at);
            let at = self.nodes.keys().chain(whole.nodes.keys()).find(differs);
            format!("node {at:?}: {:?}", at.map(|at| (self.nodes.get(at), whole.nodes.get(at))))
        } else {
            return Ok(());
        };
        Err(format!("watchers were not notified of {what}"))
    }
}

fn short(view: &JobView) -> (Revision, u32, u32, u32, u32) {
    let counts = &view.counts;
    (
        view.revision,
        view.phase as u32,
        counts.waiting,
        counts.running,
        counts.live + counts.backing_off * 1_000,
    )
}
