//! A thousand agents whose broker was killed: they reconnect, spread in time, without delaying clients.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
use weir::pools::{Error, Event, InitialSync, LogPart, OutputTimes, PoolBackend, ReadLogs, Stream};
use weir::runtime::agent::{Connection, Dial};
use weir::telemetry::agent::PoolHealth;

use crate::fake::{Broker, waiting_job};

const AGENTS: usize = 1_000;
/// Time in which all reconnect on a busy machine with two cores: a few of their redial waits.
const RECONNECT_MAX: Duration = Duration::from_secs(20);
/// Response time of 99 of 100 requests meanwhile, on cores that also run builds.
const RESPONSE_MAX: Duration = Duration::from_secs(4);

/// A pool with one node that runs nothing.
struct Idle;

impl PoolBackend for Idle {
    async fn open(&mut self, events: mpsc::UnboundedSender<Event>) -> Result<InitialSync, Error> {
        // The sender must live on: its end would mean that the backend is gone.
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

/// Counts the attempts to dial that failed.
struct CountedDial {
    dialer: Dialer,
    failures: Arc<AtomicUsize>,
}

impl Dial for CountedDial {
    async fn dial(&self) -> Result<Connection, String> {
        let outcome = self.dialer.dial().await;
        self.failures.fetch_add(usize::from(outcome.is_err()), Ordering::Relaxed);
        outcome
    }
}

struct NoLogs;

impl ReadLogs for NoLogs {
    fn read(&self, _: AttemptId, _: u32, _: Stream, _: u64, _: usize) -> std::io::Result<LogPart> {
        Ok(LogPart::default())
    }

    fn times(&self, _: AttemptId, _: u32, _: Stream) -> std::io::Result<Option<OutputTimes>> {
        Ok(None)
    }
}

/// Installations differ in their random instance. Here it is mixed from the number, which serves as well.
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
    Hello { pool, instance: InstanceId(mixed), key: mixed.to_le_bytes(), last_epoch: None, high_water: None }
}

/// Number of pools that are READY with their agent connected.
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
        assert!(started.elapsed() < RECONNECT_MAX, "{what}: {ready} of {AGENTS} are ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_agents_reconnect_promptly_after_their_broker_was_killed() {
    // Each agent has its own connection, with a file descriptor at both ends.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("the hard limit");
    let mut broker = Broker::start();
    let (stop, stopped) = watch::channel(false);
    let mut agents = JoinSet::new();
    let (mut dial_failures, mut healths) = (Vec::new(), Vec::new());
    for number in 0..AGENTS {
        let (client, hello, mut stopped) = (broker.client(), hello(number), stopped.clone());
        let (failures, pool_health) = (Arc::new(AtomicUsize::new(0)), Arc::new(PoolHealth::new("idle")));
        dial_failures.push(failures.clone());
        healths.push(pool_health.clone());
        agents.spawn(async move {
            let dialer = Dialer { client, hello: hello.clone(), logs: Arc::new(NoLogs) };
            let dial = CountedDial { dialer, failures };
            let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
            let clock = Clock::start();
            let _ = weir::runtime::agent::run(hello, Idle, dial, clock, (), pool_health, stop).await;
        });
    }
    let client = broker.client();
    let first = all_ready(&client, "at first").await;
    dial_failures.iter().for_each(|failures| failures.store(0, Ordering::Relaxed));
    broker.process.kill();
    // The broker is away until every agent has lost its session and failed to dial at least once.
    let killed = Instant::now();
    while healths.iter().any(|health| health.is_ready())
        || dial_failures.iter().any(|failures| failures.load(Ordering::Relaxed) == 0)
    {
        assert!(killed.elapsed() < RECONNECT_MAX, "some agents don't redial");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    broker.process = broker.home.start_broker("server");
    let before = broker.resident_bytes();
    let (done, mut is_done) = watch::channel(false);
    let submits = tokio::spawn({
        let client = broker.client();
        async move {
            let mut took = Vec::new();
            while !*is_done.borrow_and_update() {
                let sent_at = Instant::now();
                waiting_job(&client, &format!("normal-{}", took.len())).await;
                took.push(sent_at.elapsed());
                // A client with pauses, not a flood.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            took.sort_unstable();
            took
        }
    });
    let again = all_ready(&client, "after the restart").await;
    let _ = done.send(true);
    let took = submits.await.expect("the client");
    let p99 = took[(took.len() * 99).div_ceil(100) - 1];
    let grown = broker.resident_bytes().saturating_sub(before);
    println!(
        "{AGENTS} agents: ready in {first:?}, again in {again:?}; {} submits meanwhile, p99 {p99:?}; memory +{} MiB",
        took.len(),
        grown >> 20
    );
    assert!(p99 < RESPONSE_MAX, "the p99 of the client is {p99:?}");
    assert!(grown < 256 << 20, "the broker uses {grown} bytes more");
    let _ = stop.send(true);
    agents.join_all().await;
    broker.check_health(&client).await;
}

/// The waits of the agent with this number before each of `attempts` redials, in milliseconds.
fn redial_waits(number: usize, attempts: usize) -> Vec<u64> {
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
        high_water: None,
    };
    agent.step(now, Input::FromBroker(ToAgent::Accepted(accepted)));
    assert!(agent.is_up());
    let mut found = Vec::new();
    for _ in 0..attempts {
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
fn redials_of_many_agents_are_spread_in_time() {
    let all: Vec<Vec<u64>> = (0..AGENTS).map(|number| redial_waits(number, 5)).collect();
    // The first wait is short, for pools with few agents, so it spreads them over a short time only.
    for (attempt, most) in [(0, AGENTS * 3 / 100), (1, AGENTS / 50), (2, AGENTS / 50), (4, AGENTS / 50)] {
        let mut buckets = BTreeMap::<u64, usize>::new();
        for waits in &all {
            *buckets.entry(waits[..=attempt].iter().sum::<u64>() / 10).or_default() += 1;
        }
        let fullest = buckets.values().max().copied().unwrap_or(0);
        println!("redial {}: at most {fullest} of {AGENTS} agents within 10 ms", attempt + 1);
        assert!(fullest <= most, "redial {}: {fullest} agents within 10 ms", attempt + 1);
    }
}
