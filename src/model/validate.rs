//! Checks of what comes from outside: each violation names its field, the value, what is allowed.

use std::fmt;

use super::device::DeviceAmount;
use super::limit as at_most;
use super::pool::{NodeSpec, PoolSpec};
use super::queue::QueueSpec;
use super::resource::Resources;
use super::spec::{EnvValue, JobSpec, Labels, Program, Run, TaskGroup};
use super::text;

/// A value that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field as the API spells it: `jobs[0].spec.groups[0].count`.
    pub field: String,
    /// The value and what is allowed.
    pub description: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.description)
    }
}

/// Collects violations under a path. Stops collecting when there are many: one screen is enough.
#[derive(Debug, Default)]
pub struct Violations {
    found: Vec<Violation>,
}

const VIOLATIONS_MAX: usize = 20;
const LABEL_RULE: &str = "is not letters, digits and -_./: of at most 253 characters";
/// Characters of an offending value that an error repeats.
const QUOTED_MAX: usize = 64;

impl Violations {
    /// Notes that `field` is not as it should be.
    pub fn push(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if self.found.len() < VIOLATIONS_MAX {
            self.found.push(Violation { field: field.into(), description: description.into() });
        }
    }

    /// Ends the check.
    ///
    /// # Errors
    /// What was found, if anything.
    pub fn finish(self) -> Result<(), Vec<Violation>> {
        if self.found.is_empty() { Ok(()) } else { Err(self.found) }
    }

    /// Checks that `value` lies within `min` and `max`.
    pub fn range(&mut self, field: &str, value: impl Into<i128>, min: impl Into<i128>, max: impl Into<i128>) {
        let (value, min, max) = (value.into(), min.into(), max.into());
        if !(min..=max).contains(&value) {
            self.push(field, format!("{value} is not within {min} and {max}"));
        }
    }

    /// Checks that a list has no more than `max` entries.
    pub fn list_len(&mut self, field: &str, len: usize, max: usize) {
        if len > max {
            self.push(field, format!("{len} entries, at most {max} are allowed"));
        }
    }

    /// Checks that `value` is a DNS label.
    pub fn name(&mut self, field: &str, value: &str) {
        if !text::is_name(value) {
            let rule = "is not 1 to 63 lower-case letters, digits and inner hyphens";
            self.push(field, format!("{} {rule}", quote(value)));
        }
    }

    /// Checks text that is a program's own business: its length, and that it can be passed on.
    pub fn free_text(&mut self, field: &str, value: &str, len_max: usize) {
        if value.len() > len_max {
            self.push(field, format!("{} bytes, at most {len_max} are allowed", value.len()));
        } else if value.contains('\0') {
            self.push(field, format!("{} contains NUL", quote(value)));
        }
    }

    /// Checks one line that people read: its length, and that no character of it deceives.
    pub fn line(&mut self, field: &str, value: &str, len_max: usize) {
        if value.len() > len_max {
            self.push(field, format!("{} bytes, at most {len_max} are allowed", value.len()));
        } else if value.chars().any(text::is_control_or_bidi) {
            self.push(field, format!("{} contains control or invisible characters", quote(value)));
        }
    }

    /// Checks that `value` may stand in a label, and is not empty.
    pub fn label(&mut self, field: &str, value: &str) {
        if value.is_empty() || !text::is_label(value) {
            self.push(field, format!("{} {LABEL_RULE}", quote(value)));
        }
    }

    fn labels(&mut self, field: &str, labels: &Labels) {
        self.list_len(field, labels.len(), at_most::LABELS_MAX);
        for (key, value) in labels {
            if key.is_empty() || !text::is_label(key) || !text::is_label(value) {
                self.push(field, format!("{}={} {LABEL_RULE}", quote(key), quote(value)));
            }
        }
    }

    fn resources(&mut self, field: &str, resources: &Resources) {
        self.range(&format!("{field}.cpu_millis"), resources.cpu_millis, 0, at_most::CPU_MILLIS_MAX);
        self.range(&format!("{field}.memory_bytes"), resources.memory_bytes, 0, at_most::BYTES_MAX);
        self.range(&format!("{field}.storage_bytes"), resources.storage_bytes, 0, at_most::BYTES_MAX);
        self.other_kinds(field, resources);
    }

