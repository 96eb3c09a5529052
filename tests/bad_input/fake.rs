//! A real broker process, and hand-made agents that can violate the protocol.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use weir::api::client::Client;
use weir::api::proto::v1;
use weir::api::proto::v1::sync_request::Body;
use weir::api::proto::v1::sync_response::Body as Answer;

use crate::support::{Home, Process};

/// Longer than any response takes on a busy machine: past it, the broker hangs.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A broker process with its own data folder.
pub struct Broker {
    pub home: Home,
    pub process: Process,
    pub token: String,
}

impl Broker {
    /// Starts a broker without pools.
    pub fn start() -> Self {
        Self::with_command("server")
    }

    /// Starts a broker with this command: `server` or `dev`.
    pub fn with_command(command: &str) -> Self {
        Self::with_limits(command, "")
    }

    /// Starts a broker under resource limits, in the syntax of the shell's `ulimit`.
    pub fn with_limits(command: &str, limits: &'static str) -> Self {
        let mut home = Home::new();
        home.limits = limits;
        Self::in_home(home, command, &[])
    }

    /// Kills the broker and starts it again with its data, on the same address.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = self.home.start_broker("server");
    }

    /// Starts a broker in a prepared home and with further arguments.
    pub fn in_home(mut home: Home, command: &str, arguments: &[&str]) -> Self {
        let process = home.start_broker_with(command, arguments);
        let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
        Self { home, process, token }
    }

    /// A client with the token.
    pub fn client(&self) -> Client {
        Client::new(&self.home.address, Some(&self.token)).expect("a client")
    }

    /// Resident memory of the process.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// Largest resident memory of the process so far.
    pub fn peak_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id()));
        let status = status.expect("the broker runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("its memory");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("kibibytes") << 10
    }

    /// Checks that the broker answers a simple request and has logged neither a panic nor an ERROR.
    pub async fn check_health(&self, client: &Client) {
        let request = async { client.queues().list_queues(v1::ListQueuesRequest {}).await };
        let answer = tokio::time::timeout(TIMEOUT, request).await.expect("an answer in time");
        answer.expect("an answer");
        let log = self.home.log();
        assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
    }
}

/// Submits a job that waits: the pool that it requires does not exist. Returns its id.
pub async fn waiting_job(client: &Client, name: &str) -> u64 {
    let mut request = crate::job::valid();
    request.jobs[0].name = name.to_owned();
    let spec = request.jobs[0].spec.as_mut().expect("a spec");
    spec.constraints = Some(v1::Constraints { pools: vec!["nowhere".to_owned()], ..Default::default() });
    let response = client.jobs().submit(request).await.expect("a job that waits").into_inner();
    response.jobs[0].id
}

