//! Files that people write: read within bounds, as YAML or JSON, and strictly.

use std::fmt;
use std::io::Read;

use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use serde_saphyr::Error as YamlError;
use serde_saphyr::budget::BudgetBreach;

use super::Failure;
use super::exit::INVALID;
use crate::model::text;
use crate::model::validate::quote;

/// Bytes of a file: a thousand ordinary jobs are a tenth of this.
const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Values in a file, texts and numbers and what they stand in: a thousand ordinary jobs have fifty
/// thousand, and each takes many times the bytes that it has in the file.
const VALUES_MAX: usize = 1_000_000;
/// YAML documents in a file: as many as a submit may have jobs, and then some.
const DOCUMENTS_MAX: usize = 1_024;
/// Levels of lists and maps within each other: a job has ten.
const DEPTH_MAX: usize = 64;
/// Bytes of an error about a file: a value that is wrong may be as long as the file.
const MESSAGE_BYTES_MAX: usize = 1_024;
/// Bytes of an unknown name up to which a hint is looked for: comparing takes their product.
const HINTED_LEN_MAX: usize = 64;

/// The file that a command reads.
#[derive(clap::Args)]
pub(super) struct FileArgument {
    /// YAML or JSON; `-` reads standard input.
    #[arg(required_unless_present = "filename")]
    file: Option<String>,
    /// The same, as kubectl takes it.
    #[arg(short = 'f', long, conflicts_with = "file", value_name = "FILE")]
    filename: Option<String>,
}

impl FileArgument {
    /// The file's name, as it was given.
    pub(super) fn name(self) -> String {
        // The parser has seen to it that one of the two is there.
        self.file.or(self.filename).unwrap_or_default()
    }
}

/// Reads a file's text; `-` reads standard input.
///
/// # Errors
/// If it can't be read, is too long, or is not UTF-8.
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
        in_file(path, format!("is not UTF-8 text: byte {at} is none of it"))
    })
}

/// One byte more than allowed tells that there is more, however much.
fn bounded(source: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A failure that names the file.
pub(super) fn in_file(path: &str, message: impl fmt::Display) -> Failure {
    let path = if path == "-" { "standard input" } else { path };
    Failure::new(INVALID, format!("{path}: {message}"))
}

/// Reads YAML (and so JSON) without letting aliases multiply.
///
/// # Errors
/// In words, with line and column.
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
    format!("lists and maps stand within each other more than {DEPTH_MAX} levels deep")
}

thread_local! {
    /// Values of the file at hand, and the levels that are open: the parsers hand nothing through to
    /// what they build.
    static COUNTED: std::cell::Cell<(usize, usize)> = const { std::cell::Cell::new((0, 0)) };
}

/// The parser's word without its picture of the place, which repeats lines of the file.
fn first_line(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// JSON's own errors are the better ones where JSON is meant.
fn looks_like_json(text: &str) -> bool {
    let mut rest = text.trim_start().chars();
    match rest.next() {
        Some('{') => rest.as_str().trim_start().starts_with(['"', '}']),
        Some('[') => rest.as_str().trim_start().starts_with(['{', '[', '"', ']']),
        _ => false,
    }
}

/// Reads a value into `T`; unknown fields are errors that say which field was likely meant.
///
/// # Errors
/// In words, with the field's path.
pub(super) fn strict<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let message = with_suggestion(&error.inner().to_string());
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

/// Turns serde's list of expected fields into the one that is nearest.
fn with_suggestion(message: &str) -> String {
    let ticked: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (Some(wrong), true) = (ticked.first(), message.starts_with("unknown ")) else {
        return message.to_owned();
    };
    let known = &ticked[1..];
    let near = known.iter().filter(|_| wrong.len() <= HINTED_LEN_MAX);
    let near = near.map(|known| (strsim::damerau_levenshtein(wrong, known), known));
    let near = near.filter(|(distance, known)| *distance <= 2.max(known.len() / 3)).min();
    let what = message.split('`').next().unwrap_or_default().trim();
    match near {
        Some((_, known)) => format!("{what} {}, did you mean {}?", quote(wrong), quote(known)),
        None => format!("{what} {}; known are {}", quote(wrong), known.join(", ")),
    }
}

/// Any value, of which no key was given twice: the parsers would keep the last in silence.
struct Tree(Value);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (values, depth) = COUNTED.get();
        // Scalars stand one level below what they are in.
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
        f.write_str("a number below 2^64, a text, a list or a map")
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
        number.map(Value::Number).ok_or_else(|| E::custom(format!("{value} is not a number to count with")))
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

/// A number or a text: `cpus: 2` and `cpus: 500m` are both natural.
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
        f.write_str("an amount: a number, or a text such as 500m or 2Gi")
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