    /// Checks the kinds beyond the four: their names, and that sums of them can't overflow.
    fn other_kinds(&mut self, field: &str, resources: &Resources) {
        let Some(other) = &resources.other else { return };
        let field = format!("{field}.other");
        self.list_len(&field, other.len(), at_most::LABELS_MAX);
        for (name, amount) in other.iter() {
            if name.is_empty() || !text::is_label(name) {
                self.push(&field, format!("{} {LABEL_RULE}", quote(name)));
            } else if *amount > at_most::BYTES_MAX {
                let most = at_most::BYTES_MAX;
                self.push(&field, format!("{amount} of {} is not within 0 and {most}", quote(name)));
            }
        }
    }
}

/// A value as errors repeat it: cut short, quoted, with no deceptive character.
pub fn quote(value: &str) -> String {
    let mut short: String = value.chars().take(QUOTED_MAX).collect();
    if short.len() < value.len() {
        short.push('…');
    }
    format!("\"{}\"", text::escape(&short))
}

/// Checks a job's spec; `path` names it in the violations.
pub fn job_spec(path: &str, spec: &JobSpec, out: &mut Violations) {
    out.labels(&format!("{path}.labels"), &spec.labels);
    let priority_max = at_most::PRIORITY_MAX;
    out.range(&format!("{path}.priority"), spec.priority, -priority_max, priority_max);
    if spec.groups.is_empty() {
        out.push(format!("{path}.groups"), "0 task groups, at least 1 is needed");
    }
    out.list_len(&format!("{path}.groups"), spec.groups.len(), at_most::GROUPS_PER_JOB_MAX);
    for (index, group) in spec.groups.iter().enumerate().take(at_most::GROUPS_PER_JOB_MAX) {
        task_group(&format!("{path}.groups[{index}]"), group, spec.gang_job, out);
        if spec.groups[..index].iter().any(|earlier| earlier.name == group.name) {
            out.push(format!("{path}.groups[{index}].name"), format!("{} is used twice", quote(&group.name)));
        }
    }
    let gang_tasks = spec.groups.iter().fold(0u64, |sum, group| sum + u64::from(group.count));
    if spec.gang_job && gang_tasks > u64::from(at_most::TASKS_PER_GANG_MAX) {
        let most = at_most::TASKS_PER_GANG_MAX;
        out.push(
            format!("{path}.gang_job"),
            format!("{gang_tasks} tasks in one gang, at most {most} are allowed"),
        );
    }
    if total_of(spec).is_none() {
        out.push(format!("{path}.groups"), "the tasks' resources add up to more than 2^64-1");
    }
    constraints(path, spec, out);
    policies(path, spec, out);
}

/// The resources of all tasks, or `None` on overflow.
fn total_of(spec: &JobSpec) -> Option<Resources> {
    spec.groups.iter().try_fold(Resources::default(), |sum, group| {
        sum.checked_add(&group.request.total().checked_mul(u64::from(group.count))?)
    })
}

fn task_group(path: &str, group: &TaskGroup, gang_job: bool, out: &mut Violations) {
    out.name(&format!("{path}.name"), &group.name);
    let count_max =
        if group.gang && !gang_job { at_most::TASKS_PER_GANG_MAX } else { at_most::TASKS_PER_GROUP_MAX };
    out.range(&format!("{path}.count"), group.count, 1, count_max);
    let request = &group.request;
    out.resources(&format!("{path}.resources"), &request.resources);
    if request.total() == Resources::default() {
        out.push(
            format!("{path}.resources"),
            "nothing is asked for: name cpu_millis, memory_bytes or devices",
        );
    }
    if let Some(devices) = &request.devices {
        let field = format!("{path}.resources.devices");
        match devices.amount {
            DeviceAmount::Whole(count) => {
                out.range(&format!("{field}.count"), count, 1, at_most::DEVICES_PER_TASK_MAX);
            }
            DeviceAmount::Fraction(millis) => {
                out.range(&format!("{field}.millis"), millis, 1, at_most::DEVICE_MILLIS - 1);
            }
        }
        out.list_len(&format!("{field}.models"), devices.models.len(), at_most::CONSTRAINT_LIST_MAX);
    }
    if let Run::Container { image, .. } = &group.run {
        let field = format!("{path}.container.image");
        out.free_text(&field, image, at_most::LABEL_LEN_MAX);
        if image.is_empty() || image.chars().any(|c| c.is_whitespace() || text::is_control_or_bidi(c)) {
            out.push(field, format!("{} is not an image reference", quote(image)));
        }
    }
    match &group.run {
        Run::Process(process) => program(&format!("{path}.process"), process, true, out),
        Run::Container { program: inside, .. } => {
            program(&format!("{path}.container.program"), inside, false, out);
        }
        Run::Pod { spec } => {
            let field = format!("{path}.pod.spec_json");
            out.free_text(&field, spec, at_most::POD_SPEC_LEN_MAX);
            if spec.is_empty() {
                out.push(field, "empty: a PodSpec in JSON is needed");
            }
        }
    }
    if let Some(simulate) = group.simulate {
        out.range(&format!("{path}.simulate.duration_ms"), simulate.duration_ms, 0, at_most::DURATION_MS_MAX);
    }
}

