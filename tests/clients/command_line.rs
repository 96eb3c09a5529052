//! What generic clients do, which take a method's name and a request in JSON.

use std::io::BufReader;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::programs::{TIMEOUT, without_proxy};
use super::support::Process;

/// A generic client.
pub struct CommandLine<'a> {
    /// The command that calls a method, such as `JobService/Why`.
    pub call: &'a dyn Fn(&str, &str) -> Command,
    /// What it prints about a call for something that does not exist.
    pub not_found: &'a str,
}

/// The messages that a client prints while it runs. It is ended when this is dropped.
struct Stream {
    messages: Receiver<Value>,
    _client: Process,
}

impl Stream {
    /// Reads until a message shows the job in this phase.
    fn wait_for(&self, name: &str, phase: &str) {
        loop {
            let message = self.messages.recv_timeout(TIMEOUT);
            let message = message.unwrap_or_else(|error| panic!("before {name} was {phase}: {error}"));
            let jobs = message["jobs"].as_array().map(Vec::as_slice).unwrap_or_default();
            if jobs.iter().any(|job| job["name"] == name && job["phase"] == phase) {
                return;
            }
        }
    }
}

impl CommandLine<'_> {
    fn stream(&self, method: &str, request: &Value) -> Stream {
        let mut command = (self.call)(method, &request.to_string());
        without_proxy(&mut command);
        let mut client =
            Process(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the client starts"));
        let output = BufReader::new(client.0.stdout.take().expect("its output"));
        let (sender, messages) = channel();
        // It ends with the client's output.
        std::thread::spawn(move || {
            let printed = serde_json::Deserializer::from_reader(output).into_iter::<Value>();
            printed.map_while(Result::ok).try_for_each(|message| sender.send(message))
        });
        Stream { messages, _client: client }
    }

    /// Calls a method, and returns all messages of its response.
    fn messages(&self, method: &str, request: &Value) -> Vec<Value> {
        let stream = self.stream(method, request);
        let mut messages = Vec::new();
        loop {
            match stream.messages.recv_timeout(TIMEOUT) {
                Ok(message) => messages.push(message),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return messages,
                Err(error) => panic!("{method}: {error}"),
            }
        }
    }

    /// Calls a method with one response.
    fn call(&self, method: &str, request: &Value) -> Value {
        let mut messages = self.messages(method, request);
        assert_eq!(messages.len(), 1, "{method}: {messages:?}");
        messages.remove(0)
    }

    /// Calls a method that must fail, and returns what the client prints.
    fn refused(&self, method: &str, request: &Value) -> String {
        let mut command = (self.call)(method, &request.to_string());
        without_proxy(&mut command);
        let output = command.stdin(Stdio::null()).output().expect("the client starts");
        let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success(), "{method}: {printed}");
        printed
    }

    /// Does everything once, with jobs whose names end in `suffix`.
    pub fn check(&self, suffix: &str) {
        let [hello, waits, sleeps] = ["hello", "waits", "sleeps"].map(|name| format!("{name}{suffix}"));
        let watch = self.stream("JobService/WatchJobs", &json!({}));
        // A list of the live jobs. What changes after it is shown, however fast a job ends.
        let list = watch.messages.recv_timeout(TIMEOUT).expect("a list");
        assert_eq!(list["relisted"], true, "{list}");
        let submitted = self.call("JobService/Submit", &submission(&hello, 100, "echo hello; echo bad >&2"));
        assert_eq!(submitted["jobs"][0]["name"], json!(hello), "{submitted}");
        let logs = self.messages("JobService/Logs", &json!({"job": {"name": hello}, "follow": true}));
        let output = |stream: &str| -> Vec<u8> {
            let pieces = logs.iter().filter(|piece| piece["stream"] == stream);
            let data = pieces.map(|piece| piece["data"].as_str().expect("bytes").as_bytes());
            data.flat_map(|data| BASE64.decode(data).expect("base64")).collect()
        };
        assert_eq!(output("LOG_STREAM_STDOUT"), b"hello\n", "{logs:?}");
        assert_eq!(output("LOG_STREAM_STDERR"), b"bad\n", "{logs:?}");
        watch.wait_for(&hello, "JOB_PHASE_SUCCEEDED");

        // One task needs more CPUs than any machine has.
        self.call("JobService/Submit", &submission(&waits, 1_000_000, "true"));
        let why = self.call("JobService/Why", &json!({"job": {"name": waits}}));
        let pools = why["groups"][0]["pools"].as_array().expect("pools");
        let local = pools.iter().find(|pool| pool["pool"] == "local").expect("this machine's pool");
        assert_eq!(local["reason"]["code"], "TaskTooLarge", "{why}");
        assert_eq!(local["reason"]["parameters"]["needed"], "1000000", "{why}");

        self.call("JobService/Submit", &submission(&sleeps, 100, "sleep 3600"));
        watch.wait_for(&sleeps, "JOB_PHASE_RUNNING");
        self.call("JobService/Cancel", &json!({"jobs": [{"name": sleeps}, {"name": waits}]}));
        watch.wait_for(&sleeps, "JOB_PHASE_CANCELLED");

        for method in ["JobService/GetJob", "JobService/Logs"] {
            let refused = self.refused(method, &json!({"job": {"name": "nope"}}));
            assert!(refused.contains(self.not_found), "{method}: {refused}");
        }
    }
}

/// A job for this machine's pool, which runs a command in a shell.
fn submission(name: &str, cpu_millis: u32, script: &str) -> Value {
    let resources = json!({"cpuMillis": cpu_millis, "memoryBytes": 64 << 20});
    let group = json!({"resources": resources, "process": {"command": ["sh", "-c", script]}});
    let spec = json!({"constraints": {"pools": ["local"]}, "groups": [group]});
    json!({"jobs": [{"name": name, "spec": spec}], "allowPending": true})
}
