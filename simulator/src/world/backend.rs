//! A pool's backend: what outlives its agent. Tasks run for a time and end as the seed says.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::StdRng;
use weir::agent::{self, Launch, Seen};
use weir::model::attempt::{AttemptStatus, Outcome, OutcomeKind};
use weir::model::id::AttemptId;
use weir::model::pool::{Device, NodeSpec};
use weir::model::resource::Resources;
use weir::model::time::Timestamp;

use super::{Event, World};

/// Of every node, unless it has shrunk.
const NODE_CPU_MILLIS: u64 = 8_000;

/// What a backend does with an attempt next.
#[derive(Debug)]
pub(crate) enum Step {
    Create(Box<Launch>),
    Run,
    Finish,
    Stop,
    /// The machine under it is gone.
    Vanish,
}

/// Objects of one backend.
pub(crate) struct Backend {
    pub(crate) nodes: Vec<NodeSpec>,
    pub(crate) objects: BTreeMap<AttemptId, Object>,
    lease_until: Timestamp,
    /// A node on which nothing can be started, while faults last.
    broken: Option<String>,
    /// Attempts that were ever created here.
    pub(crate) created: BTreeMap<AttemptId, u32>,
}

pub(crate) struct Object {
    launch: Launch,
    pub(crate) status: AttemptStatus,
    stopping: bool,
}

impl Backend {
    pub(crate) fn new(index: usize, rng: &mut StdRng) -> Self {
        let count = rng.random_range(2..5);
        let node = |number: usize| {
            let model = ["A100-80G", "Ascend910B3", "T4", "A100-80G"][index % 4];
            let devices = if number == 0 { 0 } else { 4 };
            let device = |slot: u16| Device {
                model: model.to_owned(),
                memory_bytes: 32 << 30,
                healthy: true,
                millis: 1_000,
                topology_group: slot / 2,
                profiles: Vec::new(),
            };
            NodeSpec {
                name: format!("n{number}"),
                labels: [("rack".to_owned(), format!("r{}", number % 2))].into(),
                taints: Vec::new(),
                cordoned: false,
                allocatable: Resources {
                    cpu_millis: NODE_CPU_MILLIS,
                    memory_bytes: 32 << 30,
                    ..Resources::default()
                },
                devices: (0..devices).map(device).collect(),
            }
        };
        Self {
            nodes: (0..count).map(node).collect(),
            objects: BTreeMap::new(),
            lease_until: Timestamp(0),
            broken: None,
            created: BTreeMap::new(),
        }
    }

    pub(crate) fn open(&self) -> (Vec<NodeSpec>, Vec<Seen>) {
        let seen = |(attempt, object): (&AttemptId, &Object)| Seen {
            attempt: *attempt,
            ordered_revision: object.launch.order.revision,
            start_by: object.launch.start_by,
            status: object.status.clone(),
        };
        (self.nodes.clone(), self.objects.iter().map(seen).collect())
    }

    pub(crate) fn forget(&mut self, attempt: AttemptId) {
        self.objects.remove(&attempt);
    }

    pub(crate) fn renew(&mut self, until: Timestamp) {
        self.lease_until = self.lease_until.max(until);
    }

    /// Attempts that hold something here.
    pub(crate) fn live(&self) -> impl Iterator<Item = (&AttemptId, &Object)> {
        self.objects.iter().filter(|(_, object)| !object.is_ended())
    }
}

impl Object {
    fn is_ended(&self) -> bool {
        matches!(self.status, AttemptStatus::Ended { .. })
    }

    fn is_on(&self, node: Option<&str>) -> bool {
        node.is_some_and(|node| self.launch.order.tasks.iter().any(|task| task.node == node))
    }

    pub(crate) fn may_overlap(&self) -> bool {
        self.launch.spec.may_overlap
    }
}

impl World {
    /// Leased attempts end by themselves when nobody renews them.
    pub(crate) fn check_lease(&mut self, index: usize) {
        let now = self.clock();
        let backend = &self.agents[index].backend;
        if backend.lease_until >= now {
            return;
        }
        let leased = backend.live().filter(|(_, object)| object.launch.leased);
        let attempts: Vec<AttemptId> = leased.map(|(attempt, _)| *attempt).collect();
        for attempt in attempts {
            self.end_object(index, attempt, OutcomeKind::LeaseEnded, None);
        }
    }