fn program(path: &str, program: &Program, command_needed: bool, out: &mut Violations) {
    if command_needed && program.command.first().is_none_or(String::is_empty) {
        out.push(format!("{path}.command"), "empty: name the program to run");
    }
    for (field, list) in [("command", &program.command), ("args", &program.args)] {
        let field = format!("{path}.{field}");
        out.list_len(&field, list.len(), at_most::ARGS_MAX);
        for (index, arg) in list.iter().enumerate().take(at_most::ARGS_MAX) {
            out.free_text(&format!("{field}[{index}]"), arg, at_most::ARG_LEN_MAX);
        }
    }
    out.list_len(&format!("{path}.env"), program.env.len(), at_most::ARGS_MAX);
    for (index, var) in program.env.iter().enumerate().take(at_most::ARGS_MAX) {
        let field = format!("{path}.env[{index}]");
        if !text::is_env_name(&var.name) {
            out.push(format!("{field}.name"), format!("{} is not an environment name", quote(&var.name)));
        } else if var.name.starts_with("WEIR_") {
            out.push(
                format!("{field}.name"),
                format!("{} is Weir's own: names beginning with WEIR_ are set by it", quote(&var.name)),
            );
        }
        match &var.value {
            EnvValue::Plain(value) => out.free_text(&format!("{field}.value"), value, at_most::ARG_LEN_MAX),
            EnvValue::Secret { name, key } => {
                for (part, value) in [("name", name), ("key", key)] {
                    if value.is_empty() || !text::is_label(value) {
                        let path = format!("{field}.value_from.{part}");
                        out.push(path, format!("{} does not name a secret", quote(value)));
                    }
                }
            }
        }
    }
    if !program.workdir.is_empty() && !program.workdir.starts_with('/') {
        out.push(format!("{path}.workdir"), format!("{} is not an absolute path", quote(&program.workdir)));
    }
    out.free_text(&format!("{path}.workdir"), &program.workdir, at_most::ARG_LEN_MAX.min(4_095));
}

fn constraints(path: &str, spec: &JobSpec, out: &mut Violations) {
    let path = format!("{path}.constraints");
    let constraints = &spec.constraints;
    let most = at_most::CONSTRAINT_LIST_MAX;
    out.list_len(&format!("{path}.regions_allowed"), constraints.regions_allowed.len(), most);
    out.list_len(&format!("{path}.regions_denied"), constraints.regions_denied.len(), most);
    if let Some(both) =
        constraints.regions_allowed.iter().find(|region| constraints.regions_denied.contains(region))
    {
        out.push(format!("{path}.regions_denied"), format!("{both} is both allowed and denied"));
    }
    out.list_len(&format!("{path}.pools"), constraints.pools.len(), most);
    for pool in constraints.pools.iter().take(most) {
        out.name(&format!("{path}.pools"), pool);
    }
    out.labels(&format!("{path}.node_labels"), &constraints.node_labels);
    out.list_len(&format!("{path}.tolerations"), constraints.tolerations.len(), most);
    for (index, toleration) in constraints.tolerations.iter().enumerate().take(most) {
        let value = toleration.value.as_deref().unwrap_or_default();
        for (part, text) in [("key", toleration.key.as_str()), ("value", value)] {
            if !text::is_label(text) {
                let field = format!("{path}.tolerations[{index}].{part}");
                out.push(field, format!("{} {LABEL_RULE}", quote(text)));
            }
        }
    }
}

