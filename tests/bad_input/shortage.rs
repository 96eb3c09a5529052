//! Places and files that run out: who is known is served on, and what was short is made up for.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::net::TcpStream;

use crate::fake::{Broker, PATIENCE};
use crate::support::until;

#[tokio::test]
async fn strangers_make_room_for_who_knows_the_token() {
    // 72 connections: 200 files without those that are kept for others.
    let broker = Broker::within("server", "-n 200");
    let known = broker.client();
    broker.is_well(&known).await;
    let mut strangers = Vec::new();
    for round in 0..5 {
        for _ in 0..200 {
            strangers.extend(TcpStream::connect(&broker.home.address).await);
        }
        let asked = Instant::now();
        broker.is_well(&broker.client()).await;
        let took = asked.elapsed();
        println!("{} strangers: a new client is answered in {took:?}", strangers.len());
        // Far less than the half minute that a stranger may stay.
        assert!(took < Duration::from_secs(5), "round {round}: {took:?}");
        broker.is_well(&known).await;
    }
    let log = broker.home.log();
    assert!(!log.contains("can't be accepted"), "{log}");
}

#[tokio::test]
async fn broker_that_is_short_of_files_serves_on_and_says_so_once() {
    let broker = Broker::start();
    let known = broker.client();
    broker.is_well(&known).await;
    let pid = Pid::from_raw(broker.process.0.id().cast_signed()).expect("a process");
    let open = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", broker.process.0.id())).expect("its files");
        files.count() as u64
    };
    let log = |text: &str| broker.home.log().matches(text).count();
    let before = prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(65), maximum: Some(20_000) });
    let before = before.expect("its limit");
    let mut more = Vec::new();
    // Files that are in use are not taken away: it comes to stand at the limit as clients come.
    while log("connections can't be accepted") == 0 {
        assert!(more.len() < 200 && open() <= 66, "{} files are open", open());
        more.push(TcpStream::connect(&broker.home.address).await.expect("in the backlog"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Those who are connected are served, and strangers give way: a new client comes in, too.
    for _ in 0..20 {
        broker.is_well(&known).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    broker.is_well(&broker.client()).await;
    prlimit(Some(pid), Resource::Nofile, before).expect("its limit as it was");
    drop(more);
    until("connections are accepted again", PATIENCE, || log("connections are accepted again") > 0);
    broker.is_well(&broker.client()).await;
    let (short, again) = (log("connections can't be accepted"), log("connections are accepted again"));
    assert!(short <= again + 1 && short < 100, "said {short} times, and {again} times that it is over");
}
