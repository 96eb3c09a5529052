//! Validation of input: each violation names the field, the value and what is allowed.

use std::fmt;

use super::amount;
use super::device::DeviceAmount;
use super::language::{self, Language};
use super::limit;
use super::pool::{NodeSpec, PoolSpec};
use super::queue::QueueSpec;
use super::resource::Resources;
use super::spec::{EnvValue, JobSpec, Labels, OnPoolLost, Program, Run, Selection, TaskGroup};
use super::text;
pub use super::text::quote;

/// A field with a value that is not allowed.
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

/// Collects violations, at most 20: one screen is enough.
#[derive(Debug, Default)]
pub struct Violations {
    found: Vec<Violation>,
}

/// More violations than a person corrects in one pass.
const VIOLATIONS_MAX: usize = 20;
/// The rule of [`text::is_label`], as the end of a sentence.
const LABEL_RULE: &str = "is not letters, digits and -_./: of at most 253 characters";

impl Violations {
    /// Adds a violation, unless the collection is full.
    pub fn push(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if self.found.len() < VIOLATIONS_MAX {
            self.found.push(Violation { field: field.into(), description: description.into() });
        }
    }

    /// Adds violations that were found elsewhere.
    pub fn extend(&mut self, violations: Vec<Violation>) {
        for Violation { field, description } in violations {
            self.push(field, description);
        }
    }

    /// Ends the validation.
    ///
    /// # Errors
    /// The violations, in the order in which they were found, if there are any.
    pub fn finish(self) -> Result<(), Vec<Violation>> {
        if self.found.is_empty() { Ok(()) } else { Err(self.found) }
    }

    /// Checks that `value` is between `min` and `max`, inclusive.
    pub fn range(&mut self, field: &str, value: impl Into<i128>, min: impl Into<i128>, max: impl Into<i128>) {
        let (value, min, max) = (value.into(), min.into(), max.into());
        if !(min..=max).contains(&value) {
            self.push(field, format!("{value} is not within {min} and {max}"));
        }
    }

    /// Checks that an amount is between `min` and `max`, inclusive. `show` formats them if it is not.
    pub fn amount(&mut self, field: &str, value: u64, [min, max]: [u64; 2], show: fn(u64) -> String) {
        if !(min..=max).contains(&value) {
            self.push(field, format!("{} is not within {} and {}", show(value), show(min), show(max)));
        }
    }

    /// Checks that a list has at most `max` entries.
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

    /// Checks that `value` can be the name of a job: a number would be taken for a job's id.
    pub fn job_name(&mut self, field: &str, value: &str) {
        self.name(field, value);
        if text::is_name(value) && value.bytes().all(|byte| byte.is_ascii_digit()) {
            self.push(field, format!("{} has only digits, like a job's number: add a letter", quote(value)));
        }
    }

    /// Checks text that Weir passes on unchanged: at most `len_max` bytes, no NUL.
    pub fn free_text(&mut self, field: &str, value: &str, len_max: usize) {
        if value.len() > len_max {
            self.push(field, format!("{} bytes, at most {len_max} are allowed", value.len()));
        } else if value.contains('\0') {
            self.push(field, format!("{} contains NUL", quote(value)));
        }
    }

    /// Checks one line of text for display: at most `len_max` bytes, no control or invisible characters.
    pub fn display_line(&mut self, field: &str, value: &str, len_max: usize) {
        if value.len() > len_max {
            self.push(field, format!("{} bytes, at most {len_max} are allowed", value.len()));
        } else if value.chars().any(text::is_control_or_bidi) {
            self.push(field, format!("{} contains control or invisible characters", quote(value)));
        }
    }

    /// Checks that `value` is a label's key or value, and not empty.
    pub fn label(&mut self, field: &str, value: &str) {
        if value.is_empty() || !text::is_label(value) {
            self.push(field, format!("{} {LABEL_RULE}", quote(value)));
        }
    }