fn policies(path: &str, spec: &JobSpec, out: &mut Violations) {
    let duration_max = at_most::DURATION_MS_MAX;
    out.range(&format!("{path}.retry.max_attempts"), spec.retry.max_attempts, 1, at_most::ATTEMPTS_MAX);
    out.range(&format!("{path}.retry.backoff_ms"), spec.retry.backoff_ms, 0, duration_max);
    out.range(&format!("{path}.retry.backoff_max_ms"), spec.retry.backoff_max_ms, 0, duration_max);
    out.range(&format!("{path}.max_run_ms"), spec.max_run_ms, 0, duration_max);
    out.range(&format!("{path}.start_limit_ms"), spec.start_limit_ms, 0, duration_max);
    out.range(&format!("{path}.grace_ms"), spec.grace_ms, 0, at_most::GRACE_MS_MAX);
    out.list_len(&format!("{path}.depends_on"), spec.depends_on.len(), at_most::DEPENDENCIES_MAX);
    for feature in &spec.required_features {
        out.push(
            format!("{path}.required_features"),
            format!("{} is not a feature of this broker", quote(feature)),
        );
    }
}

/// Checks a queue's settings.
pub fn queue_spec(path: &str, spec: &QueueSpec, out: &mut Violations) {
    let segments: Vec<&str> = spec.name.split('/').collect();
    let field = format!("{path}.name");
    if segments.len() > at_most::QUEUE_DEPTH_MAX {
        let most = at_most::QUEUE_DEPTH_MAX;
        out.push(&field, format!("{} levels, at most {most} are allowed", segments.len()));
    } else if !segments.iter().all(|segment| text::is_name(segment)) {
        let rule = "is not a path of lower-case letters, digits and inner hyphens joined by /";
        out.push(&field, format!("{} {rule}", quote(&spec.name)));
    }
    out.range(&format!("{path}.weight"), spec.weight, 1, 1_000_000);
    out.range(&format!("{path}.max_run_ms_default"), spec.max_run_ms_default, 1, at_most::DURATION_MS_MAX);
    out.other_kinds(&format!("{path}.guarantee"), &spec.guarantee);
    if let Some(excess) = spec.limit.first_excess(&spec.guarantee) {
        let kind = excess.kind;
        out.push(
            format!("{path}.guarantee"),
            format!("{} of {kind} is above the limit of {}", excess.needed, excess.have),
        );
    }
}

/// Checks what an agent declares of its pool.
pub fn pool_spec(path: &str, spec: &PoolSpec, out: &mut Violations) {
    out.name(&format!("{path}.name"), &spec.name);
    out.name(&format!("{path}.backend"), &spec.backend);
    out.labels(&format!("{path}.labels"), &spec.labels);
    out.list_len(&format!("{path}.notes"), spec.notes.len(), at_most::LABELS_MAX);
    for note in &spec.notes {
        out.line(&format!("{path}.notes"), note, at_most::MESSAGE_LEN_MAX);
    }
}

