//! The longest step of a broker with many different waiting jobs: for as long as a step takes, every request waits.
//!
//! 10,000 jobs wait in a full pool of 200 nodes with eight devices each. No two ask for the same. Then nodes come free,
//! one by one and ten at once, and the 10,000 jobs that may depend on one job are released. Printed are the longest step and
//! the total of each part. The disk is always done at once.
//!
//!     cargo bench --bench shapes

use std::time::{Duration, Instant};

use weir::broker::{Broker, CallId, Effect, Input, Random, SessionId};
use weir::model::attempt::{AttemptReport, AttemptStatus, Outcome, OutcomeKind};
use weir::model::device::DeviceAmount;
use weir::model::exchange::{FromAgent, Hello, Inventory, Part, StartOrder, ToAgent};
use weir::model::id::{Epoch, InstanceId, JobId, Term};
use weir::model::limit::DEPENDENTS_MAX;
use weir::model::plan::Policy;
use weir::model::pool::{Capabilities, Device, NodeSpec, PoolSpec};
use weir::model::region::RegionCode;
use weir::model::resource::Resources;
use weir::model::spec::{Dependency, DependencyCondition, DeviceRequest, JobSpec, minimal};
use weir::model::time::Timestamp;
use weir::state::command::{Command, Request, Submission};
use weir::state::decide::Reply;
use weir::state::job::Principal;

const GIB: u64 = 1 << 30;
const NODES: usize = 200;
const SHAPES: u64 = 10_000;
const DEPENDENTS: usize = DEPENDENTS_MAX;
const SESSION: SessionId = SessionId(1);

struct Bench {
    broker: Broker,
    now: Timestamp,
    wake: Timestamp,
    running: Vec<StartOrder>,
    longest: Duration,
    total: Duration,
    steps: u32,
}

impl Bench {
    fn new() -> Self {
        let now = Timestamp(1_700_000_000_000);
        let random = Random { writer_session: 1, journal: 1, key: 1 };
        let mut broker = Broker::new(Default::default(), Term(1), random, now);
        broker.set_policy(Policy::Overflow);
        let (longest, total) = (Duration::ZERO, Duration::ZERO);
        Self { broker, now, wake: now, running: Vec::new(), longest, total, steps: 0 }
    }

    /// Steps until nothing is left to do now. Returns the replies.
    fn run(&mut self, input: Input) -> Vec<Reply> {
        let (mut inputs, mut replies) = (std::collections::VecDeque::from([input]), Vec::new());
        loop {
            let Some(input) = inputs.pop_front() else {
                if self.wake > self.now {
                    return replies;
                }
                inputs.push_back(Input::Wake);
                continue;
            };
            let begun = Instant::now();
            let effects = self.broker.step(self.now, input);
            let took = begun.elapsed();
            (self.longest, self.total, self.steps) =
                (self.longest.max(took), self.total + took, self.steps + 1);
            for effect in effects {
                match effect {
                    Effect::Append { after, events, .. } => {
                        let through = events.last().map_or(after, |record| record.revision);
                        inputs.push_back(Input::Appended { through });
                    }
                    Effect::WriteChunk { .. } => inputs.push_back(Input::ChunkWritten),
                    Effect::Reply { result, .. } => replies.extend(result),
                    Effect::Direct { message: ToAgent::Orders { orders, .. }, .. } => {
                        self.running.extend(orders)
                    }
                    Effect::WakeAt(at) => self.wake = at,
                    Effect::Direct { .. }
                    | Effect::Answer { .. }
                    | Effect::CloseSession { .. }
                    | Effect::Notify { .. } => {}
                }
            }
        }
    }

    fn submit(&mut self, specs: Vec<JobSpec>) -> JobId {
        let job = |spec| Submission {
            name: String::new(),
            name_prefix: String::new(),
            queue: String::new(),
            allow_pending: true,
            held: false,
            spec,
        };
        let command = Command::Submit { jobs: specs.into_iter().map(job).collect() };
        let request = Request { principal: Principal::Anonymous, token: None, command };
        match self.run(Input::Request { call: CallId(1), request }).pop() {
            Some(Reply::Submitted { first, .. }) => first,
            other => panic!("a job is refused: {other:?}"),
        }
    }