    fn labels(&mut self, field: &str, labels: &Labels) {
        self.list_len(field, labels.len(), limit::LABELS_MAX);
        for (key, value) in labels {
            if key.is_empty() || !text::is_label(key) || !text::is_label(value) {
                self.push(field, format!("{}={} {LABEL_RULE}", quote(key), quote(value)));
            }
        }
    }

    fn resources(&mut self, field: &str, resources: &Resources) {
        let cpus_max = [0, limit::CPU_MILLIS_MAX];
        self.amount(&format!("{field}.cpu_millis"), resources.cpu_millis, cpus_max, amount::cpus);
        for (name, bytes) in
            [("memory_bytes", resources.memory_bytes), ("storage_bytes", resources.storage_bytes)]
        {
            self.amount(&format!("{field}.{name}"), bytes, [0, limit::BYTES_MAX], amount::bytes);
        }
        self.other_kinds(field, resources);
    }

    /// Checks the kinds that are not built in: their number, their names and their amounts.
    fn other_kinds(&mut self, field: &str, resources: &Resources) {
        let Some(other) = &resources.other else { return };
        let field = format!("{field}.other");
        self.list_len(&field, other.len(), limit::LABELS_MAX);
        for (name, amount) in other.iter() {
            if name.is_empty() || !text::is_label(name) {
                self.push(&field, format!("{} {LABEL_RULE}", quote(name)));
            } else if *amount > limit::BYTES_MAX {
                let max = limit::BYTES_MAX;
                self.push(&field, format!("{amount} of {} is not within 0 and {max}", quote(name)));
            }
        }
    }
}

/// Validates a job's spec. `path` prefixes the fields in violations.
pub fn job_spec(path: &str, spec: &JobSpec, out: &mut Violations) {
    out.display_line(&format!("{path}.display_name"), &spec.display_name, limit::DISPLAY_NAME_LEN_MAX);
    out.labels(&format!("{path}.labels"), &spec.labels);
    let priority_max = limit::PRIORITY_MAX;
    out.range(&format!("{path}.priority"), spec.priority, -priority_max, priority_max);
    if spec.groups.is_empty() {
        out.push(format!("{path}.groups"), "0 task groups, at least 1 is needed");
    }
    out.list_len(&format!("{path}.groups"), spec.groups.len(), limit::GROUPS_PER_JOB_MAX);
    for (index, group) in spec.groups.iter().enumerate().take(limit::GROUPS_PER_JOB_MAX) {
        task_group(&format!("{path}.groups[{index}]"), group, spec.gang_job, out);
        if spec.groups[..index].iter().any(|earlier| earlier.name == group.name) {
            out.push(format!("{path}.groups[{index}].name"), format!("{} is used twice", quote(&group.name)));
        }
    }
    let gang_tasks = spec.groups.iter().fold(0u64, |sum, group| sum + u64::from(group.count));
    if spec.gang_job && gang_tasks > u64::from(limit::TASKS_PER_GANG_MAX) {
        let max = limit::TASKS_PER_GANG_MAX;
        out.push(
            format!("{path}.gang_job"),
            format!("{gang_tasks} tasks in one gang, at most {max} are allowed"),
        );
    }
    if total_of(spec).is_none() {
        out.push(format!("{path}.groups"), "the resources of all tasks add up to more than 2^64-1");
    }
    constraints(path, spec, out);
    policies(path, spec, out);
}

/// Returns the resources of all tasks, or `None` on overflow.
fn total_of(spec: &JobSpec) -> Option<Resources> {
    spec.groups.iter().try_fold(Resources::default(), |sum, group| {
        sum.checked_add(&group.request.total().checked_mul(u64::from(group.count))?)
    })
}

