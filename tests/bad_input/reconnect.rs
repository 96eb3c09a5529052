//! A thousand agents whose broker was killed: they come back, spread, and hold up nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use weir::agent::{Agent, Effect, Input, StartRequest};
use weir::api::agent::Dialer;
use weir::api::client::Client;
use weir::api::proto::v1;
use weir::clock::Clock;
use weir::model::exchange::{Accepted, Hello, Stop, ToAgent};
use weir::model::id::{AttemptId, Epoch, InstanceId, JournalId, Term};
use weir::model::pool::{Capabilities, NodeSpec, PoolSpec};
use weir::model::region::RegionCode;
use weir::model::resource::Resources;
use weir::model::time::Timestamp;
use weir::pools::{Error, Event, InitialSync, LogPart, PoolBackend, ReadLogs, Stream};
use weir::telemetry::PoolHealth;

use crate::fake::{Broker, waiting_job};

const AGENTS: usize = 1_000;
/// In which all are back, on a busy machine of two cores: a few of their waits.
const BACK_WITHIN: Duration = Duration::from_secs(20);
/// In which 99 of 100 honest requests are answered meanwhile, on cores that others build on.
const ANSWER_MAX: Duration = Duration::from_secs(4);

/// A pool with one node that runs nothing.
struct Idle;

