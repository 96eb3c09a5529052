//! A real broker process, and agents that are made by hand, so that they may misbehave.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use weir::api::client::Client;
use weir::api::proto::v1;
use weir::api::proto::v1::sync_request::Body;
use weir::api::proto::v1::sync_response::Body as Answer;

use crate::support::{Home, Process};

/// Longer than any answer takes on a busy machine; what takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A broker process with its data in a folder of its own.
pub struct Broker {
    pub home: Home,
    pub process: Process,
    pub token: String,
}

impl Broker {
    /// A broker alone.
    pub fn start() -> Self {
        Self::of("server")
    }

    /// A broker of this command: `server` or `dev`.
    pub fn of(command: &str) -> Self {
        Self::within(command, "")
    }

    /// The same, held to these limits, as the shell's `ulimit` takes them.
    pub fn within(command: &str, limits: &'static str) -> Self {
        let mut home = Home::new();
        home.limits = limits;
        Self::at(home, command, &[])
    }

    /// The same, in a home that was prepared for it and with further arguments.
    pub fn at(mut home: Home, command: &str, arguments: &[&str]) -> Self {
        let process = home.start_broker_with(command, arguments);
        let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
        Self { home, process, token }
    }

    /// A client with the token.
    pub fn client(&self) -> Client {
        Client::new(&self.home.address, Some(&self.token)).expect("a client")
    }

    /// What the process holds in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The most that it ever held.
    pub fn peak_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id()));
        let status = status.expect("the broker runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("its memory");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("kibibytes") << 10
    }

    /// Checks that an ordinary request is answered, that nothing panicked and nothing was reported
    /// as broken.
    pub async fn is_well(&self, client: &Client) {
        let asked = async { client.queues().list_queues(v1::ListQueuesRequest {}).await };
        let answer = tokio::time::timeout(PATIENCE, asked).await.expect("an answer in time");
        answer.expect("an answer");
        let log = self.home.log();
        assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
    }
}

/// A job that asks for a pool that nobody has, and so waits.
pub async fn waiting_job(client: &Client, name: &str) -> u64 {
    let mut request = crate::job::valid();
    request.jobs[0].name = name.to_owned();
    let spec = request.jobs[0].spec.as_mut().expect("a spec");
    spec.constraints = Some(v1::Constraints { pools: vec!["nowhere".to_owned()], ..Default::default() });
    let response = client.jobs().submit(request).await.expect("a job that waits").into_inner();
    response.jobs[0].id
}

/// A hello of the pool of this name. Each number is another installation.
pub fn hello(pool: &str, installation: u8) -> v1::Hello {
    v1::Hello {
        pool: Some(v1::PoolDeclaration {
            name: pool.to_owned(),
            region: "CN-CQ".to_owned(),
            backend: "fake".to_owned(),
            processes: true,
            ..Default::default()
        }),
        instance: vec![installation; 16],
        key: vec![installation; 16],
        high_water: None,
    }
}

/// A node with 64 CPUs.
pub fn node(name: &str) -> v1::Node {
    let total = v1::Resources { cpu_millis: 64_000, memory_bytes: 64 << 30, ..Default::default() };
    v1::Node { name: name.to_owned(), total: Some(total), ..Default::default() }
}

/// An agent's session, frame by frame.
pub struct Agent {
    to_broker: mpsc::Sender<v1::SyncRequest>,
    from_broker: Streaming<v1::SyncResponse>,
    pub number: u64,
    pub pool: String,
    pub epoch: u64,
    pub journal: String,
}

impl Agent {
    /// Opens a session without a word.
    pub async fn open(client: &Client) -> Self {
        let (to_broker, frames) = mpsc::channel(64);
        let mut agents = client.agents();
        let opened = agents.sync(ReceiverStream::new(frames)).await.expect("a session");
        let from_broker = opened.into_inner();
        Self { to_broker, from_broker, number: 0, pool: String::new(), epoch: 0, journal: String::new() }
    }

    /// Opens a session as the pool's agent and is let in.
    pub async fn greet(client: &Client, hello: v1::Hello) -> Self {
        let mut agent = Self::open(client).await;
        agent.pool = hello.pool.as_ref().map_or_else(String::new, |pool| pool.name.clone());
        agent.say(Body::Hello(hello)).await;
        match agent.hear().await.expect("an answer") {
            Answer::Accepted(accepted) => {
                (agent.epoch, agent.journal) = (accepted.epoch, accepted.journal);
                agent
            }
            other => panic!("instead of a accepted: {other:?}"),
        }
    }