/// A hello of the pool with this name. Each number is another installation of the agent.
pub fn hello(pool: &str, installation: u8) -> v1::Hello {
    v1::Hello {
        pool: Some(v1::PoolDeclaration {
            name: pool.to_owned(),
            region: "CN-CQ".to_owned(),
            backend: "fake".to_owned(),
            real: true,
            processes: true,
            ..Default::default()
        }),
        instance: vec![installation; 16],
        key: vec![installation; 16],
        last_epoch: None,
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
    /// Opens a session without sending anything.
    pub async fn open(client: &Client) -> Self {
        let (to_broker, frames) = mpsc::channel(64);
        let mut agents = client.agents();
        let opened = agents.sync(ReceiverStream::new(frames)).await.expect("a session");
        let from_broker = opened.into_inner();
        Self { to_broker, from_broker, number: 0, pool: String::new(), epoch: 0, journal: String::new() }
    }

    /// Opens a session as the pool's agent, which the broker accepts.
    pub async fn connect(client: &Client, hello: v1::Hello) -> Self {
        let mut agent = Self::open(client).await;
        agent.pool = hello.pool.as_ref().map_or_else(String::new, |pool| pool.name.clone());
        agent.send(Body::Hello(hello)).await;
        match agent.receive().await.expect("an answer") {
            Answer::Accepted(accepted) => {
                (agent.epoch, agent.journal) = (accepted.epoch, accepted.journal);
                agent
            }
            other => panic!("not accepted: {other:?}"),
        }
    }

    /// The agent of a pool with one node, which is READY.
    pub async fn ready(client: &Client, pool: &str, installation: u8) -> Self {
        let mut agent = Self::connect(client, hello(pool, installation)).await;
        agent.send_nodes(vec![node("n1")], v1::Part::FullEnd).await;
        agent.send_reports(Vec::new(), v1::Part::FullEnd).await;
        agent.until_ready(client).await;
        agent
    }

    /// Sends a message in the next frame.
    pub async fn send(&mut self, body: Body) {
        self.number += 1;
        self.send_frame(v1::SyncRequest { number: self.number, body: Some(body) }).await;
    }

    /// Sends a frame unchanged. Does nothing if the broker has ended the session, whose last messages can
    /// still be received.
    pub async fn send_frame(&mut self, frame: v1::SyncRequest) {
        let _ = self.to_broker.send(frame).await;
    }

    /// Sends an inventory.
    pub async fn send_nodes(&mut self, nodes: Vec<v1::Node>, part: v1::Part) {
        let (epoch, part) = (self.epoch, part as i32);
        self.send(Body::Inventory(v1::Inventory { epoch, part, nodes, removed: Vec::new() })).await;
    }

    /// Sends reports of attempts.
    pub async fn send_reports(&mut self, reports: Vec<v1::AttemptReport>, part: v1::Part) {
        let (epoch, part) = (self.epoch, part as i32);
        self.send(Body::Observed(v1::Observed { epoch, part, reports })).await;
    }

    /// The broker's next message.
    ///
    /// # Errors
    /// `None` if the broker has ended the session, or the status with which it did.
    pub async fn receive(&mut self) -> Result<Answer, Option<Status>> {
        let message = tokio::time::timeout(TIMEOUT, self.from_broker.message()).await;
        match message.expect("a message in time") {
            Ok(Some(response)) => response.body.ok_or(None),
            Ok(None) => Err(None),
            Err(status) => Err(Some(status)),
        }
    }

    /// Receives messages until `select` returns a value.
    pub async fn receive_until<T>(&mut self, mut select: impl FnMut(Answer) -> Option<T>) -> T {
        loop {
            match self.receive().await {
                Ok(answer) => {
                    if let Some(found) = select(answer) {
                        return found;
                    }
                }
                Err(status) => panic!("the session has ended: {status:?}"),
            }
        }
    }

    /// Receives messages until the broker refuses the session: code and message.
    pub async fn receive_refusal(&mut self) -> (String, String) {
        loop {
            match self.receive().await {
                Ok(Answer::Refused(refused)) => return (refused.code, refused.message),
                Ok(_) => {}
                Err(Some(status)) => return (format!("{:?}", status.code()), status.message().to_owned()),
                Err(None) => return ("Ended".to_owned(), String::new()),
            }
        }
    }

    async fn until_ready(&mut self, client: &Client) {
        // The broker answers a heartbeat after it has processed the messages before it.
        self.heartbeat(1).await;
        let pool = self.pool_view(client).await;
        assert_eq!(pool.connectivity(), v1::Connectivity::Ready, "{pool:?}");
    }

    /// Sends a heartbeat and waits for its answer.
    pub async fn heartbeat(&mut self, sequence: u64) {
        self.send(Body::Heartbeat(v1::Heartbeat { epoch: self.epoch, sequence })).await;
        self.receive_until(|answer| match answer {
            Answer::HeartbeatAnswer(answer) => (answer.sequence == sequence).then_some(()),
            _ => None,
        })
        .await;
    }

    /// The pool as the API shows it.
    pub async fn pool_view(&self, client: &Client) -> v1::Pool {
        let request = v1::GetPoolRequest { name: self.pool.clone() };
        client.pools().get_pool(request).await.expect("the pool").into_inner().pool.expect("a pool")
    }

    /// Checks that the session is still up and the pool READY with its node.
    pub async fn check_session(mut self, client: &Client) {
        self.heartbeat(1_000_000).await;
        let pool = self.pool_view(client).await;
        assert!(
            pool.connected && pool.nodes == 1 && pool.connectivity() == v1::Connectivity::Ready,
            "{pool:?}"
        );
    }
}
