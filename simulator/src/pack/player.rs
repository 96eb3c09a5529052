//! The broker's packing engine with a policy, placing the tasks of a trial.

use weir::model::demand::WorkloadProfile;
use weir::model::id::{NodeId, NodeRef, PoolId};
use weir::model::resource::Resources;
use weir::scheduler::packing::fgd::Fgd;
use weir::scheduler::packing::overflow::Overflow;
use weir::scheduler::packing::policy::Scorer;
use weir::scheduler::packing::profile::updated_profile;
use weir::scheduler::packing::{DemandId, Packer, Place, Undo};
use weir::state::workload::Workload;

use super::PolicyName;
use super::cluster::Cluster;

/// A task that was placed.
pub(crate) struct Placed {
    /// Index in the order of arrival.
    pub(crate) arrival: usize,
    pub(crate) node: usize,
    pub(crate) devices: Vec<u16>,
}

/// Called after each placement attempt with the number of arrivals so far and the packer.
pub(crate) type Observe<'a> = &'a mut dyn FnMut(usize, &Packer);

/// A policy at work on a cluster, with the workload profile that it has built.
pub(crate) struct Player<'a> {
    pub(crate) cluster: &'a Cluster,
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

    /// Empties the cluster. The policy's profile stays, and later arrivals no longer update it.
    pub(crate) fn clear(&mut self) {
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
