//! Exhausted connections and file descriptors: authenticated clients are served throughout, and the broker
//! recovers.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::net::TcpStream;

use crate::fake::{Broker, TIMEOUT};
use crate::support::{Home, until};

#[tokio::test]
async fn unauthenticated_connections_give_way_to_authenticated_clients() {
    // 72 connections: 200 file descriptors minus the 128 reserved for other files.
    let broker = Broker::with_limits("server", "-n 200");
    let connected = broker.client();
    broker.check_health(&connected).await;
    let mut unauthenticated = Vec::new();
    for round in 0..5 {
        for _ in 0..200 {
            unauthenticated.extend(TcpStream::connect(&broker.home.address).await);
        }
        let sent_at = Instant::now();
        broker.check_health(&broker.client()).await;
        let took = sent_at.elapsed();
        println!("{} unauthenticated: a new client gets a response in {took:?}", unauthenticated.len());
        // Far less than the authentication deadline of 30 s.
        assert!(took < Duration::from_secs(5), "round {round}: {took:?}");
        broker.check_health(&connected).await;
    }
    let log = broker.home.log();
    assert!(!log.contains("can't be accepted"), "{log}");
}

#[tokio::test]
async fn broker_without_free_file_descriptors_serves_clients_and_warns_once() {
    let broker = Broker::start();
    let connected = broker.client();
    broker.check_health(&connected).await;
    let pid = Pid::from_raw(broker.process.0.id().cast_signed()).expect("a process");
    let open = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", broker.process.0.id())).expect("its files");
        files.count() as u64
    };
    let log = |text: &str| broker.home.log().matches(text).count();
    let before = prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(65), maximum: Some(20_000) });
    let before = before.expect("its limit");
    let mut more = Vec::new();
    // The lower limit closes no open files: the broker reaches it as clients connect.
    while log("connections can't be accepted") == 0 {
        assert!(more.len() < 200 && open() <= 66, "{} files are open", open());
        more.push(TcpStream::connect(&broker.home.address).await.expect("in the backlog"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Connected clients are served, over several of the broker's attempts to accept (every 100 ms). A new
    // client gets in too, because unauthenticated connections give way.
    for _ in 0..20 {
        broker.check_health(&connected).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    broker.check_health(&broker.client()).await;
    prlimit(Some(pid), Resource::Nofile, before).expect("its limit as it was");
    drop(more);
    until("connections are accepted again", TIMEOUT, || log("connections are accepted again") > 0);
    broker.check_health(&broker.client()).await;
    let (short, again) = (log("connections can't be accepted"), log("connections are accepted again"));
    assert!(short <= again + 1 && short < 100, "{short} warnings, {again} recoveries");
}

#[test]
fn broker_with_too_few_file_descriptors_does_not_start() {
    let mut home = Home::new();
    home.limits = "-n 150";
    let data = home.data();
    let data = data.to_str().expect("a plain path");
    let (code, _, error) = home.run(&["server", "--data", data, "--listen", "127.0.0.1:0"]);
    assert_eq!(code, 1, "{error}");
    let expected = "the limit of open files is 150, a broker needs at least 192: raise it with `ulimit -n`";
    assert!(error.contains(expected), "{error}");
    assert!(!home.data().exists(), "nothing is begun");
}
