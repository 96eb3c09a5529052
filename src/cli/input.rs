//! Input files: YAML or JSON, bounded in size and parsed strictly. What fields a file has is defined
//! elsewhere.

use std::fmt;
use std::io::Read;

use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use serde_saphyr::Error as YamlError;
use serde_saphyr::budget::BudgetBreach;

use super::Failure;
use super::exit::INVALID;
use crate::model::suggest::{nearest, question};
use crate::model::text;
use crate::model::validate::quote;

/// Bytes of a file: a thousand typical jobs take a tenth of this.
const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Values in a file, scalars and containers: a thousand typical jobs have fifty thousand. In memory a value
/// takes many times its bytes in the file.
const VALUES_MAX: usize = 1_000_000;
/// YAML documents in a file: slightly more than the jobs of one submit.
const DOCUMENTS_MAX: usize = 1_024;
/// Nesting depth of lists and maps: a job has ten levels.
const DEPTH_MAX: usize = 64;
/// Bytes of an error about a file: an invalid value may be as long as the file.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// The argument that names a command's input file.
#[derive(clap::Args)]
pub(super) struct FileArgument {
    /// YAML or JSON file; `-` reads standard input.
    #[arg(required_unless_present = "filename")]
    file: Option<String>,
    /// Same as FILE, for users of kubectl.
    #[arg(short = 'f', long, conflicts_with = "file", value_name = "FILE")]
    filename: Option<String>,
}

impl FileArgument {
    /// The path as given; `-` is standard input.
    pub(super) fn name(self) -> String {
        // The argument parser requires one of the two.
        self.file.or(self.filename).unwrap_or_default()
    }
}

/// Reads a file's text; `-` reads standard input.
///
/// # Errors
/// `INVALID` if the file can't be read, has more than `FILE_BYTES_MAX` bytes, or is not UTF-8.
pub(super) fn read_text(path: &str) -> Result<String, Failure> {
    let read = if path == "-" {
        bounded(std::io::stdin().lock())
    } else {
        std::fs::File::open(path).and_then(bounded)
    };
    let bytes = read.map_err(|error| in_file(path, error.to_string()))?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(in_file(path, format!("is longer than {FILE_BYTES_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        in_file(path, format!("is not UTF-8 text: byte {at} is invalid"))
    })
}

/// Reads at most one byte more than allowed, which shows that the input is too long.
fn bounded(source: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Makes an `INVALID` failure that names the file.
pub(super) fn in_file(path: &str, message: impl fmt::Display) -> Failure {
    let path = if path == "-" { "standard input" } else { path };
    Failure::new(INVALID, format!("{path}: {message}"))
}

/// Parses YAML documents, or JSON, within the limits above. Aliases count as often as they are expanded.
///
/// # Errors
/// A message with line and column.
pub(super) fn read_documents(text: &str) -> Result<Vec<Value>, String> {
    COUNTED.set((0, 0));
    let trees: Result<Vec<Tree>, String> = match serde_json::from_str::<Tree>(text) {
        Ok(tree) => Ok(vec![tree]),
        Err(error) if looks_like_json(text) => Err(error.to_string()),
        Err(_) => read_yaml(text),
    };
    trees.map(|trees| trees.into_iter().map(|tree| tree.0).collect()).map_err(short)
}

fn read_yaml(text: &str) -> Result<Vec<Tree>, String> {
    COUNTED.set((0, 0));
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: DOCUMENTS_MAX,
            max_nodes: VALUES_MAX,
            max_events: 3 * VALUES_MAX,
            max_depth: DEPTH_MAX,
        },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| match error.without_snippet() {
        YamlError::Budget { breach: BudgetBreach::Documents { .. }, .. } => {
            format!(
                "holds more than {DOCUMENTS_MAX} YAML documents: write the jobs as one list, or several files"
            )
        }
        YamlError::Budget { breach: BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. }, .. } => {
            too_many()
        }
        YamlError::Budget { breach: BudgetBreach::Depth { .. }, .. } => too_deep(),
        _ => first_line(&error.to_string()),
    })
}

fn too_many() -> String {
    format!("holds more than {VALUES_MAX} values: write several files")
}

fn too_deep() -> String {
    format!("lists and maps are nested more than {DEPTH_MAX} levels deep")
}

thread_local! {
    /// Values parsed so far of the current file, and the current depth. A thread-local, since the parsers
    /// pass no context to `Tree::deserialize`.
    static COUNTED: std::cell::Cell<(usize, usize)> = const { std::cell::Cell::new((0, 0)) };
}

/// The parser's message without its snippet, which repeats lines of the file.
fn first_line(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// True if the text is probably meant as JSON: then the JSON parser's error is the better one.
fn looks_like_json(text: &str) -> bool {
    let mut rest = text.trim_start().chars();
    match rest.next() {
        Some('{') => rest.as_str().trim_start().starts_with(['"', '}']),
        Some('[') => rest.as_str().trim_start().starts_with(['{', '[', '"', ']']),
        _ => false,
    }
}

/// Deserialises a value into `T`. An error about an unknown field suggests the most similar field.
///
/// # Errors
/// A message with the field's path.
pub(super) fn strict<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let message = in_plain_words(&with_suggestion(&error.inner().to_string()));
        short(if path == "." { message } else { format!("{}: {message}", cut(path)) })
    })
}

fn cut(mut text: String) -> String {
    text::truncate(&mut text, MESSAGE_BYTES_MAX / 4);
    text
}

fn short(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        text::truncate(&mut message, MESSAGE_BYTES_MAX);
        message.push('…');
    }
    message
}

