//! Simulated backend of a pool, which survives crashes of its agent. Attempts run for the simulated duration,
//! and end as their spec or the seed determines.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand::rngs::StdRng;
use weir::agent::{self, ObservedAttempt, StartRequest};
use weir::model::attempt::{AttemptStatus, Outcome, OutcomeKind};
use weir::model::id::AttemptId;
use weir::model::pool::{Device, NodeSpec};
use weir::model::resource::Resources;
use weir::model::spec::Taint;

use super::World;
use super::event::{Event, Step};

/// CPU of each node, unless a fault has shrunk it.
pub(crate) const NODE_CPU_MILLIS: u64 = 8_000;
/// Capacity of each device.
pub(crate) const DEVICE_MILLIS: u32 = 1_000;

/// Nodes and attempts of one pool.
pub(crate) struct Backend {
    pub(crate) nodes: Vec<NodeSpec>,
    next_node: usize,
    pub(crate) objects: BTreeMap<AttemptId, Object>,
    /// When the leases were last renewed, in virtual time: the supervisor measures them with its host's boot
    /// clock.
    renewed_at: u64,
    /// Node on which every start fails, during the fault phase.
    broken: Option<String>,
    /// All attempts created here. The flag marks those that a broker on a stale copy ordered: they are
    /// different attempts, even with an equal id.
    created: BTreeSet<(AttemptId, bool)>,
    /// Attempts that succeeded.
    pub(crate) succeeded: BTreeSet<AttemptId>,
}

/// An attempt at the backend.
pub(crate) struct Object {
    pub(crate) start: StartRequest,
    pub(crate) status: AttemptStatus,
    stopping: bool,
    /// A broker on a stale copy of the journal ordered the attempt.
    pub(crate) of_stale_copy: bool,
}

impl Backend {
    pub(crate) fn new(index: usize, rng: &mut StdRng) -> Self {
        let model = ["A100-80G", "Ascend910B3", "T4", "A100-80G"][index % 4];
        // One of ten pools starts without nodes.
        let count = if rng.random_bool(0.1) { 0 } else { rng.random_range(2..5) };
        let nodes = (0..count).map(|number| node(number, if number == 0 { None } else { Some(model) }));
        Self {
            nodes: nodes.collect(),
            next_node: count,
            objects: BTreeMap::new(),
            renewed_at: 0,
            broken: None,
            created: BTreeSet::new(),
            succeeded: BTreeSet::new(),
        }
    }

    /// Nodes and attempts as an agent finds them at its start.
    pub(crate) fn open(&self) -> (Vec<NodeSpec>, Vec<ObservedAttempt>) {
        let observed = |(attempt, object): (&AttemptId, &Object)| ObservedAttempt {
            attempt: *attempt,
            ordered_revision: object.start.order.revision,
            start_by: object.start.start_by,
            high_water: object.start.order.high_water,
            status: object.status.clone(),
        };
        (self.nodes.clone(), self.objects.iter().map(observed).collect())
    }

    pub(crate) fn forget(&mut self, attempt: AttemptId) {
        self.objects.remove(&attempt);
    }

    pub(crate) fn renew(&mut self, from: u64) {
        self.renewed_at = self.renewed_at.max(from);
    }

    /// When a lease of this length expires, in virtual time; `None` for attempts without one.
    fn lease_until(&self, lease_ms: Option<u64>) -> Option<u64> {
        lease_ms.map(|lease_ms| self.renewed_at + lease_ms)
    }

    /// When the next lease expires.
    pub(crate) fn next_lease_end(&self) -> Option<u64> {
        self.live().filter_map(|(_, object)| self.lease_until(object.start.lease_ms)).min()
    }

    /// Attempts that have not ended: they use resources.
    pub(crate) fn live(&self) -> impl Iterator<Item = (&AttemptId, &Object)> {
        self.objects.iter().filter(|(_, object)| !object.is_ended())
    }

    /// Repairs all nodes and devices; returns the nodes.
    pub(crate) fn repair(&mut self) -> Vec<NodeSpec> {
        self.broken = None;
        for node in &mut self.nodes {
            node.cordoned = false;
            node.devices.iter_mut().for_each(|device| device.healthy = true);
        }
        self.nodes.clone()
    }

    pub(crate) fn remove_node(&mut self) -> Option<String> {
        if self.nodes.len() < 2 {
            return None;
        }
        self.nodes.pop().map(|node| node.name)
    }

    pub(crate) fn add_node(&mut self) -> NodeSpec {
        // In some cases the node has the name of a removed one.
        let number = if self.nodes.len().is_multiple_of(2) { self.next_node } else { self.nodes.len() };
        let number =
            if self.nodes.iter().any(|node| node.name == name(number)) { self.next_node } else { number };
        self.next_node = self.next_node.max(number + 1);
        let devices = self.nodes.iter().find_map(|node| node.devices.first());
        let node = node(number, devices.map(|device| device.model.as_str()));
        self.nodes.push(node.clone());
        node
    }

