//! The pages of `docs/reference` that are made of the code. The tests fail if a page is stale;
//! `UPDATE_EXPECT=1 cargo test --lib reference` writes them.

use std::collections::BTreeSet;

use clap::{Command, CommandFactory};
use expect_test::expect_file;

use super::{FILES, Field, QUANTITIES, reasons, whole_schema};
use crate::cli::Cli;
use crate::telemetry::{agent, broker};

/// The root of a file's schema.
fn schema(name: &str) -> serde_json::Value {
    let file = FILES.iter().find(|file| file.name == name).expect("a file");
    serde_json::to_value((file.schema)()).expect("a schema")
}

/// A table of the fields of `field`, and tables of the fields inside of them.
fn tables(title: &str, field: &Field<'_>, out: &mut String) {
    let fields = field.fields();
    out.push_str(&format!(
        "\n## {title}\n\n{}\n\n| field | value | meaning |\n|---|---|---|\n",
        field.description()
    ));
    for (name, inner) in &fields {
        out.push_str(&format!("| `{name}` | {} | {} |\n", inner.type_text(), inner.description()));
    }
    for (name, inner) in &fields {
        if !inner.fields().is_empty() {
            tables(&format!("{title}.{name}"), inner, out);
        }
    }
}

fn quantities() -> String {
    let mut out = "\n## Values\n\n| value | written as |\n|---|---|\n".to_owned();
    for (name, help) in QUANTITIES {
        out.push_str(&format!("| {name} | {help} |\n"));
    }
    out + "| text | quote what looks like a number, a boolean or null |\n"
}

fn file_page(name: &str, intro: &str) -> String {
    let root = schema(name);
    let mut out = intro.to_owned();
    tables(name, &Field::of(&root), &mut out);
    out
}

const JOBS: &str = "# Job files

`weir submit FILE` takes a job, a list of jobs, `jobs:` with a list, or several YAML documents; JSON works too. Jobs are
submitted in the order of the file. [examples/](../../examples/README.md) has a file for each kind of job; every field below
appears in one of them.

    name: train
    groups:
    - count: 4
      cpus: 8
      memory: 64Gi
      devices: 'A100-80G:2'
      command: [python, train.py]

All problems that can be found without the broker are reported at once, each with line and column, before anything is
submitted. An unknown field is an error, which names the field that was probably meant, also where other systems call it
otherwise (`gpu`, `partition`, `walltime`), or where it belongs. What only the broker knows, such as queues, device models
and names that are taken, is checked when the jobs are submitted. The jobs of one request are accepted all or none; a file of
more than 500 jobs goes in several requests, and so do jobs with dependencies by name. An error then reports how many jobs of
the file were submitted before.

`weir explain job.groups.devices` prints what is below. [job.schema.json](job.schema.json) is the JSON schema for editors
(`weir explain job -o json`). `weir get job/NAME -o yaml` prints a job as a file that can be submitted again.

This page is generated from the code.
";

const QUEUES: &str = "# Queue files

`weir apply FILE` creates and updates the queues of a file in YAML or JSON, and prints what it changed. All problems that can
be found without the broker are reported at once, and then nothing is changed. What the broker refuses, such as a queue
whose parent does not exist, ends the command; the queues before it are changed.

    queues:
    - name: research
      limit: {cpus: 500, devices: 64}
    - name: research/vision
      limit: {devices: 8}

`weir get queues -o yaml` prints queues in this form. [Queues and limits](../guide/queues-and-limits.md) shows how to use
them. This page is generated from the code.
";

const AGENTS: &str = "# Agent files

`weir agent FILE` serves the pool that a file in TOML describes: exactly one of `host`, `kubernetes` and `simulated`.
`weir agent check FILE` checks a file and the machine or cluster that it names.

    name = \"cq-lab\"
    region = \"CN-CQ\"
    state = \"/var/lib/weir-agent\"

    [host]
    cpus = 16

See [connect a host](../guide/connect-host.md) and [connect a Kubernetes cluster](../guide/connect-kubernetes.md). This page
is generated from the code.
";

const METRICS: &str = "# Metrics

In Prometheus' text format. A broker serves `/metrics` on the port of its API, with the token:

    curl -H \"Authorization: Bearer $(cat DATA/token)\" http://127.0.0.1:7411/metrics

An agent serves `/metrics` on the address of `weir agent --listen`, without one. Counters begin at 0 with the process.
Amounts of CPUs and devices are whole numbers or parts of them, those of memory and storage are bytes. This page is
generated from the code.
";

