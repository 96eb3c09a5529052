//! Input files: YAML or JSON, bounded in size and parsed strictly. What fields a file has is defined
//! elsewhere.

mod hint;
mod problem;

use std::borrow::Cow;
use std::fmt;
use std::io::Read;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{Error as YamlError, Location, Options};

pub(super) use hint::meant;
pub(super) use problem::{Positions, Problem, Problems, failure, joined, relocated};

use super::Failure;
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
    #[arg(required_unless_present = "filename", value_hint = clap::ValueHint::FilePath)]
    file: Option<String>,
    /// Same as FILE, for users of kubectl.
    #[arg(short = 'f', long, conflicts_with = "file", value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    filename: Option<String>,
}

impl FileArgument {
    /// The path as given; `-` is standard input.
    pub(super) fn name(&self) -> String {
        // The argument parser requires one of the two.
        self.file.as_ref().or(self.filename.as_ref()).cloned().unwrap_or_default()
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

/// Makes an `INVALID` failure about a whole file.
fn in_file(path: &str, message: String) -> Failure {
    failure(path, &[Problem::of_file(message)])
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
    serde_saphyr::from_multiple_with_options(text, limits()).map_err(|error| match cause(&error) {
        YamlError::Budget { breach: BudgetBreach::Documents { .. }, .. } => {
            format!(
                "holds more than {DOCUMENTS_MAX} YAML documents: write the jobs as one list, or several files"
            )
        }
        YamlError::Budget { breach: BudgetBreach::Depth { .. }, .. } => too_deep(),
        // Values, or what aliases repeat of them.
        YamlError::Budget { .. } => too_many(),
        // The parser's own messages of these have advice for programmers.
        YamlError::DuplicateMappingKey { key, location } => {
            let key = key.as_deref().unwrap_or("a key");
            format!("{}{} is given twice", position_text(*location), quote(key))
        }
        YamlError::NonFiniteFloat { value, location } => {
            format!("{}{value} is not a finite number", position_text(*location))
        }
        _ => first_line(&error.to_string()),
    })
}

/// The error itself, without what the parser shows around it.
fn cause(error: &YamlError) -> &YamlError {
    match error.without_snippet() {
        YamlError::AliasError { error, .. } => cause(error),
        other => other,
    }
}

/// A position as the parser's own messages begin with it.
fn position_text(at: Location) -> String {
    format!("line {} column {}: ", at.line(), at.column())
}

/// What a YAML file may hold.
fn limits() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: DOCUMENTS_MAX,
            max_nodes: VALUES_MAX,
            max_events: 3 * VALUES_MAX,
            max_depth: DEPTH_MAX,
        },
    }
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

/// Returns whether a field has the value that it has if it is left out.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn short(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        text::truncate(&mut message, MESSAGE_BYTES_MAX);
        message.push('…');
    }
    message
}

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Text(pub(super) String);

impl JsonSchema for Text {
    fn schema_name() -> Cow<'static, str> {
        "Text".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number"] })
    }
}

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