    fn connect(&mut self) {
        let capabilities = Capabilities { processes: true, real: true, ..Capabilities::default() };
        let region = RegionCode::parse("CN-CQ").expect("a region");
        let pool = PoolSpec {
            name: "bench".to_owned(),
            region,
            backend: "bench".to_owned(),
            labels: Default::default(),
            capabilities,
            notes: Vec::new(),
        };
        let hello = Hello { pool, instance: InstanceId(1), key: [1; 16], last_epoch: None, high_water: None };
        let device = |_| Device {
            model: "A100-80G".to_owned(),
            memory_bytes: 80 * GIB,
            millis: 1_000,
            healthy: true,
            topology_group: 0,
            profiles: Vec::new(),
        };
        let node = |at: usize| NodeSpec {
            name: format!("n{at}"),
            labels: Default::default(),
            taints: Vec::new(),
            cordoned: false,
            allocatable: Resources { cpu_millis: 128_000, memory_bytes: 1_024 * GIB, ..Resources::default() },
            devices: (0..8).map(device).collect(),
        };
        let (epoch, part, removed) = (Epoch(1), Part::FullEnd, Vec::new());
        let nodes: Vec<NodeSpec> = (0..NODES).map(node).collect();
        for message in [
            FromAgent::Hello(hello),
            FromAgent::Inventory(Inventory { epoch, part, nodes, removed }),
            FromAgent::Observed { epoch, part, reports: Vec::new() },
        ] {
            self.run(Input::FromAgent { session: SESSION, message });
        }
    }

    /// Ends running attempts, in one message.
    fn end(&mut self, count: usize) {
        let ended = self.running.drain(..count);
        let report = |order: StartOrder| AttemptReport {
            attempt: order.attempt,
            ordered_revision: order.revision,
            status: AttemptStatus::Ended {
                started_at: Some(self.now),
                ended_at: self.now,
                outcome: Outcome::plain(OutcomeKind::Succeeded, ""),
            },
        };
        let reports = ended.map(report).collect();
        let message = FromAgent::Observed { epoch: Epoch(1), part: Part::Delta, reports };
        self.run(Input::FromAgent { session: SESSION, message });
    }

    fn print(&mut self, what: &str) {
        let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
        println!(
            "| {what} | {:.1} ms | {:.0} ms | {} |",
            ms(std::mem::take(&mut self.longest)),
            ms(std::mem::take(&mut self.total)),
            std::mem::take(&mut self.steps)
        );
    }
}

fn spec(cpu_millis: u64, devices: u32) -> JobSpec {
    let mut spec = minimal();
    spec.groups[0].request.resources.cpu_millis = cpu_millis;
    spec.groups[0].request.devices = (devices > 0)
        .then(|| DeviceRequest { models: vec!["A100-80G".to_owned()], amount: DeviceAmount::Whole(devices) });
    spec
}

fn main() {
    println!("| part | longest step | all steps | steps |\n|---|---|---|---|");
    let mut bench = Bench::new();
    bench.connect();
    // Every node is full, and the policy knows a mix of tasks.
    for _ in 0..8 {
        bench.submit((0..NODES as u64).map(|_| spec(16_000, 1)).collect());
    }
    bench.print("fill 200 nodes");
    for batch in 0..SHAPES / 500 {
        let different = (0..500).map(|at| batch * 500 + at);
        bench.submit(different.map(|at| spec(1_000 + at, 1 + (at % 4) as u32)).collect());
    }
    bench.print("submit 10,000 different jobs");
    for _ in 0..50 {
        bench.end(1);
    }
    bench.print("50 times, one device comes free");
    for _ in 0..20 {
        bench.end(10);
    }
    bench.print("20 times, ten devices come free at once");
    let mut bench = Bench::new();
    bench.connect();
    let first = bench.submit(vec![spec(1_000, 0)]);
    let dependency = Dependency { job: first, condition: DependencyCondition::Succeeded };
    for _ in 0..DEPENDENTS / 1_000 {
        let dependent = JobSpec { depends_on: vec![dependency], ..spec(1_000, 8) };
        bench.submit(vec![dependent; 1_000]);
    }
    bench.print("submit 10,000 jobs that depend on one");
    bench.end(1);
    bench.print("that one ends");
}
