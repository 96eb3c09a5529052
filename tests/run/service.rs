//! A broker as a service: its service manager, hangups, and a log for machines.

use std::os::unix::net::UnixDatagram;

use super::*;

#[test]
fn a_service_reports_when_it_serves_logs_json_and_survives_a_hangup() {
    let mut home = Home::new();
    let path = home.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    home.env.push(("NOTIFY_SOCKET", path));
    let mut broker = home.start_broker_with("server", &["--log-format", "json"]);
    let mut message = [0; 256];
    let length = manager.recv(&mut message).expect("a message");
    assert_eq!(&message[..length], b"READY=1\n");
    let pid = rustix::process::Pid::from_child(&broker.0);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("a process");
    until("the hangup is logged", Duration::from_secs(30), || home.log().contains("SIGHUP is ignored"));
    assert_eq!(home.run(&["get", "queues", "-o", "name"]).1, "queue/default\n");
    assert!(broker.0.try_wait().expect("a state").is_none());
    let log = home.log();
    for line in log.lines() {
        let event: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(event["level"].is_string() && event["timestamp"].is_string(), "{line}");
    }
    assert!(log.contains("\"message\":\"the broker listens\""), "{log}");
}
