//! The API in JSON over HTTP/1.1, as `curl` and web pages use it.

use data_encoding::BASE64;
use prost::Message;
use serde_json::{Value, json};
use weir::api::proto::v1;

use super::support::http;
use super::*;

/// A client that speaks JSON.
struct Client {
    address: String,
    token: String,
}

impl Client {
    fn of(home: &Home) -> Self {
        let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
        Self { address: home.address.clone(), token: token.trim().to_owned() }
    }

    /// Sends a body as it is, and returns the response's code and body.
    fn send(&self, method: &str, content_type: &str, more: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let headers =
            format!("Authorization: Bearer {}\r\nContent-Type: {content_type}\r\n{more}", self.token);
        http(&self.address, "POST", &format!("/weir.v1.{method}"), &headers, body)
    }

    fn call(&self, method: &str, request: &Value) -> (u16, Value) {
        let (code, body) = self.send(method, "application/json", "", request.to_string().as_bytes());
        (code, serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{method}: {code} {body:?}")))
    }

    /// Calls a method that streams, and returns its lines.
    fn lines(&self, method: &str, request: &Value) -> Vec<Value> {
        let (code, body) =
            self.send(method, "application/json; charset=utf-8", "", request.to_string().as_bytes());
        assert_eq!(code, 200);
        let text = String::from_utf8(body).expect("text");
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }
}

fn submission(name: &str, script: &str) -> Value {
    json!({"jobs": [{"name": name, "spec": {
        "constraints": {"pools": ["local"]},
        "groups": [{
            "count": 1,
            "resources": {"cpuMillis": "100", "memory_bytes": 67_108_864},
            "process": {"command": ["sh", "-c", script]},
        }],
    }}]})
}

#[test]
fn every_kind_of_method_has_a_form_in_json() {
    let (home, _dev) = dev();
    let client = Client::of(&home);
    let (code, submitted) =
        client.call("JobService/Submit", &submission("hello", "echo hello; echo bad >&2; exit 3"));
    assert_eq!((code, &submitted["jobs"][0]["name"]), (200, &json!("hello")), "{submitted}");
    // Numbers of 64 bits are texts: JavaScript's numbers can't hold them all.
    assert!(submitted["jobs"][0]["id"].is_string(), "{submitted}");
    let reference = json!({"job": {"name": "hello"}});
    let mut request = reference.clone();
    request["follow"] = json!(true);
    let lines = client.lines("JobService/Logs", &request);
    let text = |stream: &str| -> Vec<u8> {
        let of = lines.iter().filter(|line| line["stream"] == stream);
        of.flat_map(|line| BASE64.decode(line["data"].as_str().expect("bytes").as_bytes()).expect("base64"))
            .collect()
    };
    assert_eq!(text("LOG_STREAM_STDOUT"), b"hello\n", "{lines:?}");
    assert_eq!(text("LOG_STREAM_STDERR"), b"bad\n", "{lines:?}");
    until("the job has ended", Duration::from_secs(30), || {
        let (code, found) = client.call("JobService/GetJob", &reference);
        assert_eq!(code, 200, "{found}");
        found["job"]["phase"] == "JOB_PHASE_FAILED" && found["job"]["failure"]["exitCode"] == 3
    });
    let (code, why) = client.call("JobService/Why", &reference);
    assert_eq!((code, &why["job"]["name"]), (200, &json!("hello")), "{why}");
    // A body may be left out.
    let (code, pools) = client.send("PoolService/ListPools", "application/json", "", b"");
    let pools: Value = serde_json::from_slice(&pools).expect("JSON");
    assert!(code == 200 && pools["pools"].as_array().is_some_and(|pools| pools.len() >= 3), "{pools}");
}

#[test]
fn streams_come_in_envelopes_and_end_with_their_outcome() {
    let (home, _dev) = dev();
    let client = Client::of(&home);
    let envelope = |json: &str| [&[0][..], &(json.len() as u32).to_be_bytes(), json.as_bytes()].concat();
    let stream = |method: &str, json: &str| {
        let (code, body) = client.send(method, "application/connect+json", "", &envelope(json));
        assert_eq!(code, 200);
        let (mut rest, mut envelopes) = (&body[..], Vec::new());
        while let [flags, a, b, c, d, ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            let content: Value = serde_json::from_slice(&rest[5..5 + length]).expect("JSON");
            envelopes.push((*flags, content));
            rest = &rest[5 + length..];
        }
        envelopes
    };
    assert_eq!(client.call("JobService/Submit", &submission("short", "echo one")).0, 200);
    let envelopes = stream("JobService/Logs", "{\"job\": {\"name\": \"short\"}, \"follow\": true}");
    assert_eq!(envelopes.last(), Some(&(2, json!({}))), "{envelopes:?}");
    assert!(envelopes.iter().any(|(flags, line)| *flags == 0 && line["data"] == "b25lCg=="), "{envelopes:?}");
    let envelopes = stream("JobService/Logs", "{\"job\": {\"name\": \"nope\"}}");
    let [(2, end)] = &envelopes[..] else { panic!("{envelopes:?}") };
    assert_eq!(end["error"]["code"], "not_found", "{end}");
    // The form of another kind of method, and bodies that are no envelope.
    let (_, refused) = client.send("JobService/GetJob", "application/connect+json", "", &envelope("{}"));
    assert!(String::from_utf8_lossy(&refused).contains("use application/json"), "{refused:?}");
    for body in [&b"{}"[..], b"", b"\x01\0\0\0\x02{}"] {
        let (_, refused) = client.send("JobService/Logs", "application/connect+json", "", body);
        assert!(String::from_utf8_lossy(&refused).contains("invalid_argument"), "{refused:?}");
    }
}

/// What most clients of Connect send, unless they are configured to send JSON.
#[test]
fn messages_may_be_binary_but_errors_are_json() {
    let (home, _dev) = dev();
    let client = Client::of(&home);
    assert_eq!(client.call("JobService/Submit", &submission("binary", "echo one")).0, 200);
    let named = |name: &str| Some(v1::JobRef { name: name.to_owned(), ..Default::default() });
    let envelope = |message: &[u8]| [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat();
    let logs = |name: &str| {
        let request = v1::LogsRequest { job: named(name), follow: true, ..Default::default() };
        client.send("JobService/Logs", "application/connect+proto", "", &envelope(&request.encode_to_vec()))
    };
    let (code, body) = logs("binary");
    let length = u32::from_be_bytes(body[1..5].try_into().expect("a length")) as usize;
    let piece = v1::LogsResponse::decode(&body[5..5 + length]).expect("a message");
    assert_eq!((code, body[0], &piece.data[..]), (200, 0, &b"one\n"[..]), "{piece:?}");
    assert_eq!(body[5 + length..], *b"\x02\0\0\0\x02{}", "the stream's end");
    let (code, body) = logs("nope");
    assert!(code == 200 && body[0] == 2 && body[5..].starts_with(b"{\"error\":{\"code\":\"not_found\""));

    let get = |name: &str| {
        let request = v1::GetJobRequest { job: named(name), ..Default::default() };
        client.send("JobService/GetJob", "application/proto", "", &request.encode_to_vec())
    };
    let (code, body) = get("binary");
    let job = v1::GetJobResponse::decode(&body[..]).expect("a message").job.expect("a job");
    assert_eq!((code, job.name.as_str()), (200, "binary"));
    let (code, body) = get("nope");
    assert!(code == 404 && body.starts_with(b"{\"code\":\"not_found\""), "{code} {body:?}");
    // No message, and types that belong to the other kind of method.
    let refused = |method: &str, content_type: &str, body: &[u8], expected: (u16, &str)| {
        let (code, answer) = client.send(method, content_type, "", body);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(code == expected.0 && answer.contains(expected.1), "{method}: {code} {answer}");
    };
    refused("JobService/GetJob", "application/proto", b"\xff", (400, "\"invalid_argument\""));
    refused("JobService/GetJob", "application/connect+proto", &envelope(b""), (200, "use application/proto"));
    refused("JobService/Logs", "application/proto", b"", (501, "use application/connect+proto"));
    let long = vec![0; 5 << 20];
    refused("JobService/Submit", "application/proto", &long, (400, "\"out_of_range\""));
}

#[test]
fn errors_in_json_have_a_code_a_status_and_readable_details() {
    let (home, _dev) = dev();
    let client = Client::of(&home);
    let error = |method: &str, body: &str, status: u16, code: &str, message: &str| {
        let (found, answer) = client.send(method, "application/json", "", body.as_bytes());
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_else(|_| panic!("{answer:?}"));
        let text = answer["message"].as_str().unwrap_or_default();
        assert!(
            found == status && answer["code"] == code && text.contains(message),
            "{method} {}: {found} {answer}",
            &body[..body.len().min(200)]
        );
        answer
    };
    error("JobService/GetJob", "{\"job\": {\"name\": \"nope\"}}", 404, "not_found", "nope");
    let refused =
        error("JobService/Submit", "{\"jobs\": [{\"spec\": {}}]}", 400, "invalid_argument", "groups");
    let details = refused["details"].as_array().expect("details");
    let fields = details.iter().find(|detail| detail["type"] == "google.rpc.BadRequest").expect("fields");
    assert_eq!(fields["debug"]["fieldViolations"][0]["field"], "jobs[0].spec.groups", "{refused}");
    error("JobService/GetJob", "{\"jbo\": {}}", 400, "invalid_argument", "jbo");
    error("JobService/GetJob", "{\"job\": {\"id\": \"x\"}}", 400, "invalid_argument", "job.id");
    error("JobService/GetJob", "{\"job\": ", 400, "invalid_argument", "EOF");
    error("JobService/Nope", "{}", 404, "unimplemented", "/weir.v1.JobService/Nope");
    error("AgentService/Sync", "{}", 501, "unimplemented", "gRPC");
    // A body that would take far more memory than it has bytes, and one that is too long.
    let many = format!("{{\"jobs\": [{}]}}", "{},".repeat(200_000) + "{}");
    error("JobService/Submit", &many, 400, "invalid_argument", "more than 100000");
    let deep = "[".repeat(100_000);
    error("JobService/Submit", &deep, 400, "invalid_argument", "");
    let long = format!("{{\"token\": \"{}\"}}", "x".repeat(5 << 20));
    let (status, _) = client.send("JobService/Submit", "application/json", "", long.as_bytes());
    assert_eq!(status, 400);
    let (status, refused) =
        client.send("JobService/GetJob", "application/json", "Content-Encoding: gzip\r\n", b"{}");
    assert!(status == 501 && String::from_utf8_lossy(&refused).contains("identity"), "{refused:?}");
    let unauthenticated = Client { address: client.address.clone(), token: "wrong".to_owned() };
    let (status, refused) = unauthenticated.call("JobService/GetJob", &json!({}));
    assert!(status == 401 && refused["code"] == "unauthenticated", "{refused}");
    let (status, refused) =
        client.send("JobService/GetJob", "application/json", "Origin: http://evil.example\r\n", b"{}");
    assert!(status == 403 && String::from_utf8_lossy(&refused).contains("permission_denied"), "{refused:?}");
    // What `curl -d` sends without a header, and `curl` without `-d`.
    let (status, refused) = client.send("JobService/GetJob", "application/x-www-form-urlencoded", "", b"{}");
    assert!(
        status == 415 && String::from_utf8_lossy(&refused).contains("use application/json"),
        "{refused:?}"
    );
    let headers = format!("Authorization: Bearer {}\r\n", client.token);
    for (path, expected) in [("/weir.v1.JobService/GetJob", 405), ("/", 404), ("/nope", 404)] {
        let (status, refused) = support::http_get(&client.address, path, &headers);
        assert!(status == expected && refused.contains("unimplemented"), "{path}: {status} {refused}");
    }
    // A client's own limit, of a call and of a stream.
    let (status, refused) =
        client.send("JobService/GetJob", "application/json", "connect-timeout-ms: soon\r\n", b"{}");
    assert!(status == 400 && String::from_utf8_lossy(&refused).contains("10 digits"), "{refused:?}");
    let (status, watch) =
        client.send("JobService/WatchJobs", "application/json", "connect-timeout-ms: 300\r\n", b"{}");
    let last = String::from_utf8_lossy(&watch).lines().last().expect("a line").to_owned();
    assert!(status == 200 && last.contains("\"code\":\"deadline_exceeded\""), "{last}");
    // Calls in JSON are counted by their codes.
    let (_, metrics) = super::support::http_get(&client.address, "/metrics", &headers);
    assert!(metrics.contains("weir_rpc_seconds_count{code=\"NotFound\",method=\"GetJob\"} 1"), "{metrics}");
}

#[test]
fn pages_of_this_machine_may_call_and_others_may_not() {
    let (home, _dev) = dev();
    let preflight = |origin: &str| {
        let headers = format!(
            "Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization,content-type\r\n"
        );
        support::http_head(&home.address, "OPTIONS", "/weir.v1.JobService/GetJob", &headers)
    };
    let own = preflight("http://localhost:5173").to_ascii_lowercase();
    assert!(own.contains("access-control-allow-origin: http://localhost:5173"), "{own}");
    assert!(own.contains("access-control-allow-headers: authorization,content-type"), "{own}");
    let foreign = preflight("https://evil.example").to_ascii_lowercase();
    assert!(!foreign.contains("access-control-allow-origin"), "{foreign}");
}