impl PoolBackend for Idle {
    async fn open(&mut self, events: mpsc::UnboundedSender<Event>) -> Result<InitialSync, Error> {
        // Its end would mean that the backend is gone.
        tokio::spawn(async move { events.closed().await });
        let allocatable = Resources { cpu_millis: 1_000, memory_bytes: 1 << 30, ..Default::default() };
        let node = NodeSpec {
            name: "n1".to_owned(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            cordoned: false,
            allocatable,
            devices: Vec::new(),
        };
        Ok(InitialSync { nodes: vec![node], ..InitialSync::default() })
    }

    fn start(&mut self, _: StartRequest) {}

    fn stop(&mut self, _: Stop) {}

    fn forget(&mut self, _: AttemptId) {}

    fn renew(&mut self, _: Timestamp, _: u64) {}

    fn logs(&self) -> Arc<dyn ReadLogs> {
        Arc::new(NoLogs)
    }
}

struct NoLogs;

impl ReadLogs for NoLogs {
    fn read(&self, _: AttemptId, _: u32, _: Stream, _: u64, _: usize) -> std::io::Result<LogPart> {
        Ok(LogPart::default())
    }
}

/// Installations differ in their random instance; this one's is as good as random.
fn hello(number: usize) -> Hello {
    let mixed = (number as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let capabilities = Capabilities {
        real: true,
        processes: true,
        containers: false,
        pods: false,
        leases: false,
        secrets: false,
        whole_devices_only: false,
    };
    let pool = PoolSpec {
        name: format!("pool-{number}"),
        region: RegionCode::parse("CN-CQ").expect("a region"),
        backend: "idle".to_owned(),
        labels: BTreeMap::new(),
        capabilities,
        notes: Vec::new(),
    };
    Hello { pool, instance: InstanceId(mixed), key: mixed.to_le_bytes(), high_water: None }
}

/// How many pools are READY with their agent connected.
async fn ready(client: &Client) -> usize {
    let pools = client.pools().list_pools(v1::ListPoolsRequest {}).await;
    let pools = pools.map(|answer| answer.into_inner().pools).unwrap_or_default();
    pools
        .iter()
        .filter(|pool| pool.connected && pool.connectivity() == v1::Connectivity::Ready && pool.nodes == 1)
        .count()
}

async fn all_ready(client: &Client, what: &str) -> Duration {
    let started = Instant::now();
    loop {
        let ready = ready(client).await;
        if ready == AGENTS {
            return started.elapsed();
        }
        assert!(started.elapsed() < BACK_WITHIN, "{what}: {ready} of {AGENTS} are ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_agents_come_back_at_once_after_their_broker_was_killed() {
    // Each has a connection of its own, at both ends.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("as many as there may be");
    let mut broker = Broker::start();
    let (stop, stopped) = watch::channel(false);
    let mut agents = JoinSet::new();
    for number in 0..AGENTS {
        let (client, hello, mut stopped) = (broker.client(), hello(number), stopped.clone());
        agents.spawn(async move {
            let dial = Dialer { client, hello: hello.clone(), logs: Arc::new(NoLogs) };
            let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
            let pool_health = Arc::new(PoolHealth::new("idle"));
            let clock = Clock::start();
            let _ = weir::runtime::agent::run(hello, Idle, dial, clock, |_| {}, pool_health, stop).await;
        });
    }
    let client = broker.client();
    let first = all_ready(&client, "at first").await;
    broker.process.kill();
    // Long enough for all to have noticed, and to try again and again.
    tokio::time::sleep(Duration::from_millis(500)).await;
    broker.process = broker.home.start_broker("server");
    let before = broker.resident_bytes();
    let (done, mut done_seen) = watch::channel(false);
    let sanitised = tokio::spawn({
        let client = broker.client();
        async move {
            let mut took = Vec::new();
            while !*done_seen.borrow_and_update() {
                let asked = Instant::now();
                waiting_job(&client, &format!("honest-{}", took.len())).await;
                took.push(asked.elapsed());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            took.sort_unstable();
            took
        }
    });
    let back = all_ready(&client, "after the restart").await;
    let _ = done.send(true);
    let took = sanitised.await.expect("an honest client");
    let p99 = took[(took.len() * 99).div_ceil(100) - 1];
    let grown = broker.resident_bytes().saturating_sub(before);
    println!(
        "{AGENTS} agents: ready in {first:?}, again in {back:?}; {} submits meanwhile, p99 {p99:?}; memory +{} MiB",
        took.len(),
        grown >> 20
    );
    assert!(p99 < ANSWER_MAX, "an honest client waited {p99:?}");
    assert!(grown < 256 << 20, "the broker holds {grown} bytes more");
    let _ = stop.send(true);
    agents.join_all().await;
    broker.is_well(&client).await;
}

/// When the agent of this number would dial again, in milliseconds, for each of `tries` in a row.
fn redials(number: usize, tries: usize) -> Vec<u64> {
    let mut now = Timestamp(1_000_000);
    let mut agent = Agent::new(hello(number), now);
    agent.step(now, Input::InitialSync { nodes: Vec::new(), attempts: Vec::new() });
    agent.step(now, Input::Connected);
    let accepted = Accepted {
        journal: JournalId::from_random(7),
        term: Term(1),
        epoch: Epoch(1),
        now,
        heartbeat_ms: 2_000,
        lease_ms: 30_000,
        high_water: None,
    };
    agent.step(now, Input::FromBroker(ToAgent::Accepted(accepted)));
    assert!(agent.is_up());
    let mut found = Vec::new();
    for _ in 0..tries {
        let effects = agent.step(now, Input::Disconnected);
        let at = effects.iter().find_map(|effect| match effect {
            Effect::WakeAt(at) => Some(*at),
            _ => None,
        });
        let at = at.expect("a time to wake");
        found.push(at.ms_since(now));
        now = at;
        let effects = agent.step(now, Input::Wake);
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Connect)), "it dials: {effects:?}");
    }
    found
}

#[test]
fn agents_that_lost_one_broker_dial_again_spread_in_time() {
    let all: Vec<Vec<u64>> = (0..AGENTS).map(|number| redials(number, 5)).collect();
    // The first wait is short for the sake of a lone agent, so that its window is, too.
    for (attempt, most) in [(0, AGENTS * 3 / 100), (1, AGENTS / 50), (2, AGENTS / 50), (4, AGENTS / 50)] {
        let mut buckets = BTreeMap::<u64, usize>::new();
        for waits in &all {
            *buckets.entry(waits[..=attempt].iter().sum::<u64>() / 10).or_default() += 1;
        }
        let fullest = buckets.values().max().copied().unwrap_or(0);
        println!("try {}: the fullest 10 ms hold {fullest} of {AGENTS}", attempt + 1);
        assert!(fullest <= most, "try {}: {fullest} agents within 10 ms", attempt + 1);
    }
}