    pub(crate) fn resize_node(&mut self) -> Option<NodeSpec> {
        let node = self.nodes.first_mut()?;
        let small = node.allocatable.cpu_millis <= 4_000;
        node.allocatable.cpu_millis = if small { NODE_CPU_MILLIS } else { 2_000 };
        Some(node.clone())
    }

    pub(crate) fn fail_device(&mut self) -> Option<NodeSpec> {
        let node = self.nodes.last_mut()?;
        let device = node.devices.first_mut()?;
        device.healthy = !device.healthy;
        Some(node.clone())
    }

    pub(crate) fn relabel_node(&mut self) -> Option<NodeSpec> {
        let node = self.nodes.last_mut()?;
        if node.taints.is_empty() && !node.cordoned {
            node.taints = vec![Taint { key: "dedicated".to_owned(), value: "team".to_owned() }];
        } else if node.cordoned {
            node.cordoned = false;
        } else {
            (node.taints, node.cordoned) = (Vec::new(), true);
        }
        node.labels.insert("rack".to_owned(), "r9".to_owned());
        Some(node.clone())
    }

    pub(crate) fn break_node(&mut self) {
        let first = self.nodes.first().map(|node| node.name.clone());
        self.broken = if self.broken.is_none() { first } else { None };
    }
}

fn name(number: usize) -> String {
    format!("n{number}")
}

fn node(number: usize, model: Option<&str>) -> NodeSpec {
    let device = |slot: u16| Device {
        model: model.unwrap_or_default().to_owned(),
        memory_bytes: 32 << 30,
        healthy: true,
        millis: DEVICE_MILLIS,
        topology_group: slot / 2,
        profiles: Vec::new(),
    };
    NodeSpec {
        name: name(number),
        labels: [("rack".to_owned(), format!("r{}", number % 2))].into(),
        taints: Vec::new(),
        cordoned: false,
        allocatable: Resources {
            cpu_millis: NODE_CPU_MILLIS,
            memory_bytes: 32 << 30,
            ..Resources::default()
        },
        devices: (0..if model.is_some() { 4 } else { 0 }).map(device).collect(),
    }
}

impl Object {
    fn is_ended(&self) -> bool {
        matches!(self.status, AttemptStatus::Ended { .. })
    }

    pub(crate) fn is_on(&self, node: &str) -> bool {
        self.start.order.tasks.iter().any(|task| task.node == node)
    }

    pub(crate) fn may_overlap(&self) -> bool {
        self.start.spec.may_overlap
    }
}

impl World {
    /// Ends the attempts of a pool whose lease has expired.
    pub(crate) fn check_lease(&mut self, index: usize) -> Result<(), String> {
        let backend = &self.agents[index].backend;
        let is_over = |object: &Object| {
            backend.lease_until(object.start.lease_ms).is_some_and(|until| self.now > until)
        };
        let over = backend.live().filter(|(_, object)| is_over(object));
        let attempts: Vec<AttemptId> = over.map(|(attempt, _)| *attempt).collect();
        for attempt in attempts {
            self.end_object(index, attempt, OutcomeKind::LeaseEnded, None)?;
        }
        self.schedule_lease_check(index);
        Ok(())
    }

    /// Checks the leases of a pool again when the next one may have expired.
    pub(crate) fn schedule_lease_check(&mut self, index: usize) {
        if let Some(until) = self.agents[index].backend.next_lease_end() {
            self.at(until.max(self.now) + 1, Event::LeaseCheck { agent: index });
        }
    }

    pub(crate) fn backend_step(
        &mut self,
        index: usize,
        attempt: AttemptId,
        step: Step,
    ) -> Result<(), String> {
        match step {
            Step::Create(start) => self.create(index, attempt, *start),
            Step::Run => self.begin_run(index, attempt),
            Step::Finish => {
                let Some(object) = self.agents[index].backend.objects.get(&attempt) else { return Ok(()) };
                let simulate = object.start.spec.groups[0].simulate;
                let too_long = simulate.is_some_and(|s| s.duration_ms > object.start.spec.max_run_ms);
                let code = i32::from(simulate.map_or(0, |simulate| simulate.exit_code));
                let kind = match code {
                    _ if too_long => OutcomeKind::TimedOut,
                    0 => OutcomeKind::Succeeded,
                    137 => OutcomeKind::OutOfMemory,
                    _ => OutcomeKind::Failed,
                };
                self.end_object(index, attempt, kind, Some(code))
            }
            Step::Stop => {
                let Some(object) = self.agents[index].backend.objects.get_mut(&attempt) else {
                    return Ok(());
                };
                object.stopping = true;
                // Some programs save their work when they are stopped, and exit with 0.
                let saves = matches!(object.status, AttemptStatus::Running { .. });
                let exit_code = (saves && self.backends.random_bool(0.3)).then_some(0);
                self.end_object(index, attempt, OutcomeKind::Cancelled, exit_code)
            }
            Step::Vanish => {
                let kinds = [OutcomeKind::NodeLost, OutcomeKind::Vanished, OutcomeKind::Preempted];
                let kind = kinds[self.backends.random_range(0..3)];
                self.end_object(index, attempt, kind, None)
            }
        }
    }