#[test]
fn page_of_metrics_is_up_to_date() {
    let agent = agent::PoolHealth::new("local");
    let families = [("Broker", broker::sample()), ("Agent", agent::families([&agent].into_iter()))];
    let mut page = METRICS.to_owned();
    for (title, families) in families {
        page.push_str(&format!("\n## {title}\n\n| metric | labels | type | meaning |\n|---|---|---|---|\n"));
        for family in families {
            let labels = family.get_metric().iter().flat_map(|metric| metric.get_label());
            let labels: BTreeSet<String> = labels.map(|label| format!("`{}`", label.name())).collect();
            let labels = labels.into_iter().collect::<Vec<_>>().join(", ");
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            page.push_str(&format!("| `{}` | {labels} | {kind} | {} |\n", family.name(), family.help()));
        }
    }
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/metrics.md")].assert_eq(&page);
}

#[test]
fn page_of_job_files_is_up_to_date() {
    let page = file_page("job", JOBS) + &quantities();
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/job-file.md")].assert_eq(&page);
    let schema = serde_json::to_string_pretty(&whole_schema("job", schema("job"))).expect("JSON") + "\n";
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/job.schema.json")].assert_eq(&schema);
}

/// Each field and each value of a job file is in an example, and the examples are submitted by a test.
#[test]
fn every_field_of_a_job_is_in_an_example() {
    fn check(field: &Field<'_>, examples: &str, count: &mut usize) {
        for (name, inner) in field.fields().into_iter().filter(|(name, _)| *name != "status") {
            assert!(examples.contains(&format!("{name}:")), "{name} is in no example");
            *count += 1;
            check(&inner, examples, count);
        }
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let examples = std::fs::read_dir(folder).expect("examples").flatten();
    let examples: String =
        examples.map(|file| std::fs::read_to_string(file.path()).expect("an example")).collect();
    let mut count = 0;
    check(&Field::of(&schema("job")), &examples, &mut count);
    assert!(count > 45, "{count} fields");
}

#[test]
fn page_of_queue_files_is_up_to_date() {
    let page = file_page("queues", QUEUES) + &quantities();
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/queue-file.md")].assert_eq(&page);
}

#[test]
fn page_of_agent_files_is_up_to_date() {
    let page = file_page("agent", AGENTS);
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/agent-file.md")].assert_eq(&page);
}

#[test]
fn page_of_reasons_is_up_to_date() {
    let mut page = "# Reasons\n\nStable codes. `weir explain CODE` prints what is below; this page is generated from the code.\n"
        .to_owned();
    for table in reasons::tables() {
        let (title, column) = (table.title, table.column.english);
        page.push_str(&format!("\n## {title}\n\n| code | meaning | {column} |\n|---|---|---|\n"));
        for entry in table.rows {
            let (meaning, remedy) = (entry.meaning.english, entry.remedy.english);
            page.push_str(&format!("| `{}` | {meaning} | {remedy} |\n", entry.code));
        }
    }
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/reasons.md")].assert_eq(&page);
}

/// One command with its arguments, then those below it.
fn command(path: &str, command: &Command, out: &mut String) {
    let name = format!("{path} {}", command.get_name()).trim().to_owned();
    let about =
        command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default();
    out.push_str(&format!("\n## {name}\n\n{}\n", about.trim()));
    let mut rows = String::new();
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
    for argument in
        arguments.filter(|argument| !path.is_empty() || !argument.is_global_set() || name == "weir")
    {
        let value = argument.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
        let takes = argument.get_action().takes_values();
        let shown = match (argument.get_long(), argument.get_short()) {
            (Some(long), short) => {
                let short = short.map_or_else(String::new, |short| format!("-{short}, "));
                format!("{short}--{long}{}", if takes { format!(" {value}") } else { String::new() })
            }
            (None, Some(short)) => format!("-{short}"),
            (None, None) => value.to_owned(),
        };
        let mut help = argument.get_help().map(ToString::to_string).unwrap_or_default().replace('|', "\\|");
        let defaults: Vec<_> =
            argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        if !defaults.is_empty() && takes {
            help.push_str(&format!(" [default: {}]", defaults.join(", ")));
        }
        if let Some(variable) = argument.get_env() {
            help.push_str(&format!(" [env: {}]", variable.to_string_lossy()));
        }
        rows.push_str(&format!("| `{}` | {help} |\n", shown.replace('|', "\\|")));
    }
    if !rows.is_empty() {
        out.push_str(&format!("\n| argument | meaning |\n|---|---|\n{rows}"));
    }
    if let Some(examples) = command.get_after_help() {
        out.push('\n');
        for line in examples.to_string().lines() {
            out.push_str(if line.is_empty() { "" } else { "    " });
            out.push_str(&format!("{line}\n"));
        }
    }
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help")
    {
        self::command(&name, inner, out);
    }
}

#[test]
fn page_of_the_command_line_is_up_to_date() {
    let mut page = "# Command line\n\nWhat `weir COMMAND --help` prints. The flags of `weir` itself can be given to every command. This page \
                    is generated from the code.\n"
        .to_owned();
    command("", &Cli::command(), &mut page);
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/cli.md")].assert_eq(&page);
}