    pub(crate) fn backend_step(
        &mut self,
        index: usize,
        attempt: AttemptId,
        step: Step,
    ) -> Result<(), String> {
        match step {
            Step::Create(launch) => return self.create(index, attempt, *launch),
            Step::Run => {
                let now = self.clock();
                let Some(object) = self.agents[index].backend.objects.get_mut(&attempt) else {
                    return Ok(());
                };
                if object.status != AttemptStatus::Starting || object.stopping {
                    return Ok(());
                }
                object.status = AttemptStatus::Running { started_at: now };
                let ms = object.launch.spec.groups[0].simulate.map_or(1_000, |simulate| simulate.duration_ms);
                let limit = object.launch.spec.max_run_ms;
                self.at(ms.min(limit), Event::Backend { agent: index, attempt, step: Step::Finish });
                if self.faulty() && self.faults.random_bool(0.01) {
                    let at = self.faults.random_range(0..ms.max(1));
                    self.at(at, Event::Backend { agent: index, attempt, step: Step::Vanish });
                }
                self.tell(index, attempt);
            }
            Step::Finish => {
                let Some(object) = self.agents[index].backend.objects.get(&attempt) else { return Ok(()) };
                let simulate = object.launch.spec.groups[0].simulate;
                let too_long = simulate.is_some_and(|s| s.duration_ms > object.launch.spec.max_run_ms);
                let code = i32::from(simulate.map_or(0, |simulate| simulate.exit_code));
                let kind = if too_long {
                    OutcomeKind::TimedOut
                } else if code == 137 {
                    OutcomeKind::OutOfMemory
                } else if code != 0 {
                    OutcomeKind::Failed
                } else {
                    OutcomeKind::Succeeded
                };
                self.end_object(index, attempt, kind, Some(code));
            }
            Step::Stop => {
                let Some(object) = self.agents[index].backend.objects.get_mut(&attempt) else {
                    return Ok(());
                };
                object.stopping = true;
                self.end_object(index, attempt, OutcomeKind::Cancelled, None);
            }
            Step::Vanish => {
                let kind =
                    if self.faults.random_bool(0.5) { OutcomeKind::NodeLost } else { OutcomeKind::Vanished };
                self.end_object(index, attempt, kind, None);
            }
        }
        Ok(())
    }

    fn create(&mut self, index: usize, attempt: AttemptId, launch: Launch) -> Result<(), String> {
        let now = self.clock();
        if self.agents[index].backend.objects.contains_key(&attempt) {
            self.tell(index, attempt);
            return Ok(());
        }
        if now > launch.start_by || (launch.leased && now > self.agents[index].backend.lease_until) {
            let outcome = Outcome::plain(OutcomeKind::NotStarted, "too late");
            let status = AttemptStatus::Ended { started_at: None, ended_at: now, outcome };
            self.agent_input(index, agent::Input::Moved { attempt, status });
            return Ok(());
        }
        self.check_no_overlap(attempt, &launch)?;
        self.check_room(index, &launch)?;
        let backend = &mut self.agents[index].backend;
        let times = backend.created.entry(attempt).or_default();
        *times += 1;
        if *times > 1 {
            return Err(format!("attempt {attempt} is created twice"));
        }
        backend.objects.insert(attempt, Object { launch, status: AttemptStatus::Starting, stopping: false });
        let broken = &self.agents[index].backend.broken;
        let on_broken = self.agents[index].backend.objects[&attempt].is_on(broken.as_deref());
        if self.faulty() && (on_broken || self.faults.random_bool(0.03)) {
            self.end_object(index, attempt, OutcomeKind::LaunchFailed, None);
            return Ok(());
        }
        let delay = self.timing.random_range(1..300);
        self.at(delay, Event::Backend { agent: index, attempt, step: Step::Run });
        self.tell(index, attempt);
        Ok(())
    }

    fn check_no_overlap(&self, attempt: AttemptId, launch: &Launch) -> Result<(), String> {
        let live = self.agents.iter().flat_map(|host| host.backend.live());
        for (other, object) in live {
            let same_unit = other.unit_id() == attempt.unit_id() && *other != attempt;
            let allowed =
                object.may_overlap() || launch.spec.may_overlap || self.client.abandoned.contains(other);
            if same_unit && !allowed {
                return Err(format!("{attempt} starts while {other} of the same unit is alive"));
            }
        }
        Ok(())
    }

