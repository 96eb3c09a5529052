//! The command line: broken and hostile files, quantities, flags, and exit codes.

use std::io::Write;
use std::process::Stdio;

use crate::fake::{Broker, waiting_job};
use crate::support::Home;

/// A file's content, and parts of the error.
struct Row {
    content: Vec<u8>,
    expected: &'static [&'static str],
}

fn row(content: impl Into<Vec<u8>>, expected: &'static [&'static str]) -> Row {
    Row { content: content.into(), expected }
}

/// Runs `weir COMMAND FILE` with each row's file and checks exit code and error. There is no broker, because
/// the files are refused before one is called.
fn check(home: &Home, command: &str, rows: &[Row]) {
    let wrong: Vec<String> = rows.iter().filter_map(|row| check_one(home, command, row).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn check_one(home: &Home, command: &str, row: &Row) -> Result<(), String> {
    let file = home.path().join("given.yaml");
    std::fs::write(&file, &row.content).expect("a file");
    let (code, stdout, stderr) = home.run(&[command, file.to_str().expect("a plain path")]);
    let shown = String::from_utf8_lossy(&row.content[..row.content.len().min(80)]).into_owned();
    let sanitised = |c: char| c == '\n' || !weir::model::text::is_control_or_bidi(c);
    let facts = [
        ("exit code 8", code == 8),
        ("an empty stdout", stdout.is_empty()),
        ("the file's name", stderr.starts_with("error: ") && stderr.contains("given.yaml:")),
        ("at most 4 KiB", stderr.len() < 4_096),
        ("no control or bidi character", stderr.chars().all(sanitised)),
    ];
    let parts = row.expected.iter().map(|part| (*part, stderr.contains(part)));
    match facts.into_iter().chain(parts).find(|(_, holds)| !holds) {
        Some((what, _)) => Err(format!("{shown:?} lacks {what:?}: {code}: {stderr:?}")),
        None => Ok(()),
    }
}

/// Nested lists, each of which repeats an alias of the previous one nine times.
fn alias_bomb() -> String {
    let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (previous, name) in "abcdefgh".chars().zip("bcdefghi".chars()) {
        let list = vec![format!("*{previous}"); 9].join(", ");
        text.push_str(&format!("{name}: &{name} [{list}]\n"));
    }
    text
}

const GROUP: &str = "groups:\n- command: [\"true\"]\n  ";

#[test]
fn unreadable_job_files_are_refused_with_the_position() {
    let home = Home::new();
    let long = format!("name: {}", "n".repeat(17 << 20));
    let deep = "[".repeat(100_000);
    let deep_yaml = format!("groups: {}", "[".repeat(5_000));
    let rows = [
        row("", &["the file contains no job"]),
        row("# nothing\n---\n---\n", &["the file contains no job"]),
        row("[]", &["the file contains no job"]),
        row("just words", &["expected fields: {name: value}"]),
        row("7", &["expected fields: {name: value}"]),
        row("jobs: 7", &["jobs: is not a list"]),
        row("name: [unclosed", &[".yaml:1:"]),
        row("name: a\n\tqueue: b\n", &[".yaml:", "tab"]),
        row("name: a\n name: b\n", &[".yaml:2:"]),
        row("{\"name\": \"a\",}", &[".yaml:1:14: "]),
        row("{\"name\": \"a\"", &[".yaml:1:"]),
        row("name: a\nname: b\n", &[".yaml:2:1: \"name\" is given twice"]),
        row("{\"name\": \"a\", \"name\": \"b\"}", &[".yaml:1:", "\"name\" is given twice"]),
        row("{\"groups\": [{\"cpus\": 1, \"cpus\": 2}]}", &["\"cpus\" is given twice"]),
        row(b"name: a\0b".as_slice(), &[".yaml:1:"]),
        row(b"name: \xc3\x28".as_slice(), &["is not UTF-8 text: byte 6 is invalid"]),
        row(b"\xff\xfen\0a\0m\0e\0".as_slice(), &["is not UTF-8 text: byte 0"]),
        row(alias_bomb(), &[]),
        row("a: &a [*a]", &[]),
        row(long, &["is longer than 16777216 bytes"]),
        row(deep, &[]),
        row(deep_yaml, &[]),
    ];
    check(&home, "submit", &rows);
}

#[test]
fn fields_of_job_files_are_read_strictly() {
    let home = Home::new();
    let group = |line: &str| format!("{GROUP}{line}\n");
    let long_name = format!("{{\"{}\": 1}}", "n".repeat(1 << 20));
    let rows = [
        row("priorty: 3", &["priorty: unknown field \"priorty\", did you mean \"priority\"?"]),
        row("frobnicate: 3", &["unknown field \"frobnicate\"; expected one of name, display_name, queue"]),
        row(long_name, &["unknown field \"nnnn"]),
        row("na\u{202e}me: 3", &["unknown field \"na\\u{202e}me\""]),
        row("groups: 3", &["groups: invalid type: integer `3`, expected a list: [a, b]"]),
        row("- 1", &["invalid type: integer `1`, expected fields: {name: value}"]),
        row(
            group("memory: 4096"),
            &[
                "groups[0].memory: \"4096\" is 4096 bytes, and a task needs at least 1Mi: did you mean 4096Mi?",
            ],
        ),
        row(
            group("memory: 100k"),
            &["groups[0].memory: \"100k\" is 100000 bytes, and a task needs at least 1Mi"],
        ),
        row("priority: high", &["priority: invalid type: string \"high\", expected a whole number"]),
        row(
            "priority: 3000000000",
            &["priority: invalid value: integer `3000000000`, expected a whole number"],
        ),
        row("labels: [a]", &["labels: invalid type: sequence, expected fields: {name: value}"]),
        row(
            "on_pool_lost: panic",
            &["on_pool_lost: unknown variant \"panic\"; expected one of wait, requeue"],
        ),
        row("on_pool_lost: requeu", &["did you mean \"requeue\"?"]),
        row(
            "retry: {max_attempts: -1}",
            &["retry.max_attempts: invalid value: integer `-1`, expected a whole number, not negative"],
        ),
        row("retry: {max_attempts: 2, on: [failled]}", &["retry.on[0]: unknown variant", "\"failed\""]),
        row("depends_on: [{job: [a]}]", &["depends_on[0].job: invalid type: sequence, expected"]),
        row(
            "name: a\ndepends_on: [{job: a}]\ngroups: [{cpus: 1, command: ['true']}]",
            &["depends_on[0].job: \"a\" comes later in the file: put it before"],
        ),
        row(
            "- {name: a, depends_on: [{job: b}], groups: [{cpus: 1, command: [a]}]}\n- {name: b, groups: [{cpus: 1, command: [a]}]}",
            &["jobs[0].depends_on[0].job: \"b\" comes later in the file: put it before"],
        ),
        row("max_run: soon", &["max_run: \"soon\" is not a duration", "write 90s, 5m or 1h30m"]),
        row("lease: long", &["lease: \"long\" is not a duration", "write 90s, 5m or 1h30m"]),
        row(
            "max_run: 90",
            &["max_run: invalid type: integer `90`, expected a duration: write 90s, 5m or 1h30m"],
        ),
        row("grace: -5s", &["grace: \"-5s\" is not a duration"]),
        row("start_limit: 99999999999999y", &["start_limit: \"99999999999999y\" is"]),
        row(
            group("count: -1"),
            &["groups[0].count: invalid value: integer `-1`, expected a whole number, not negative"],
        ),
        row(
            group("count: 1.5"),
            &["groups[0].count: invalid type: floating point `1.5`, expected a whole number"],
        ),
        row(group("cpus: [1]"), &["groups[0].cpus: invalid type: sequence, expected an amount: a number"]),
        row(group("cpus: true"), &["groups[0].cpus: invalid type: boolean `true`, expected an amount"]),
        row(
            group("env: {PORT: 8080}"),
            &["groups[0].env.PORT: invalid type: integer `8080`, expected a text (write it in quotes)"],
        ),
        row(group("env: {A: {value_form: 1}}"), &["groups[0].env.A", "did you mean \"value_from\"?"]),
        row(
            group("args: [1]"),
            &["groups[0].args[0]: invalid type: integer `1`, expected a text: write it in quotes"],
        ),
        row(group("simulate: {duration: 1}"), &["groups[0].simulate.duration: invalid type"]),
        row("- {groups: []}\n- {nam: x}\n", &["jobs[1].nam: unknown field \"nam\", did you mean \"name\"?"]),
        row("groups: []\n---\nnam: x\n", &["jobs[1].nam: unknown field"]),
        row("jobs: [{}, {priority: x}]", &["jobs[1].priority: invalid type"]),
    ];
    check(&home, "submit", &rows);
}

#[test]
fn quantities_in_job_files_are_exact_and_in_range() {
    let home = Home::new();
    let group = |line: &str| format!("{GROUP}{line}\n");
    const CPUS: &[&str] = &["groups[0].cpus: ", "is not an amount of CPUs: write 2, 1.5 or 500m"];
    const MEMORY: &[&str] = &["groups[0].memory: ", "write 512Mi, 2Gi or a number of bytes"];
    const DEVICES: &[&str] = &["groups[0].devices: "];
    let mut rows = vec![
        row(group("cpus: .nan"), &[".yaml:3:9: ", ".nan"]),
        row(group("cpus: .inf"), &[".yaml:3:9: ", ".inf"]),
        row(group("cpus: 0.0001"), &["groups[0].cpus: \"0.0001\" is finer than a thousandth"]),
    ];
    let cpus =
        ["-1", "'-1'", "'1e9'", "'NaN'", "''", "'1 2'", "'1,5'", "'５'", "'500M'", "99999999999999999999"];
    rows.extend(cpus.iter().map(|text| row(group(&format!("cpus: {text}")), CPUS)));
    let memory = ["-1", "'1 GiB'", "1.5", "'1e9'", "'10Xi'", "'Gi'", "'20000000Ti'", "'NaN'"];
    rows.extend(memory.iter().map(|text| row(group(&format!("memory: {text}")), MEMORY)));
    let devices = ["':2'", "'T4:'", "'T4:-1'", "'T4:0'", "'T4:1.5'", "'T4:0.0001'", "'T4:99999999999'", "''"];
    rows.extend(devices.iter().map(|text| row(group(&format!("devices: {text}")), DEVICES)));
    check(&home, "submit", &rows);
}

#[test]
fn queue_files_are_validated_before_anything_is_applied() {
    let home = Home::new();
    let rows = [
        row("", &["the file contains no queue"]),
        row("queues: []", &["the file contains no queue"]),
        row("queus: []", &["unknown field \"queus\", did you mean \"queues\"?"]),
        row("queues: [{weight: 1}]", &["queues[0].name: \"\" is not a path of"]),
        row(
            "queues: [{name: a}, {name: b, limit: {cpu: 1}}]",
            &["queues[1].limit.cpu: unknown field \"cpu\", did you mean \"cpus\"?"],
        ),
        row("queues: [{name: a, limit: {cpus: lots}}]", &["queues[0].limit.cpus: \"lots\" is not an amount"]),
        row(
            "queues: [{name: a, limit: {devices: x}}]",
            &["queues[0].limit.devices: \"x\" is not an amount of devices"],
        ),
        row("queues: [{name: a, limit: {memory: -1}}]", &["queues[0].limit.memory: \"-1\" is not"]),
        row(
            "queues: [{name: a, weight: -1}]",
            &["queues[0].weight: invalid value: integer `-1`, expected a whole number, not negative"],
        ),
        row("queues: [{name: a, max_run: soon}]", &["queues[0].max_run: \"soon\" is not a duration"]),
        // Of all documents.
        row(
            "queues: [{name: A}]\n---\nqueues: [{name: b, limit: {cpus: x}}]\n",
            &["given.yaml:1:", "\"A\" is not a path", "given.yaml:3:", "queues[0].limit.cpus: \"x\""],
        ),
        row("queues: [{name: a}]\n---\nqueues: 7\n", &["queues: invalid type: integer `7`"]),
    ];
    check(&home, "apply", &rows);
}

#[test]
fn missing_files_and_endless_input_are_refused() {
    let home = Home::new();
    let folder = home.path().to_str().expect("a plain path").to_owned();
    for command in ["submit", "apply"] {
        let (code, _, stderr) = home.run(&[command, "/nowhere/job.yaml"]);
        assert_eq!(code, 8, "{stderr}");
        assert!(stderr.contains("/nowhere/job.yaml: No such file or directory"), "{stderr}");
        let (code, _, stderr) = home.run(&[command, &folder]);
        assert_eq!(code, 8, "{stderr}");
        assert!(stderr.contains(&format!("{folder}: Is a directory")), "{stderr}");
        let (code, _, stderr) = home.run(&[command, "/dev/zero"]);
        assert_eq!(code, 8, "{stderr}");
        assert!(stderr.contains("/dev/zero: is longer than 16777216 bytes"), "{stderr}");
        let mut command = home.weir(&[command, "-"]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("weir");
        let mut input = child.stdin.take().expect("its input");
        // The command stops reading at the limit, which ends this loop.
        while input.write_all(&[b'y'; 65_536]).is_ok() {}
        let output = child.wait_with_output().expect("weir ends");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(8), "{stderr}");
        assert!(stderr.contains("standard input: is longer than 16777216 bytes"), "{stderr}");
    }
}

#[test]
fn wrong_arguments_exit_with_2_and_those_of_run_with_125() {
    let home = Home::new();
    let rows: &[(&[&str], i32, &str)] = &[
        (&["frobnicate"], 2, "unrecognized subcommand 'frobnicate'"),
        (&["get"], 2, "required arguments were not provided"),
        (&["get", "jobs", "-o", "xml"], 2, "possible values: table, wide, json, yaml, name"),
        (&["get", "jobs", "--limit=-1"], 2, "--limit"),
        (&["wait", "--timeout", "soon", "x"], 2, "\"soon\" is not a duration"),
        (&["drain", "p", "--deadline=-1s"], 2, "\"-1s\" is not a duration"),
        (&["submit"], 2, "required arguments were not provided"),
        (&["submit", "a", "b"], 2, "unexpected argument 'b'"),
        (&["submit", "a", "--server"], 2, "a value is required for '--server <URL>'"),
        (&["run"], 125, "required arguments were not provided"),
        (&["run", "--cpus", "-1", "--", "true"], 125, "unexpected argument '-1'"),
        (&["run", "--cpus=-1", "--", "true"], 125, "\"-1\" is not an amount of CPUs"),
        (&["run", "--memory", "1e9", "--", "true"], 125, "\"1e9\" is not an amount of memory"),
        (&["run", "--device", "T4:x", "--", "true"], 125, "\"T4:x\" is not a device request"),
        (&["run", "--count", "1", "--gang", "1", "--", "true"], 125, "cannot be used with"),
        (&["run", "--bogus", "--", "true"], 125, "unexpected argument '--bogus'"),
        (&["--queue", "q", "run", "--bogus", "--", "true"], 125, "unexpected argument '--bogus'"),
        (&["run", "--env", "A", "--", "true"], 125, "--env \"A\": write NAME=VALUE"),
        (&["--server", "not a url", "get", "jobs"], 8, "server"),
        (
            &["get", "things"],
            8,
            "\"things\" is not a type: use jobs, attempts, units, pools, nodes or queues",
        ),
        (&["get", "jobs", "-l", "a b"], 8, "--label \"a b\": write KEY=VALUE"),
        (&["get", "jobs", "-l", "=b"], 8, "--label \"=b\": write KEY=VALUE"),
        (&["get", "jobs", "-l", "a=b,!"], 8, "--label \"!\": write KEY=VALUE"),
        (&["get", "jobs", "-l", "a of (b, c)"], 8, "--label \"a of (b, c)\": write KEY=VALUE"),
        (&["get", "jobs", "-l", "a=b", "-l", "a=c"], 8, "\"a\" is selected with two values"),
        (&["get", "pools", "-l", "a=b"], 2, "--label applies only to a list of jobs"),
        (&["get", "nodes", "--all"], 2, "--all applies only to a list of jobs"),
        (&["get", "queues", "-A"], 2, "--all-queues applies only to a list of jobs"),
        (
            &["get", "pools", "--limit", "1"],
            2,
            "--limit applies only to a list of jobs, attempts, units or nodes",
        ),
        (&["get", "job/x", "-l", "a=b"], 2, "--label applies only to a list of jobs"),
        (&["get", "queues", "--pool", "p"], 2, "--pool applies only to lists of jobs and nodes"),
        (&["get", "nodes", "--pool", "p,q"], 2, "--pool with several names applies only to a list of jobs"),
        (
            &["get", "jobs", "--region", "CN-CQ", "-w"],
            2,
            "--region applies only to a list of jobs without --watch",
        ),
        (&["count", "pools"], 2, "\"pools\" can't be counted: use jobs"),
        (&["count", "jobs", "--by", "color"], 2, "use queue, state, pool, region, outcome or label:KEY"),
        (&["cancel"], 2, "name jobs, or select them with --label"),
        (&["cancel", "job/x", "--state", "pending"], 2, "--state selects jobs: name none beside it"),
        (&["why", "pool/x"], 8, "\"pool\" is not a job: write job/NAME"),
        (&["describe", "thing/x"], 8, "can't be described"),
        (&["server", "--listen", "0.0.0.0:0"], 5, "not a loopback address"),
        (&["server", "--listen", "nonsense"], 8, "write ADDRESS:PORT"),
        (&["dev", "--listen", "[::]:0"], 5, "not a loopback address"),
        (&["dev", "--region", "Mars", "--listen", "127.0.0.1:0"], 8, "--region: \"Mars\" is not a region"),
        (&["--server", "127.0.0.1:9", "get", "jobs"], 7, "error: the broker can't be reached: "),
    ];
    let mut wrong = Vec::new();
    for (arguments, code, expected) in rows {
        let (found, stdout, stderr) = home.run(arguments);
        if (found, stdout.as_str()) != (*code, "") || !stderr.contains(expected) {
            wrong.push(format!("{arguments:?} lacks {code} or {expected:?}: {found} {stderr}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for arguments in [["run", "--help"], ["get", "--help"], ["--version", "--help"]] {
        assert_eq!(home.run(&arguments).0, 0, "{arguments:?}");
    }
}

#[test]
fn agent_files_are_checked_before_their_numbers_are_used() {
    let home = Home::new();
    let head = "name = \"p\"\nregion = \"CN-CQ\"\nstate = \"/nowhere\"\n";
    let kind = |line: &str| {
        format!(
            "{head}[simulated]\nnodes = [{{count = 1, prefix = \"n\", cpus = 1, memory_gib = 1, {line}}}]\n"
        )
    };
    let one = "nodes = [{count = 1, prefix = \"n\", cpus = 1, memory_gib = 1}]";
    let rows: Vec<(String, &str)> = vec![
        ("name = ".to_owned(), "line 1, column"),
        ("name = \"p\"\nnam = 1\n".to_owned(), "nam: unknown field \"nam\", did you mean \"name\"?"),
        (head.to_owned(), "set exactly one backend: [host], [kubernetes] or [simulated]"),
        (format!("{head}[host]\n[simulated]\nnodes = []\n"), "set exactly one backend"),
        (head.replace("\"p\"", "\"P\\u202e\"") + "[host]\n", "name: \"P\\u{202e}\" is not 1 to 63"),
        (head.replace("CN-CQ", "Mars") + "[host]\n", "region: \"Mars\" is not a region"),
        (
            format!("{head}[host]\n[[host.devices]]\nmodel = \"RTX6000\"\ncount = 2\n"),
            "host.devices[0].model: \"RTX6000\" is not in Weir's table. For another model, set vendor",
        ),
        (
            format!("{head}[host]\n[[host.devices]]\nmodel = \"H800\"\ncount = 2\n"),
            "host.devices[0].model: \"H800\" is not in Weir's table, did you mean \"H800-80G\"?",
        ),
        (
            format!("{head}[host]\n[[host.devices]]\nmodel = \"X\"\ncount = 2\nvisible_devices = \"A=B\"\n"),
            "host.devices[0].visible_devices: \"A=B\" is not a variable's name",
        ),
        (format!("{head}[host]\ncpus = 0\n"), "host.cpus: 0 is not within 1 and 10000"),
        (
            format!("{head}[host]\ncpus = -1\n"),
            "host.cpus: invalid value: integer `-1`, expected a whole number, not negative",
        ),
        (
            format!("{head}[host]\nmemory_mib = 9223372036854775807\n"),
            "host.memory_mib: 9223372036854775807 is not",
        ),
        (format!("{head}[kubernetes]\nnamespace = \"A\"\n"), "kubernetes.namespace: \"A\" is not 1 to 63"),
        (format!("{head}[kubernetes]\nqueues = {{a = \"b c\"}}\n"), "kubernetes.queues.a: \"b c\" is not"),
        (
            format!("{head}[kubernetes]\nbinding = \"magic\"\n"),
            "kubernetes.binding: unknown variant \"magic\"",
        ),
        (format!("{head}[kubernetes]\nprocess_image = \"\"\n"), "kubernetes.process_image: is empty"),
        (
            format!("{head}[kubernetes]\ndevices = {{\"x/y\" = \"\"}}\n"),
            "kubernetes.devices.x/y: \"\" is not",
        ),
        (
            format!("{head}[kubernetes]\nstart_timeout_seconds = 0\n"),
            "kubernetes.start_timeout_seconds: 0 is not within 1 and 86400",
        ),
        (
            format!("{head}[kubernetes]\nkubconfig = \"k\"\n"),
            "kubernetes.kubconfig: unknown field \"kubconfig\", did you mean \"kubeconfig\"?",
        ),
        (format!("{head}[simulated]\nnodes = []\n"), "simulated.nodes: 0 is not within 1 and 100000"),
        (format!("{head}[simulated]\n{one}\nspeedup = 0.0\n"), "simulated.speedup: 0 is not above 0"),
        (format!("{head}[simulated]\n{one}\nspeedup = nan\n"), "simulated.speedup: NaN is not above 0"),
        (
            format!("{head}[simulated]\n{}\n", one.replace("count = 1", "count = 4000000000")),
            "simulated.nodes: 4000000000 is not within 1 and 100000",
        ),
        (kind("device = \"T4\", devices = 257"), "simulated.nodes[0].devices: 257 is not within 0 and 256"),
        (kind("device = \"T 4\", devices = 1"), "simulated.nodes[0].device: \"T 4\" is not a model's name"),
        (
            format!("{head}[simulated]\n{}\n", one.replace("cpus = 1", "cpus = 18446744073709551")),
            "simulated.nodes[0].cpus: 18446744073709551 is not within 1 and 10000",
        ),
        (
            format!("{head}[simulated]\n{}\n", one.replace("memory_gib = 1", "memory_gib = 17179869184")),
            "simulated.nodes[0].memory_gib: 17179869184 is not within",
        ),
        (
            format!("{head}[simulated]\n{}\n", one.replace("\"n\"", "\"N\"")),
            "simulated.nodes[0].prefix: \"N\" is not",
        ),
    ];
    let file = home.path().join("agent.toml");
    for (text, expected) in rows {
        std::fs::write(&file, &text).expect("a file");
        let (code, _, stderr) = home.run(&["agent", file.to_str().expect("a plain path")]);
        assert_eq!(code, 8, "{text}: {stderr}");
        assert!(
            stderr.contains("agent.toml: ") && stderr.contains(expected),
            "{text} lacks {expected:?}: {stderr}"
        );
    }
}

#[test]
fn each_kind_of_refusal_has_its_exit_code() {
    let broker = Broker::start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async { waiting_job(&broker.client(), "waits").await });
    let file = broker.home.path().join("given.yaml");
    let submit = |text: &str| {
        std::fs::write(&file, text).expect("a file");
        broker.home.run(&["submit", file.to_str().expect("a plain path")])
    };
    let whole = |line: &str| format!("{GROUP}cpus: 1\n{line}\n");
    let rows: Vec<((i32, String, String), i32, &str)> = vec![
        (submit(&whole("priority: 1000001")), 8, "given.yaml:4:1: priority: 1000001 is not within"),
        (submit(&whole("queue: nope")), 8, "given.yaml:4:1: queue: queue \"nope\" does not exist"),
        (submit(&whole("name: waits")), 4, "job \"waits\" exists already"),
        (submit("groups: []"), 8, "given.yaml:1:1: groups: 0 task groups, at least 1 is needed"),
        (broker.home.run(&["describe", "job/nope"]), 3, "job \"nope\" does not exist"),
        (broker.home.run(&["logs", "nope"]), 3, "job \"nope\" does not exist"),
        (broker.home.run(&["logs", "waits", "--unit", "1"]), 8, "unit: 1 is not within 0 and 0"),
        (broker.home.run(&["logs", "waits", "--attempt", "3"]), 3, "attempt \"3 of unit 0 of job waits\""),
        (broker.home.run(&["cancel", "nope"]), 3, "job \"nope\" does not exist"),
        (broker.home.run(&["cordon", "nope"]), 3, "pool \"nope\" does not exist"),
        (broker.home.run(&["drain", "nope"]), 3, "pool \"nope\" does not exist"),
        (broker.home.run(&["get", "pool/nope"]), 3, "pool \"nope\" does not exist"),
        (broker.home.run(&["get", "queue/nope"]), 3, "queue \"nope\" does not exist"),
        (broker.home.run(&["get", "node/nope"]), 3, "node \"nope\" does not exist"),
        (broker.home.run(&["get", "jobs", "--queue", "nope"]), 8, "queue: queue \"nope\" does not exist"),
        (
            broker.home.run(&["get", "jobs", "-w", "--queue", "nope"]),
            8,
            "queue: queue \"nope\" does not exist",
        ),
        (broker.home.run(&["admin", "abandon", "x"]), 8, "attempt: \"x\" is not"),
        (broker.home.run(&["admin", "abandon", "aaaaaaaaaa-1-0-1"]), 3, "live attempt \"aaaaaaaaaa-1-0-1\""),
        (broker.home.run(&["run", "--region", "CN-CX", "--", "true"]), 125, "region CN-CX does not exist"),
        (broker.home.run(&["run", "--name", "waits", "--", "true"]), 125, "job \"waits\" exists already"),
        (broker.home.run(&["run", "--count", "0", "--", "true"]), 125, "--count or --gang: 0 is not within"),
    ];
    for ((code, stdout, stderr), expected_code, expected) in rows {
        assert_eq!((code, stdout.as_str()), (expected_code, ""), "lacks {expected:?}: {stderr}");
        assert!(stderr.contains(expected), "lacks {expected:?}: {stderr}");
    }
    let unknown = broker.home.weir(&["get", "jobs"]).env("WEIR_TOKEN", "wrong").output().expect("weir");
    let stderr = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_eq!(unknown.status.code(), Some(6), "{stderr}");
    assert!(stderr.contains("invalid token") && stderr.contains("hint: "), "{stderr}");
    let garbled = broker.home.weir(&["get", "jobs"]).env("WEIR_TOKEN", "a\nb").output().expect("weir");
    assert_eq!(garbled.status.code(), Some(8));
    // A file that exceeds one request is sent in several.
    let large: Vec<String> = (0..100)
        .map(|n| format!("- groups: [{{cpus: 1, command: [\"true\", \"{n}{}\"]}}]\n", "x".repeat(80_000)))
        .collect();
    let (code, stdout, stderr) = submit(&large.concat());
    assert_eq!((code, stdout.lines().count()), (0, 100), "{stderr}");
}

#[test]
fn errors_name_addresses_that_can_t_be_used() {
    let mut home = Home::new();
    let rows: [(&str, i32, &str); 6] = [
        ("https://127.0.0.1:7411", 8, "scheme \"https\" is not supported, only http: use 127.0.0.1:7411"),
        ("https://weir.example", 8, "scheme \"https\" is not supported"),
        ("unix:///run/weir.sock", 8, "scheme \"unix\" is not supported"),
        ("127.0.0.1:9", 7, "the broker can't be reached: 127.0.0.1:9: "),
        ("http://127.0.0.1:9/", 7, "the broker can't be reached: 127.0.0.1:9: "),
        ("http://nowhere.invalid:7411", 7, "the broker can't be reached: nowhere.invalid:7411: "),
    ];
    for (address, code, expected) in rows {
        let (found, stdout, stderr) = home.run(&["--server", address, "get", "pools"]);
        assert_eq!((found, stdout.as_str()), (code, ""), "{address}: {stderr}");
        assert!(stderr.contains(expected), "{address} lacks {expected:?}: {stderr}");
    }
    // An agent reports the same error.
    home.address = "https://127.0.0.1:7411".to_owned();
    let file = home.path().join("agent.toml");
    let token = home.path().join("token");
    std::fs::write(&token, "0123").expect("a file");
    let text = format!(
        "name = \"p\"\nregion = \"CN-CQ\"\nserver = \"https://127.0.0.1:7411\"\ntoken_file = {token:?}\nstate = \"/nowhere\"\n[simulated]\nnodes = [{{count = 1, prefix = \"n\", cpus = 1, memory_gib = 1}}]\n"
    );
    std::fs::write(&file, text).expect("a file");
    let (code, _, stderr) = home.run(&["agent", file.to_str().expect("a plain path")]);
    assert_eq!(code, 8, "{stderr}");
    assert!(stderr.contains("scheme \"https\" is not supported"), "{stderr}");
}