fn selection(path: &str, group: &TaskGroup, selection: &Selection, gang_job: bool, out: &mut Violations) {
    let field = format!("{path}.indices");
    if group.gang || gang_job {
        out.push(field, "a gang runs whole: its tasks can't be selected");
        return;
    }
    let (ranges, selected) = (selection.indices.intervals().len(), selection.indices.len());
    if ranges > limit::INDEX_RANGES_MAX {
        out.push(field, format!("{ranges} ranges, at most {} are allowed", limit::INDEX_RANGES_MAX));
    } else if selected != group.count {
        out.push(format!("{path}.count"), format!("{} tasks, but {selected} indices", group.count));
    }
    let largest = selection.indices.intervals().last().map_or(0, |[_, end]| end - 1);
    if largest >= limit::TASKS_PER_GROUP_MAX {
        let max = limit::TASKS_PER_GROUP_MAX - 1;
        out.push(format!("{path}.indices"), format!("{largest} is not within 0 and {max}"));
        return;
    }
    out.range(&format!("{path}.index_count"), selection.of, largest + 1, limit::TASKS_PER_GROUP_MAX);
}

fn task_group(path: &str, group: &TaskGroup, gang_job: bool, out: &mut Violations) {
    out.name(&format!("{path}.name"), &group.name);
    let count_max =
        if group.gang && !gang_job { limit::TASKS_PER_GANG_MAX } else { limit::TASKS_PER_GROUP_MAX };
    out.range(&format!("{path}.count"), group.count, 1, count_max);
    if let Some(selection) = &group.selection {
        self::selection(path, group, selection, gang_job, out);
    }
    let request = &group.request;
    out.resources(&format!("{path}.resources"), &request.resources);
    if request.total() == Resources::default() {
        out.push(format!("{path}.resources"), "nothing is requested: set CPUs, memory or devices");
    }
    if let Some(devices) = &request.devices {
        let field = format!("{path}.resources.devices");
        match devices.amount {
            DeviceAmount::Whole(count) => {
                out.range(&format!("{field}.count"), count, 1, limit::DEVICES_PER_TASK_MAX);
            }
            DeviceAmount::Fraction(millis) => {
                out.range(&format!("{field}.millis"), millis, 1, limit::DEVICE_MILLIS - 1);
            }
        }
        out.list_len(&format!("{field}.models"), devices.models.len(), limit::CONSTRAINT_LIST_MAX);
    }
    if let Run::Container { image, .. } = &group.run {
        let field = format!("{path}.container.image");
        out.free_text(&field, image, limit::LABEL_LEN_MAX);
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
            out.free_text(&field, spec, limit::POD_SPEC_LEN_MAX);
            if spec.is_empty() {
                out.push(field, "empty: a PodSpec in JSON is needed");
            }
        }
    }
    if let Some(simulate) = group.simulate {
        let field = format!("{path}.simulate.duration_ms");
        out.amount(&field, simulate.duration_ms, [0, limit::DURATION_MS_MAX], amount::duration);
    }
}

fn program(path: &str, program: &Program, command_needed: bool, out: &mut Violations) {
    if command_needed && program.command.first().is_none_or(String::is_empty) {
        out.push(format!("{path}.command"), "empty: set the program to run");
    }
    for (field, list) in [("command", &program.command), ("args", &program.args)] {
        let field = format!("{path}.{field}");
        out.list_len(&field, list.len(), limit::ARGS_MAX);
        for (index, arg) in list.iter().enumerate().take(limit::ARGS_MAX) {
            out.free_text(&format!("{field}[{index}]"), arg, limit::ARG_LEN_MAX);
        }
    }
    out.list_len(&format!("{path}.env"), program.env.len(), limit::ARGS_MAX);
    for (index, var) in program.env.iter().enumerate().take(limit::ARGS_MAX) {
        let field = format!("{path}.env[{index}]");
        if !text::is_env_name(&var.name) {
            out.push(format!("{field}.name"), format!("{} is not an environment name", quote(&var.name)));
        } else if var.name.starts_with("WEIR_") {
            out.push(
                format!("{field}.name"),
                format!("{} is reserved: Weir sets the names that begin with WEIR_", quote(&var.name)),
            );
        }
        match &var.value {
            EnvValue::Plain(value) => out.free_text(&format!("{field}.value"), value, limit::ARG_LEN_MAX),
            EnvValue::Secret { name, key } => {
                for (part, value) in [("name", name), ("key", key)] {
                    if value.is_empty() || !text::is_label(value) {
                        let path = format!("{field}.value_from.{part}");
                        out.push(path, format!("{} is not the name or key of a secret", quote(value)));
                    }
                }
            }
        }
    }
    if !program.workdir.is_empty() && !program.workdir.starts_with('/') {
        out.push(format!("{path}.workdir"), format!("{} is not an absolute path", quote(&program.workdir)));
    }
    out.free_text(&format!("{path}.workdir"), &program.workdir, limit::ARG_LEN_MAX.min(4_095));
}