    /// The agent of a pool with one node, ready to take work.
    pub async fn ready(client: &Client, pool: &str, installation: u8) -> Self {
        let mut agent = Self::greet(client, hello(pool, installation)).await;
        agent.tell_nodes(vec![node("n1")], v1::Part::FullEnd).await;
        agent.tell_attempts(Vec::new(), v1::Part::FullEnd).await;
        agent.until_ready(client).await;
        agent
    }

    /// Sends a message in a frame of its own.
    pub async fn say(&mut self, body: Body) {
        self.number += 1;
        self.send(v1::SyncRequest { number: self.number, body: Some(body) }).await;
    }

    /// Sends a frame as it is. One that the broker has ended can't be sent on; what it said can
    /// still be heard.
    pub async fn send(&mut self, frame: v1::SyncRequest) {
        let _ = self.to_broker.send(frame).await;
    }

    pub async fn tell_nodes(&mut self, nodes: Vec<v1::Node>, part: v1::Part) {
        let (epoch, part) = (self.epoch, part as i32);
        self.say(Body::Inventory(v1::Inventory { epoch, part, nodes, removed: Vec::new() })).await;
    }

    pub async fn tell_attempts(&mut self, reports: Vec<v1::AttemptReport>, part: v1::Part) {
        let (epoch, part) = (self.epoch, part as i32);
        self.say(Body::Observed(v1::Observed { epoch, part, reports })).await;
    }

    /// The broker's next message; `None` once it has ended the session.
    pub async fn hear(&mut self) -> Result<Answer, Option<Status>> {
        let heard = tokio::time::timeout(PATIENCE, self.from_broker.message()).await;
        match heard.expect("a message in time") {
            Ok(Some(response)) => response.body.ok_or(None),
            Ok(None) => Err(None),
            Err(status) => Err(Some(status)),
        }
    }

    /// The broker's next message that `wanted` takes.
    pub async fn hear_until<T>(&mut self, mut wanted: impl FnMut(Answer) -> Option<T>) -> T {
        loop {
            match self.hear().await {
                Ok(answer) => {
                    if let Some(found) = wanted(answer) {
                        return found;
                    }
                }
                Err(status) => panic!("the session has ended: {status:?}"),
            }
        }
    }

    /// How the broker refuses the session: code and message.
    pub async fn hear_refusal(&mut self) -> (String, String) {
        loop {
            match self.hear().await {
                Ok(Answer::Refused(refused)) => return (refused.code, refused.message),
                Ok(_) => {}
                Err(Some(status)) => return (format!("{:?}", status.code()), status.message().to_owned()),
                Err(None) => return ("Ended".to_owned(), String::new()),
            }
        }
    }

    async fn until_ready(&mut self, client: &Client) {
        // A heartbeat's answer comes after what the messages before it led to.
        self.beat(1).await;
        let pool = self.seen(client).await;
        assert_eq!(pool.connectivity(), v1::Connectivity::Ready, "{pool:?}");
    }

    /// Sends a heartbeat and waits for its answer.
    pub async fn beat(&mut self, sequence: u64) {
        self.say(Body::Heartbeat(v1::Heartbeat { epoch: self.epoch, sequence })).await;
        self.hear_until(|answer| match answer {
            Answer::HeartbeatAnswer(answer) => (answer.sequence == sequence).then_some(()),
            _ => None,
        })
        .await;
    }

    /// The pool as readers see it.
    pub async fn seen(&self, client: &Client) -> v1::Pool {
        let request = v1::GetPoolRequest { name: self.pool.clone() };
        client.pools().get_pool(request).await.expect("the pool").into_inner().pool.expect("a pool")
    }

    /// Checks that the broker still listens to this agent and knows its pool as it is.
    pub async fn check_heard(mut self, client: &Client) {
        self.beat(1_000_000).await;
        let pool = self.seen(client).await;
        assert!(
            pool.connected && pool.nodes == 1 && pool.connectivity() == v1::Connectivity::Ready,
            "{pool:?}"
        );
    }
}