/// Replaces the parser's words for types, of which some are names in this program.
fn in_plain_words(message: &str) -> String {
    let Some((before, expected)) = message.split_once(", expected ") else { return message.to_owned() };
    let name_end = expected.find(|c: char| !c.is_alphanumeric() && c != ' ').unwrap_or(expected.len());
    let (name, rest) = expected.split_at(name_end);
    let plain = match name {
        "a sequence" => "a list: [a, b]",
        "a map" => "fields: {name: value}",
        "u64" => "a whole number, not negative",
        "u32" => "a whole number from 0 to 4294967295",
        "i32" => "a whole number from -2147483648 to 2147483647",
        "f64" => "a number",
        _ if name.starts_with("struct ") => "fields: {name: value}",
        _ => name,
    };
    format!("{before}, expected {plain}{rest}")
}

/// Replaces serde's list of expected names by the most similar one, if one is similar.
fn with_suggestion(message: &str) -> String {
    let ticked: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (Some(wrong), true) = (ticked.first(), message.starts_with("unknown ")) else {
        return message.to_owned();
    };
    let known = &ticked[1..];
    let what = message.split('`').next().unwrap_or_default().trim();
    let lower = wrong.to_ascii_lowercase();
    let synonym = SYNONYMS.iter().find(|(words, _)| words.contains(&lower.as_str())).map(|(_, field)| *field);
    let meant = synonym.unwrap_or(wrong);
    let place = PLACES.iter().find(|(fields, place, _)| fields.contains(&meant) && known.contains(place));
    let near = match (synonym.filter(|field| known.contains(field)), place) {
        (Some(field), _) => vec![field],
        (None, Some((_, _, place))) => {
            let hint = synonym.map_or_else(|| ".".to_owned(), |field| question(&[field]));
            return format!("{what} {} here{hint} Write it in {place}.", quote(wrong));
        }
        (None, None) => nearest(wrong, known.iter().copied()),
    };
    if near.is_empty() {
        return format!("{what} {}; expected one of {}", quote(wrong), known.join(", "));
    }
    let example = EXAMPLES.iter().find(|(field, _)| near == [*field]);
    let example = example.map_or_else(String::new, |(_, example)| format!(" Write {example}."));
    format!("{what} {}{}{example}", quote(wrong), question(&near))
}

/// Fields that belong into another one of a job file, the name of that, and where to write them.
const PLACES: &[(&[&str], &str, &str)] = &[
    (
        &[
            "cpus",
            "memory",
            "storage",
            "devices",
            "other",
            "command",
            "args",
            "env",
            "workdir",
            "image",
            "pod",
            "simulate",
            "count",
            "gang",
            "indices",
            "index_count",
        ],
        "groups",
        "an entry of groups",
    ),
    (
        &["regions", "regions_denied", "pools", "node_labels", "tolerations", "real_only"],
        "constraints",
        "constraints",
    ),
    (&["max_attempts", "backoff", "backoff_max", "max_node_losses"], "retry", "retry"),
];

/// What other systems call a field, in lower case.
const SYNONYMS: &[(&[&str], &str)] = &[
    (
        &["gpu", "gpus", "gres", "npu", "npus", "dcu", "mlu", "accelerator", "accelerators", "device"],
        "devices",
    ),
    (&["cpu", "cores", "vcpu", "vcpus", "cpus_per_task"], "cpus"),
    (&["mem", "ram", "memory_mb", "memory_mib"], "memory"),
    (&["disk", "ephemeral_disk", "ephemeral_storage", "tmp"], "storage"),
    (&["cmd", "entrypoint", "run", "script"], "command"),
    (&["environment", "envs", "export"], "env"),
    (&["working_dir", "workingdir", "chdir", "cwd"], "workdir"),
    (&["replicas", "array", "ntasks", "parallelism", "completions", "tasks"], "count"),
    (&["partition", "account", "project", "queue_name", "namespace"], "queue"),
    (&["retries", "backofflimit", "restart", "requeue"], "retry"),
    (&["timeout", "time", "time_limit", "walltime", "activedeadlineseconds", "max_runtime"], "max_run"),
    (&["dependency", "dependencies", "after", "needs"], "depends_on"),
    (&["task_groups", "taskgroups", "steps", "containers"], "groups"),
    (&["terminationgraceperiodseconds", "kill_timeout", "grace_period"], "grace"),
    (&["job_name", "jobname"], "name"),
    (&["region", "datacenters", "datacenter"], "regions"),
    (&["node_selector", "nodeselector"], "node_labels"),
];

/// How a field is written that other systems write in another form.
const EXAMPLES: &[(&str, &str)] = &[("devices", "devices: MODEL:COUNT, such as devices: A100-80G:2")];

/// Any value without duplicate keys: the parsers would use the last one without an error.
struct Tree(Value);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (values, depth) = COUNTED.get();
        // A scalar is one level below its container.
        if depth > DEPTH_MAX {
            return Err(serde::de::Error::custom(too_deep()));
        }
        if values >= VALUES_MAX {
            return Err(serde::de::Error::custom(too_many()));
        }
        COUNTED.set((values + 1, depth + 1));
        let tree = deserializer.deserialize_any(TreeVisitor).map(Self);
        COUNTED.set((COUNTED.get().0, depth));
        tree
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number below 2^64, a string, a list or a map")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = serde_json::Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom(format!("{value} is not a finite number")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Tree(value)) = access.next_element()? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(serde::de::Error::custom(format!("{} is given twice", quote(&key))));
            }
            let Tree(value) = access.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// A quantity given as a number or a string: `cpus: 2` or `cpus: 500m`.
#[derive(Debug)]
pub(super) struct Text(pub(super) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor).map(Self)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an amount: a number, or a string such as 500m or 2Gi")
    }

    fn visit_i64<E>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_f64<E>(self, value: f64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_str<E>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }
}