fn constraints(path: &str, spec: &JobSpec, out: &mut Violations) {
    let path = format!("{path}.constraints");
    let constraints = &spec.constraints;
    let max = limit::CONSTRAINT_LIST_MAX;
    out.list_len(&format!("{path}.regions_allowed"), constraints.regions_allowed.len(), max);
    out.list_len(&format!("{path}.regions_denied"), constraints.regions_denied.len(), max);
    if let Some(both) =
        constraints.regions_allowed.iter().find(|region| constraints.regions_denied.contains(region))
    {
        out.push(format!("{path}.regions_denied"), format!("{both} is both allowed and denied"));
    }
    out.list_len(&format!("{path}.pools"), constraints.pools.len(), max);
    for pool in constraints.pools.iter().take(max) {
        out.name(&format!("{path}.pools"), pool);
    }
    out.labels(&format!("{path}.node_labels"), &constraints.node_labels);
    out.list_len(&format!("{path}.tolerations"), constraints.tolerations.len(), max);
    for (index, toleration) in constraints.tolerations.iter().enumerate().take(max) {
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
    out.range(&format!("{path}.retry.max_attempts"), spec.retry.max_attempts, 1, limit::ATTEMPTS_MAX);
    let losses = spec.retry.max_node_losses.0;
    out.range(&format!("{path}.retry.max_node_losses"), losses, 0, limit::NODE_LOSSES_MAX);
    for (name, ms, max) in [
        ("retry.backoff_ms", spec.retry.backoff_ms, limit::DURATION_MS_MAX),
        ("retry.backoff_max_ms", spec.retry.backoff_max_ms, limit::DURATION_MS_MAX),
        ("max_run_ms", spec.max_run_ms, limit::DURATION_MS_MAX),
        ("start_limit_ms", spec.start_limit_ms, limit::DURATION_MS_MAX),
        ("grace_ms", spec.grace_ms, limit::GRACE_MS_MAX),
    ] {
        out.amount(&format!("{path}.{name}"), ms, [0, max], amount::duration);
    }
    if spec.lease_ms > 0 {
        let field = format!("{path}.lease_ms");
        out.amount(&field, spec.lease_ms, [limit::LEASE_MS_MIN, limit::LEASE_MS_MAX], amount::duration);
        if spec.on_pool_lost == OnPoolLost::Wait {
            out.push(field, "has no effect without on_pool_lost: requeue".to_owned());
        }
    }
    out.list_len(&format!("{path}.depends_on"), spec.depends_on.len(), limit::DEPENDENCIES_MAX);
    for feature in &spec.required_features {
        out.push(
            format!("{path}.required_features"),
            format!("{} is not a feature of this broker", quote(feature)),
        );
    }
}

/// Validates a queue's settings. `path` prefixes the fields in violations.
pub fn queue_spec(path: &str, spec: &QueueSpec, out: &mut Violations) {
    let segments: Vec<&str> = spec.name.split('/').collect();
    let field = format!("{path}.name");
    if segments.len() > limit::QUEUE_DEPTH_MAX {
        let max = limit::QUEUE_DEPTH_MAX;
        out.push(&field, format!("{} levels, at most {max} are allowed", segments.len()));
    } else if !segments.iter().all(|segment| text::is_name(segment)) {
        let rule = "is not a path of lower-case letters, digits and inner hyphens joined by /";
        out.push(&field, format!("{} {rule}", quote(&spec.name)));
    }
    out.range(&format!("{path}.weight"), spec.weight, 1, 1_000_000);
    for (name, ms, bounds) in [
        ("max_run_ms_default", spec.max_run_ms_default, [1, limit::DURATION_MS_MAX]),
        ("lease_ms_default", spec.lease_ms_default, [limit::LEASE_MS_MIN, limit::LEASE_MS_MAX]),
    ] {
        out.amount(&format!("{path}.{name}"), ms, bounds, amount::duration);
    }
    out.other_kinds(&format!("{path}.guarantee"), &spec.guarantee);
    if let Some(excess) = spec.limit.first_excess(&spec.guarantee) {
        let kind = excess.kind.to_string();
        let amount = |amount| language::amount(&kind, amount, Language::English);
        out.push(
            format!("{path}.guarantee"),
            format!("{} is above the limit of {}", amount(excess.needed), amount(excess.have)),
        );
    }
}

/// Validates what an agent declares about its pool. `path` prefixes the fields in violations.
pub fn pool_spec(path: &str, spec: &PoolSpec, out: &mut Violations) {
    out.name(&format!("{path}.name"), &spec.name);
    out.name(&format!("{path}.backend"), &spec.backend);
    out.labels(&format!("{path}.labels"), &spec.labels);
    out.list_len(&format!("{path}.notes"), spec.notes.len(), limit::LABELS_MAX);
    for note in &spec.notes {
        out.display_line(&format!("{path}.notes"), note, limit::MESSAGE_LEN_MAX);
    }
}

/// Validates one node that an agent reports. `path` prefixes the fields in violations.
pub fn node_spec(path: &str, node: &NodeSpec, out: &mut Violations) {
    if !text::is_host_name(&node.name) {
        out.push(format!("{path}.name"), format!("{} is not a host name", quote(&node.name)));
    }
    out.labels(&format!("{path}.labels"), &node.labels);
    out.list_len(&format!("{path}.taints"), node.taints.len(), limit::LABELS_MAX);
    for taint in node.taints.iter().take(limit::LABELS_MAX) {
        out.label(&format!("{path}.taints.key"), &taint.key);
        if !text::is_label(&taint.value) {
            out.push(format!("{path}.taints.value"), format!("{} {LABEL_RULE}", quote(&taint.value)));
        }
    }
    let total = format!("{path}.total");
    let has = &node.allocatable;
    out.range(&format!("{total}.cpu_millis"), has.cpu_millis, 0, limit::NODE_CPU_MILLIS_MAX);
    out.range(&format!("{total}.memory_bytes"), has.memory_bytes, 0, limit::BYTES_MAX);
    out.range(&format!("{total}.storage_bytes"), has.storage_bytes, 0, limit::NODE_STORAGE_BYTES_MAX);
    out.other_kinds(&total, has);
    out.list_len(&format!("{path}.devices"), node.devices.len(), limit::DEVICES_PER_NODE_MAX);
    for (index, device) in node.devices.iter().enumerate().take(limit::DEVICES_PER_NODE_MAX) {
        let field = format!("{path}.devices[{index}]");
        out.label(&format!("{field}.model"), &device.model);
        out.range(&format!("{field}.memory_bytes"), device.memory_bytes, 0, limit::BYTES_MAX);
        // 0 is rejected: an agent reports such a device as unhealthy, or not at all.
        out.range(&format!("{field}.millis"), device.millis, 1, limit::DEVICE_MILLIS);
        out.list_len(&format!("{field}.profiles"), device.profiles.len(), limit::LABELS_MAX);
        for profile in device.profiles.iter().take(limit::LABELS_MAX) {
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
            expect!["spec.groups[0].resources: nothing is requested: set CPUs, memory or devices"],
        );
        check(
            |s| {
                s.groups[0].request.resources.memory_bytes = limit::BYTES_MAX;
                s.groups[0].count = 1_000_000;
            },
            expect!["spec.groups: the resources of all tasks add up to more than 2^64-1"],
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
                r#"spec.groups[0].process.env[0].name: "WEIR_JOB" is reserved: Weir sets the names that begin with WEIR_"#
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
