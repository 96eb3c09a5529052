//! Hostile text: bidirectional overrides, invisible and control characters, wherever it is printed.

use std::io::Write;

use weir::api::proto::v1;
use weir::api::proto::v1::attempt_report::Status as Reported;
use weir::api::proto::v1::sync_response::Body as Answer;
use weir::model::text::is_control_or_bidi;

use crate::fake::{Agent, Broker};
use crate::job;

/// A colour, a title, an override, a zero-width space, a soft hyphen, a C1 control, a tag, a bell.
const HOSTILE: &str =
    "a\u{1b}[31mb\u{1b}]0;t\u{7}c\u{202e}d\u{200b}e\u{ad}f\u{9b}2Jg\u{e0041}h\u{2066}i\u{feff}j\rk\tl";

fn sanitised(text: &str) -> bool {
    text.chars().all(|c| c == '\n' || !is_control_or_bidi(c))
}

/// Runs a job with such text in every field that allows it, and ends it with such a message.
async fn hostile_job(broker: &Broker) -> Agent {
    let client = broker.client();
    let mut agent = Agent::ready(&client, "normal", 1).await;
    let mut request = job::valid();
    request.jobs[0].name = "odd".to_owned();
    let spec = request.jobs[0].spec.as_mut().expect("a spec");
    spec.labels = [("team".to_owned(), "vision".to_owned())].into();
    let Some(v1::task_group::Run::Process(program)) = &mut spec.groups[0].run else { panic!("a process") };
    program.command = vec![HOSTILE.to_owned()];
    program.args = vec![HOSTILE.to_owned(), "\u{202e}".to_owned()];
    program.workdir = format!("/{HOSTILE}");
    program.env = vec![v1::EnvVar {
        name: "ODD".to_owned(),
        source: Some(v1::env_var::Source::Value(HOSTILE.to_owned())),
    }];
    client.jobs().submit(request).await.expect("a command may contain any byte but NUL");
    let order = agent.receive_until(|answer| match answer {
        Answer::Orders(orders) => orders.orders.into_iter().next(),
        _ => None,
    });
    let attempt = order.await.attempt;
    let outcome = Some(v1::Outcome {
        code: "Failed".to_owned(),
        exit_code: Some(1),
        message: format!("{HOSTILE}\u{0}\nforged line"),
        ..Default::default()
    });
    let status = Some(Reported::Ended(v1::Ended { outcome, ..Default::default() }));
    agent
        .send_reports(vec![v1::AttemptReport { attempt, ordered_revision: 0, status }], v1::Part::Delta)
        .await;
    agent.receive_until(|answer| matches!(answer, Answer::Acknowledged(_)).then_some(())).await;
    agent
}