    fn begin_run(&mut self, index: usize, attempt: AttemptId) -> Result<(), String> {
        let host = &mut self.agents[index];
        let started_at = host.clock.at(self.now);
        let Some(object) = host.backend.objects.get_mut(&attempt) else { return Ok(()) };
        if object.status != AttemptStatus::Starting || object.stopping {
            return Ok(());
        }
        object.status = AttemptStatus::Running { started_at };
        let ms = object.start.spec.groups[0].simulate.map_or(1_000, |simulate| simulate.duration_ms);
        let limit = object.start.spec.max_run_ms;
        self.after(ms.min(limit), Event::Backend { agent: index, attempt, step: Step::Finish });
        if self.in_fault_phase() && self.backends.random_bool(0.01) {
            let at = self.backends.random_range(0..ms.max(1));
            self.after(at, Event::Backend { agent: index, attempt, step: Step::Vanish });
        }
        self.report_status(index, attempt)
    }

    fn create(&mut self, index: usize, attempt: AttemptId, start: StartRequest) -> Result<(), String> {
        let host = &self.agents[index];
        if host.backend.objects.contains_key(&attempt) {
            return self.report_status(index, attempt);
        }
        let now = host.clock.at(self.now);
        if now > start.start_by
            || host.backend.lease_until(start.lease_ms).is_some_and(|until| self.now > until)
        {
            let outcome = Outcome::plain(OutcomeKind::NotStarted, "too late");
            let status = AttemptStatus::Ended { started_at: None, ended_at: now, outcome };
            return self.notify_agent(index, agent::Input::StatusChanged { attempt, status });
        }
        let of_stale_copy = self.is_of_stale_copy(&start);
        self.check_no_overlap(attempt, &start, of_stale_copy)?;
        if !of_stale_copy && !self.is_byzantine(index) {
            self.check_capacity(index, &start)?;
        }
        let backend = &mut self.agents[index].backend;
        // If the outcome was lost with a stale copy of the journal, the attempt is ordered again.
        let outcome_lost = self.stale_copy_outcomes.contains(&attempt.unit_id());
        if !backend.created.insert((attempt, of_stale_copy)) && !outcome_lost {
            return Err(format!("attempt {attempt} is created twice"));
        }
        let status = AttemptStatus::Starting;
        backend.objects.insert(attempt, Object { start, status, stopping: false, of_stale_copy });
        self.schedule_lease_check(index);
        let backend = &mut self.agents[index].backend;
        let broken = backend.broken.clone();
        let on_broken = broken.is_some_and(|node| backend.objects[&attempt].is_on(&node));
        if self.in_fault_phase() && (on_broken || self.backends.random_bool(0.03)) {
            return self.end_object(index, attempt, OutcomeKind::StartFailed, None);
        }
        let delay = self.backends.random_range(1..300);
        self.after(delay, Event::Backend { agent: index, attempt, step: Step::Run });
        self.report_status(index, attempt)
    }

    /// Ends an attempt, unless it has ended, and reports its outcome to the agent.
    pub(crate) fn end_object(
        &mut self,
        index: usize,
        attempt: AttemptId,
        kind: OutcomeKind,
        exit_code: Option<i32>,
    ) -> Result<(), String> {
        let host = &mut self.agents[index];
        let ended_at = host.clock.at(self.now);
        let Some(object) = host.backend.objects.get_mut(&attempt) else { return Ok(()) };
        let started_at = match object.status {
            AttemptStatus::Ended { .. } => return Ok(()),
            AttemptStatus::Starting => None,
            AttemptStatus::Running { started_at } => Some(started_at),
        };
        let on_broken = host.backend.broken.as_ref().is_some_and(|node| object.is_on(node));
        let node_fault = kind == OutcomeKind::StartFailed && on_broken;
        let outcome = Outcome { exit_code, node_fault, ..Outcome::plain(kind, "") };
        object.status = AttemptStatus::Ended { started_at, ended_at, outcome };
        if kind == OutcomeKind::Succeeded && !object.of_stale_copy {
            host.backend.succeeded.insert(attempt);
        }
        self.report_status(index, attempt)
    }

    /// Reports the status of an attempt to the agent, if one runs.
    fn report_status(&mut self, index: usize, attempt: AttemptId) -> Result<(), String> {
        let Some(object) = self.agents[index].backend.objects.get(&attempt) else { return Ok(()) };
        let status = object.status.clone();
        self.notify_agent(index, agent::Input::StatusChanged { attempt, status })
    }
}
