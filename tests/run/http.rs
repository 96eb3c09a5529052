//! Health, readiness and metrics on the port of the API, for plain HTTP clients.

use std::collections::BTreeSet;

use super::support::{http, http_get};
use super::*;

#[test]
fn the_apis_port_serves_health_without_and_metrics_with_the_token() {
    let (home, _dev) = dev();
    let address = home.address.clone();
    assert_eq!(http_get(&address, "/healthz", ""), (200, "ok\n".to_owned()));
    assert_eq!(http_get(&address, "/readyz", "").0, 200);
    let (code, body) = http_get(&address, "/metrics", "");
    assert!(code == 401 && body.contains("missing token"), "{code} {body}");
    assert_eq!(http_get(&address, "/metrics", "Authorization: Bearer wrong\r\n").0, 401);
    assert_eq!(http_get(&address, "/healthz", "Origin: http://evil.example\r\n").0, 403);

    assert_eq!(home.run(&["run", "--pool", "local", "--", "sh", "-c", "sleep 1; exit 3"]).0, 3);
    let _refused = home.run(&["describe", "job/nope"]);
    let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
    let read = || http_get(&address, "/metrics", &format!("Authorization: Bearer {}\r\n", token.trim()));
    let (code, text) = read();
    assert_eq!(code, 200, "{text}");
    for line in [
        "weir_journal_writable 1",
        "weir_attempts_ended_total{outcome=\"Failed\"} 1",
        "weir_attempt_run_seconds_count 1",
        "weir_unit_wait_seconds_count",
        "weir_pool_ready{pool=\"local\",region=\"CN-CQ\"} 1",
        "weir_pool_open{pool=\"gz-nvidia\"} 1",
        "weir_queue_jobs{queue=\"default\"} 0",
        "weir_rpc_seconds_count{code=\"NotFound\",method=\"GetJob\"} 1",
        "weir_rpc_seconds_count{code=\"Ok\",method=\"Submit\"} 1",
        "weir_journal_append_seconds_count",
        "weir_step_seconds_count{input=\"request\"}",
        "process_open_fds ",
    ] {
        assert!(text.lines().any(|other| other.starts_with(line)), "{line}\n{text}");
    }
    // Every sample belongs to a family with a help text and a type, each given once.
    let names = |prefix: &str| -> Vec<&str> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
        lines.filter_map(|line| line.split(' ').next()).collect()
    };
    let (helped, typed) = (names("# HELP "), names("# TYPE "));
    assert_eq!(helped, typed);
    assert_eq!(helped.iter().collect::<BTreeSet<_>>().len(), helped.len());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().expect("a name");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        assert!(helped.contains(&name) || family.is_some_and(|family| helped.contains(&family)), "{line}");
    }
    // Whatever clients call, the number of lines stays bounded.
    let unknown = |number: u32| {
        let path = format!("/weir.v1.JobService/Method{number}");
        http_get(
            &address,
            &path,
            &format!("Content-Type: application/grpc\r\nAuthorization: Bearer {}\r\n", token.trim()),
        )
    };
    (0..20).for_each(|number| drop(unknown(number)));
    assert!(!read().1.contains("Method1"), "{}", read().1);
    // The same port still speaks gRPC.
    assert_eq!(home.run(&["get", "queues", "-o", "name"]).1, "queue/default\n");
}

/// The protocol of browsers, in which trailers are a part of the body.
#[test]
fn the_apis_port_serves_grpc_web() {
    let (home, _dev) = dev();
    let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
    let call = |more: &str| {
        let headers = format!("Content-Type: application/grpc-web+proto\r\nX-Grpc-Web: 1\r\n{more}");
        let empty_message = [0; 5];
        http(&home.address, "POST", "/weir.v1.QueueService/ListQueues", &headers, &empty_message)
    };
    let (code, body) = call(&format!("Authorization: Bearer {}\r\n", token.trim()));
    let text = String::from_utf8_lossy(&body);
    assert_eq!(code, 200, "{text}");
    assert!(text.contains("default") && text.contains("grpc-status:0"), "{text}");
    let (_, refused) = call("Authorization: Bearer wrong\r\n");
    assert!(!String::from_utf8_lossy(&refused).contains("default"));
    let foreign = format!("Authorization: Bearer {}\r\nOrigin: http://evil.example\r\n", token.trim());
    assert!(!String::from_utf8_lossy(&call(&foreign).1).contains("default"));
}