/// Checks one node that an agent reports.
pub fn node_spec(path: &str, node: &NodeSpec, out: &mut Violations) {
    if !text::is_host_name(&node.name) {
        out.push(format!("{path}.name"), format!("{} is not a host name", quote(&node.name)));
    }
    out.labels(&format!("{path}.labels"), &node.labels);
    out.list_len(&format!("{path}.taints"), node.taints.len(), at_most::LABELS_MAX);
    for taint in node.taints.iter().take(at_most::LABELS_MAX) {
        out.label(&format!("{path}.taints.key"), &taint.key);
        if !text::is_label(&taint.value) {
            out.push(format!("{path}.taints.value"), format!("{} {LABEL_RULE}", quote(&taint.value)));
        }
    }
    let total = format!("{path}.total");
    let has = &node.allocatable;
    out.range(&format!("{total}.cpu_millis"), has.cpu_millis, 0, at_most::NODE_CPU_MILLIS_MAX);
    out.range(&format!("{total}.memory_bytes"), has.memory_bytes, 0, at_most::BYTES_MAX);
    out.range(&format!("{total}.storage_bytes"), has.storage_bytes, 0, at_most::NODE_STORAGE_BYTES_MAX);
    out.other_kinds(&total, has);
    out.list_len(&format!("{path}.devices"), node.devices.len(), at_most::DEVICES_PER_NODE_MAX);
    for (index, device) in node.devices.iter().enumerate().take(at_most::DEVICES_PER_NODE_MAX) {
        let field = format!("{path}.devices[{index}]");
        out.label(&format!("{field}.model"), &device.model);
        out.range(&format!("{field}.memory_bytes"), device.memory_bytes, 0, at_most::BYTES_MAX);
        // One that Weir may use nothing of is unhealthy, or not to be told of.
        out.range(&format!("{field}.millis"), device.millis, 1, at_most::DEVICE_MILLIS);
        out.list_len(&format!("{field}.profiles"), device.profiles.len(), at_most::LABELS_MAX);
        for profile in device.profiles.iter().take(at_most::LABELS_MAX) {
            out.label(&format!("{field}.profiles"), profile);
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::device::DeviceAmount;
    use super::super::region::RegionCode;
    use super::super::spec::{self, DeviceRequest, EnvVar};
    use super::*;

    fn check(change: impl Fn(&mut JobSpec), expect: Expect) {
        let mut spec = spec::minimal();
        change(&mut spec);
        let mut out = Violations::default();
        job_spec("spec", &spec, &mut out);
        let text: Vec<String> = out.found.iter().map(ToString::to_string).collect();
        expect.assert_eq(&text.join("\n"));
    }

    #[test]
    fn each_violation_names_field_value_and_rule() {
        check(|_| {}, expect![""]);
        check(|s| s.groups.clear(), expect!["spec.groups: 0 task groups, at least 1 is needed"]);
        check(|s| s.groups[0].count = 0, expect!["spec.groups[0].count: 0 is not within 1 and 1000000"]);
        check(
            |s| s.groups[0].count = 1_000_001,
            expect!["spec.groups[0].count: 1000001 is not within 1 and 1000000"],
        );
        check(
            |s| {
                s.groups[0].gang = true;
                s.groups[0].count = 5_000;
            },
            expect!["spec.groups[0].count: 5000 is not within 1 and 4096"],
        );
        check(
            |s| s.groups[0].request.resources = Resources::default(),
            expect![
                "spec.groups[0].resources: nothing is asked for: name cpu_millis, memory_bytes or devices"
            ],
        );
        check(
            |s| {
                s.groups[0].request.resources.memory_bytes = at_most::BYTES_MAX;
                s.groups[0].count = 1_000_000;
            },
            expect!["spec.groups: the tasks' resources add up to more than 2^64-1"],
        );
        check(
            |s| {
                s.groups[0].request.devices =
                    Some(DeviceRequest { models: vec![], amount: DeviceAmount::Fraction(1_000) })
            },
            expect!["spec.groups[0].resources.devices.millis: 1000 is not within 1 and 999"],
        );
        check(
            |s| s.groups[0].name = "a\u{202e}b".to_owned(),
            expect![[
                r#"spec.groups[0].name: "a\u{202e}b" is not 1 to 63 lower-case letters, digits and inner hyphens"#
            ]],
        );
        check(
            |s| s.priority = i32::MAX,
            expect!["spec.priority: 2147483647 is not within -1000000 and 1000000"],
        );
        check(
            |s| s.required_features.push("warp".to_owned()),
            expect![[r#"spec.required_features: "warp" is not a feature of this broker"#]],
        );
        check(
            |s| {
                let region = RegionCode::parse("CN-CQ").unwrap();
                s.constraints.regions_allowed = vec![region];
                s.constraints.regions_denied = vec![region];
            },
            expect!["spec.constraints.regions_denied: CN-CQ is both allowed and denied"],
        );
        check(
            |s| {
                let Run::Process(program) = &mut s.groups[0].run else { return };
                let value = EnvValue::Plain("1".to_owned());
                program.env.push(EnvVar { name: "WEIR_JOB".to_owned(), value });
            },
            expect![[
                r#"spec.groups[0].process.env[0].name: "WEIR_JOB" is Weir's own: names beginning with WEIR_ are set by it"#
            ]],
        );
        check(
            |s| s.groups[0].name = "n".repeat(1 << 20),
            expect![[
                r#"spec.groups[0].name: "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn…" is not 1 to 63 lower-case letters, digits and inner hyphens"#
            ]],
        );
    }
}