#[tokio::test]
async fn no_command_prints_control_or_bidi_characters() {
    let broker = Broker::start();
    let _agent = hostile_job(&broker).await;
    let odd_file = broker.home.path().join(format!("{HOSTILE}.yaml").replace('/', ""));
    std::fs::write(&odd_file, format!("name: \"{}\"\n", "x\\u202e")).expect("a file");
    let odd_file = odd_file.to_str().expect("UTF-8").to_owned();
    let odd_job = format!("job/{HOSTILE}");
    let mut rows: Vec<Vec<&str>> = vec![
        vec!["describe", "job/odd"],
        vec!["describe", "pool/normal"],
        vec!["describe", &odd_job],
        vec!["describe", HOSTILE],
        vec!["why", "job/odd"],
        vec!["why", &odd_job],
        vec!["wait", "--timeout", "1s", "odd"],
        vec!["wait", "--timeout", "1s", &odd_job],
        vec!["cancel", &odd_job],
        vec!["logs", &odd_job],
        vec!["logs", "odd", "--attempt", "9"],
        vec!["top", "--once"],
        vec!["cordon", HOSTILE],
        vec!["uncordon", HOSTILE],
        vec!["drain", HOSTILE],
        vec!["drain", "normal", "--deadline", HOSTILE],
        vec!["admin", "abandon", HOSTILE],
        vec!["submit", &odd_file],
        vec!["submit", HOSTILE],
        vec!["apply", &odd_file],
        vec!["get", HOSTILE],
        vec!["get", "jobs", "-l", HOSTILE],
        vec!["get", "jobs", "--queue", HOSTILE],
        vec!["get", "jobs", "-o", HOSTILE],
        vec!["get", "jobs", "--limit", HOSTILE],
        vec![HOSTILE],
        vec!["--server", HOSTILE, "get", "jobs"],
        vec!["--server", "http://\u{202e}", "get", "jobs"],
        vec!["run", "--name", HOSTILE, "--", "true"],
        vec!["run", "--region", HOSTILE, "--", "true"],
        vec!["run", "--cpus", HOSTILE, "--", "true"],
        vec!["run", "--env", HOSTILE, "--", "true"],
        vec!["server", "--listen", HOSTILE],
        vec!["dev", "--region", HOSTILE, "--listen", "127.0.0.1:0"],
        vec!["agent", HOSTILE],
        vec!["agent", &odd_file],
    ];
    for format in ["table", "wide", "json", "yaml", "name"] {
        for what in ["job/odd", "pools", "pool/normal", "nodes", "queues"] {
            rows.push(vec!["get", what, "-o", format]);
        }
        rows.push(vec!["get", "jobs", "--all", "-o", format]);
    }
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|arguments| {
            let (code, stdout, stderr) = broker.home.run(arguments);
            let is_empty = stdout.is_empty() && stderr.is_empty();
            (!sanitised(&stdout) || !sanitised(&stderr) || is_empty || code == 101)
                .then(|| format!("{arguments:?}: {code} {stdout:?} {stderr:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Escaping loses nothing: JSON and YAML parse to the original text.
    let (_, stdout, _) = broker.home.run(&["get", "job/odd", "-o", "json"]);
    let job: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    let (_, stdout, _) = broker.home.run(&["get", "job/odd", "-o", "yaml"]);
    assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&stdout).expect("YAML"), job);
    assert!(job.to_string().contains(&serde_json::to_string(HOSTILE).expect("a text")), "{job}");
    // The message of an ended attempt is printed on one line.
    let (_, stdout, _) = broker.home.run(&["describe", "job/odd"]);
    assert!(!stdout.lines().any(|line| line.starts_with("forged line")), "{stdout}");
    assert!(sanitised(&broker.home.log()), "{}", broker.home.log());
}

#[test]
fn no_log_contains_control_or_bidi_characters() {
    let mut home = crate::support::Home::new();
    let odd = home.path().join("d\u{202e}ata\u{1b}[31m");
    let arguments = ["--data", odd.to_str().expect("UTF-8")];
    let listen = ["server", "--listen", "127.0.0.1:0", arguments[0], arguments[1]];
    let _broker = home.start(&listen);
    crate::support::until("the broker listens", crate::fake::TIMEOUT, || odd.join("endpoint").exists());
    crate::support::until("it logs that", crate::fake::TIMEOUT, || home.log().contains("the broker listens"));
    // An agent that can't reach its broker logs the address.
    home.address = "127.0.0.1:9".to_owned();
    let file = home.path().join("agent.toml");
    let mut text = std::fs::File::create(&file).expect("a file");
    let state = home.path().join("s\u{202e}tate");
    write!(
        text,
        "name = \"p\"\nregion = \"CN-CQ\"\nserver = \"127.0.0.1:9\"\ntoken_file = \"{}/token\"\nstate = \"{}\"\n[simulated]\nnodes = [{{count = 1, prefix = \"n\", cpus = 1, memory_gib = 1}}]\n",
        odd.display().to_string().replace('\u{1b}', "\\u001b"),
        state.display()
    )
    .expect("written");
    let _agent = home.start(&["agent", file.to_str().expect("a plain path")]);
    crate::support::until("the agent warns", crate::fake::TIMEOUT, || {
        home.log().contains("the broker can't be reached")
    });
    let log = home.log();
    assert!(sanitised(&log), "{log:?}");
    assert!(log.contains("d\\u{202e}ata"), "{log}");
    assert!(log.contains("127.0.0.1:9"), "the address is missing: {log}");
}
