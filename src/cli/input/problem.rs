//! What is wrong in a file: all of it at once, each with its place.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_path_to_error::Segment;
use serde_saphyr::Spanned;

use super::hint::{in_plain_words, with_suggestion};
use super::{limits, short};
use crate::cli::Failure;
use crate::cli::exit::{INVALID, SEPARATOR};
use crate::model::text;

/// A value of a file that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Problem {
    /// Line and column in the file, from 1; `None` if they are not known.
    pub(in crate::cli) at: Option<(u64, u64)>,
    /// The field as the file spells it; empty if the whole file is meant.
    pub(in crate::cli) field: String,
    pub(in crate::cli) message: String,
}

impl Problem {
    /// A problem of the whole file, or of its syntax: then the parsers' messages have the position.
    pub(in crate::cli) fn of_file(message: String) -> Self {
        let of_yaml = message.strip_prefix("line ").and_then(|rest| {
            let (position, message) = rest.split_once(": ")?;
            Some((position, message.to_owned()))
        });
        let of_json =
            message.rsplit_once(" at line ").map(|(message, position)| (position, message.to_owned()));
        let found = of_yaml.or(of_json).and_then(|(position, message)| {
            let (line, column) = position.split_once(" column ")?;
            Some(Self { at: Some((line.parse().ok()?, column.parse().ok()?)), field: String::new(), message })
        });
        found.unwrap_or_else(|| Self { at: None, field: String::new(), message })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.at {
            write!(f, "{line}:{column}: ")?;
        }
        if !self.field.is_empty() {
            let mut field = self.field.clone();
            if field.len() > FIELD_BYTES_MAX {
                text::truncate(&mut field, FIELD_BYTES_MAX);
                field.push('…');
            }
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Bytes of a field that are printed: a wrong name may be as long as the file.
const FIELD_BYTES_MAX: usize = 256;

/// Problems printed at once: one screen.
const PROBLEMS_MAX: usize = 20;

/// Collects problems; the first at each place, since others there are often its consequences.
#[derive(Debug, Default)]
pub(in crate::cli) struct Problems(Vec<Problem>);

impl Problems {
    /// Adds a problem, unless there is one at the field already, or within it or around it.
    pub(in crate::cli) fn push(&mut self, field: &str, message: impl Into<String>) {
        let overlaps = |found: &Problem| is_within(&found.field, field) || is_within(field, &found.field);
        if !self.is_full() && !self.0.iter().any(overlaps) {
            self.0.push(Problem { at: None, field: field.to_owned(), message: short(message.into()) });
        }
    }

    /// Returns whether no more problems are collected.
    pub(in crate::cli) fn is_full(&self) -> bool {
        self.0.len() >= PROBLEMS_MAX
    }

    pub(in crate::cli) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Deserialises `value`, which is at `path`. Fields that are not valid become problems and are left out. `None` if
    /// nothing is left.
    pub(in crate::cli) fn read<T: DeserializeOwned>(&mut self, path: &str, mut value: Value) -> Option<T> {
        loop {
            let error = match serde_path_to_error::deserialize::<_, T>(&value) {
                Ok(read) => return Some(read),
                Err(error) => error,
            };
            let field = error.path().to_string();
            let field = if field == "." { String::new() } else { field };
            let message = in_plain_words(&field, &with_suggestion(&error.inner().to_string()));
            self.push(&joined(path, &field), message);
            let segments: Vec<&Segment> = error.path().iter().collect();
            if self.is_full() || !remove(&mut value, &segments) {
                return None;
            }
        }
    }

    /// The problems in the order of the file, with their positions.
    pub(in crate::cli) fn located(mut self, locate: impl Fn(&str) -> Option<(u64, u64)>) -> Vec<Problem> {
        for problem in &mut self.0 {
            problem.at = locate(&problem.field);
        }
        self.0.sort_by_key(|problem| problem.at);
        if self.is_full() {
            let message = format!("there may be more: only the first {PROBLEMS_MAX} problems are listed");
            self.0.push(Problem { at: None, field: String::new(), message });
        }
        self.0
    }
}

/// Makes an `INVALID` failure of the problems of a file, a line each.
pub(in crate::cli) fn failure(path: &str, problems: &[Problem]) -> Failure {
    let path = if path == "-" { "standard input" } else { path };
    let line = |problem: &Problem| {
        let separator = if problem.at.is_some() { ":" } else { ": " };
        format!("{path}{separator}{problem}")
    };
    let lines: Vec<String> = problems.iter().map(line).collect();
    Failure::new(INVALID, lines.join(SEPARATOR))
}

/// A failure of the broker with the problems of a file as its message, if there are any.
pub(in crate::cli) fn relocated(found: Failure, path: &str, problems: &[Problem]) -> Failure {
    match problems {
        [] => found,
        problems => Failure { message: failure(path, problems).message, ..found },
    }
}

/// The path of a field inside of `path`.
pub(in crate::cli) fn joined(path: &str, field: &str) -> String {
    match (path, field) {
        ("", field) => field.to_owned(),
        (path, "") => path.to_owned(),
        (path, field) if field.starts_with('[') => format!("{path}{field}"),
        (path, field) => format!("{path}.{field}"),
    }
}

/// Returns whether `field` is `outer` or inside of it.
fn is_within(field: &str, outer: &str) -> bool {
    let rest = field.strip_prefix(outer);
    outer.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Removes the innermost field on a path, with all that is in it. Elements of lists are not removed by themselves: those
/// after them would change their numbers. Returns whether there was one.
fn remove(value: &mut Value, path: &[&Segment]) -> bool {
    let Some(last) = path.iter().rposition(|segment| matches!(segment, Segment::Map { .. })) else {
        return false;
    };
    let inner = path[..last].iter().try_fold(value, |value, segment| match segment {
        Segment::Map { key } => value.get_mut(key),
        Segment::Seq { index } => value.get_mut(index),
        Segment::Enum { .. } | Segment::Unknown => Some(value),
    });
    match (inner, path[last]) {
        (Some(Value::Object(map)), Segment::Map { key }) => map.remove(key).is_some(),
        _ => false,
    }
}

/// Where the fields of a file are, by document.
#[derive(Debug, Default)]
pub(in crate::cli) struct Positions(Vec<Inside>);

/// The fields or elements of a value, by name or number, each with its position.
#[derive(Debug, Default)]
struct Inside(BTreeMap<String, (Option<(u64, u64)>, Inside)>);

impl Positions {
    /// Finds the positions in a file that has been read before. JSON is YAML, too; where it is not, there are none.
    pub(in crate::cli) fn of(text: &str) -> Self {
        Self(serde_saphyr::from_multiple_with_options(text, limits()).unwrap_or_default())
    }

    /// Returns line and column of a field, or of the closest one around it.
    pub(in crate::cli) fn find(&self, document: usize, path: &str) -> Option<(u64, u64)> {
        let mut at = None;
        let mut inside = self.0.get(document)?;
        for name in path.split(['.', '[', ']']).filter(|name| !name.is_empty()) {
            let Some((position, within)) = inside.0.get(name) else { break };
            (at, inside) = (position.or(at), within);
        }
        at
    }
}

impl<'de> Deserialize<'de> for Inside {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InsideVisitor)
    }
}

struct InsideVisitor;

fn position<T>(spanned: &Spanned<T>) -> Option<(u64, u64)> {
    let at = (spanned.referenced.line(), spanned.referenced.column());
    (at.0 > 0).then_some(at)
}

impl<'de> Visitor<'de> for InsideVisitor {
    type Value = Inside;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Inside, E> {
        Ok(Inside::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Inside, E> {
        Ok(Inside::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Inside, E> {
        Ok(Inside::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Inside, E> {
        Ok(Inside::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<Inside, E> {
        Ok(Inside::default())
    }

    fn visit_unit<E>(self) -> Result<Inside, E> {
        Ok(Inside::default())
    }

    fn visit_none<E>(self) -> Result<Inside, E> {
        Ok(Inside::default())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Inside, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Inside, A::Error> {
        let mut inside = Inside::default();
        while let Some(element) = access.next_element::<Spanned<Inside>>()? {
            let at = position(&element);
            inside.0.insert(inside.0.len().to_string(), (at, element.value));
        }
        Ok(inside)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Inside, A::Error> {
        let mut inside = Inside::default();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let at = position(&key);
            inside.0.insert(key.value, (at, access.next_value()?));
        }
        Ok(inside)
    }
}