    /// No node ever holds more than the most it had, whatever orders and lines led here.
    fn check_room(&self, index: usize, launch: &Launch) -> Result<(), String> {
        let cpu = |launch: &Launch, node: &str| -> u64 {
            let tasks = launch.order.tasks.iter().filter(|task| task.node == node);
            tasks.map(|task| launch.spec.groups[usize::from(task.group)].request.resources.cpu_millis).sum()
        };
        for task in &launch.order.tasks {
            // What the broker has given up, or may overlap, is not on its books any more.
            let counted = self.agents[index].backend.live().filter(|(attempt, object)| {
                !object.may_overlap() && !self.client.abandoned.contains(attempt)
            });
            let held: Vec<(AttemptId, u64)> = counted
                .map(|(attempt, object)| (*attempt, cpu(&object.launch, &task.node)))
                .filter(|(_, millis)| *millis > 0)
                .collect();
            let sum = held.iter().map(|(_, millis)| millis).sum::<u64>() + cpu(launch, &task.node);
            if sum > NODE_CPU_MILLIS {
                let held: Vec<String> = held.iter().map(|(a, millis)| format!("{a} {millis}")).collect();
                return Err(format!(
                    "{} brings node {} to {sum} of {NODE_CPU_MILLIS} millicores beside {}",
                    launch.order.attempt,
                    task.node,
                    held.join(", ")
                ));
            }
        }
        Ok(())
    }

    fn end_object(&mut self, index: usize, attempt: AttemptId, kind: OutcomeKind, exit_code: Option<i32>) {
        let now = self.clock();
        let Some(object) = self.agents[index].backend.objects.get_mut(&attempt) else { return };
        let started_at = match object.status {
            AttemptStatus::Ended { .. } => return,
            AttemptStatus::Starting => None,
            AttemptStatus::Running { started_at } => Some(started_at),
        };
        let outcome = Outcome { kind, exit_code, signal: None, message: String::new() };
        object.status = AttemptStatus::Ended { started_at, ended_at: now, outcome };
        self.tell(index, attempt);
    }

    /// Tells the agent how an attempt stands, if it is there to hear it.
    fn tell(&mut self, index: usize, attempt: AttemptId) {
        let host = &self.agents[index];
        let Some(object) = host.backend.objects.get(&attempt) else { return };
        let status = object.status.clone();
        self.agent_input(index, agent::Input::Moved { attempt, status });
    }

    /// A node goes, comes back, shrinks or grows, or breaks.
    pub(crate) fn change_nodes(&mut self, index: usize) {
        let choice = self.faults.random_range(0..4);
        let backend = &mut self.agents[index].backend;
        let (mut nodes, mut removed) = (Vec::new(), Vec::new());
        match choice {
            0 if backend.nodes.len() > 1 => {
                let Some(node) = backend.nodes.pop() else { return };
                removed.push(node.name);
            }
            1 => {
                let mut node = backend.nodes[0].clone();
                node.name = format!("n{}", backend.nodes.len());
                backend.nodes.push(node.clone());
                nodes.push(node);
            }
            2 => {
                let first = backend.nodes[0].name.clone();
                backend.broken = backend.broken.is_none().then_some(first);
                return;
            }
            _ => {
                let node = &mut backend.nodes[0];
                node.allocatable.cpu_millis =
                    if node.allocatable.cpu_millis > 4_000 { 2_000 } else { NODE_CPU_MILLIS };
                nodes.push(node.clone());
            }
        }
        let gone = removed.first().cloned();
        self.agent_input(index, agent::Input::NodesChanged { nodes, removed });
        let Some(gone) = gone else { return };
        let backend = &self.agents[index].backend;
        let on_it = backend
            .live()
            .filter(|(_, object)| object.launch.order.tasks.iter().any(|task| task.node == gone));
        let attempts: Vec<AttemptId> = on_it.map(|(attempt, _)| *attempt).collect();
        for attempt in attempts {
            self.end_object(index, attempt, OutcomeKind::NodeLost, None);
        }
    }
}
