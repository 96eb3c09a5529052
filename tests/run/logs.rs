//! `weir logs`: of all tasks, their end, since a time, with times, and over a connection that breaks.

use std::net::SocketAddr;

use super::comfort::submit;
use super::support::proxy::{LinkCondition, Proxy};
use super::*;

#[test]
fn output_of_all_tasks_or_only_its_end_is_printed() {
    let (home, _dev) = dev();
    let script = "for line in 1 2 3; do echo $WEIR_TASK_INDEX-$line; done; printf end";
    let group = format!("{{count: 3, cpus: 100m, memory: 32Mi, command: [sh, -c, '{script}']}}");
    assert_eq!(
        submit(&home, &format!("name: array\nconstraints: {{pools: [local]}}\ngroups: [{group}]\n")).0,
        0
    );
    assert_eq!(home.run(&["wait", "job/array"]).0, 0);
    let all = |index: u32| {
        format!("[{index}] {index}-1\n[{index}] {index}-2\n[{index}] {index}-3\n[{index}] end\n")
    };
    assert_eq!(home.run(&["logs", "job/array", "--all"]).1, all(0) + &all(1) + &all(2));
    assert_eq!(home.run(&["logs", "job/array", "--unit", "1", "--tail", "2"]).1, "1-3\nend");
    assert_eq!(home.run(&["logs", "job/array", "--unit", "1", "--tail", "9"]).1, "1-1\n1-2\n1-3\nend");
    let mut followed: Vec<String> =
        home.run(&["logs", "-f", "job/array", "--all", "--tail", "1"]).1.lines().map(str::to_owned).collect();
    followed.sort_unstable();
    assert_eq!(followed, ["[0] end", "[1] end", "[2] end"]);
    // Only the attempt that runs is cut: what follows it is new, and nothing of it is reported as missing.
    let script = "case $WEIR_ATTEMPT_ID in *-1) echo a; echo b; sleep 4; exit 1;; esac; echo c; echo d";
    let run =
        ["run", "-d", "--name", "again", "--attempts", "2", "--pool", "local", "--", "sh", "-c", script];
    assert_eq!(home.run(&run).0, 0);
    until("the first attempt prints", Duration::from_secs(30), || {
        home.run(&["logs", "job/again"]).1 == "a\nb\n"
    });
    let (code, followed, errors) = home.run(&["logs", "-f", "job/again", "--tail", "1"]);
    assert_eq!((code, followed.as_str(), errors.contains("not stored")), (0, "b\nc\nd\n", false), "{errors}");
    // A tail that is longer than one part of the output.
    let script = "i=0; while [ $i -lt 20000 ]; do echo line-$i; i=$((i+1)); done";
    assert_eq!(home.run(&["run", "-d", "--name", "long", "--pool", "local", "--", "sh", "-c", script]).0, 0);
    assert_eq!(home.run(&["wait", "job/long"]).0, 0);
    let (_, tail, errors) = home.run(&["logs", "job/long", "--tail", "15000"]);
    assert_eq!((tail.lines().count(), tail.lines().next()), (15_000, Some("line-5000")), "{errors}");
    assert_eq!(errors, "", "nothing is reported as lost");
}

#[test]
fn output_is_printed_with_its_times_and_since_a_time() {
    let (home, _dev) = dev();
    let script = "echo early; sleep 8; echo late; printf end; echo error >&2";
    assert_eq!(home.run(&["run", "-d", "--name", "timed", "--pool", "local", "--", "sh", "-c", script]).0, 0);
    let (code, followed, errors) = home.run(&["logs", "-f", "job/timed", "--timestamps", "--prefix"]);
    assert_eq!(code, 0, "{errors}");
    let lines: Vec<(jiff::Timestamp, &str)> = followed.lines().map(timed).collect();
    assert_eq!(lines.iter().map(|(_, line)| *line).collect::<Vec<_>>(), ["[0] early", "[0] late", "[0] end"]);
    let pause = lines[1].0.duration_since(lines[0].0).as_secs();
    assert!((7..20).contains(&pause), "{followed}");
    assert_eq!(timed(errors.lines().last().expect("a line")).1, "[0] error");
    // The same times are read again after the end.
    assert_eq!(home.run(&["logs", "job/timed", "--timestamps", "--prefix"]).1, followed);
    let age = jiff::Timestamp::now().duration_since(lines[1].0).as_secs();
    let since = |seconds: i64| home.run(&["logs", "job/timed", "--since", &format!("{}s", age + seconds)]).1;
    assert_eq!((since(4).as_str(), since(3_600).as_str()), ("late\nend", "early\nlate\nend"));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(home.run(&["logs", "job/timed", "--since", "1s"]).1, "");
    assert_eq!(home.run(&["logs", "job/timed", "--since", "1h", "--tail", "1"]).1, "end");
    // A simulated task has no output of its own, and no times.
    let group = "{cpus: 1, memory: 32Mi, command: ['true'], simulate: {duration: 1s}}";
    let file = format!("name: simulated\nconstraints: {{pools: [xj-ascend]}}\ngroups: [{group}]\n");
    assert_eq!(submit(&home, &file).0, 0);
    home.run(&["wait", "job/simulated"]);
    let (code, _, errors) = home.run(&["logs", "job/simulated", "--timestamps"]);
    assert_eq!(code, 4, "{errors}");
    assert!(errors.contains("does not store when this output was written"), "{errors}");
}

/// A line of output with the time before it.
fn timed(line: &str) -> (jiff::Timestamp, &str) {
    let (at, rest) = line.split_once(' ').expect("a time and a line");
    (at.parse().unwrap_or_else(|error| panic!("{line}: {error}")), rest)
}

#[test]
fn a_follow_whose_connection_breaks_prints_every_attempt_whole() {
    let (home, _dev) = dev();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let broker: SocketAddr = home.address.parse().expect("an address");
    let proxy = runtime.block_on(Proxy::start(broker));
    let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
    let go = |attempt: u32| home.path().join(format!("go-{attempt}"));
    let script = format!(
        "n=${{WEIR_ATTEMPT_ID##*-}}; echo first-$n; while [ ! -e {}-$n ]; do sleep 0.1; done; echo last-$n; exit 1",
        home.path().join("go").display()
    );
    let run =
        ["run", "-d", "--name", "twice", "--attempts", "2", "--pool", "local", "--", "sh", "-c", &script];
    assert_eq!(home.run(&run).0, 0);
    let printed = home.path().join("printed");
    let mut follow = home.weir(&["logs", "-f", "job/twice"]);
    follow.env("WEIR_SERVER", proxy.address.to_string()).env("WEIR_TOKEN", token.trim());
    let to_file = std::fs::File::create(&printed).expect("a file");
    let mut follow = follow.stdout(to_file).stderr(Stdio::null()).spawn().expect("weir logs");
    let output = || std::fs::read_to_string(&printed).unwrap_or_default();
    until("the first attempt prints", Duration::from_secs(60), || output() == "first-1\n");
    proxy.set(LinkCondition::Reset);
    std::fs::write(go(1), "").expect("a file");
    until("the second attempt prints", Duration::from_secs(60), || {
        home.run(&["logs", "job/twice", "--attempt", "2"]).1 == "first-2\n"
    });
    proxy.heal(false);
    std::fs::write(go(2), "").expect("a file");
    follow.wait().expect("its end");
    assert_eq!(output(), "first-1\nlast-1\nfirst-2\nlast-2\n");
}
