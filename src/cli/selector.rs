//! Label selectors, in kubectl's syntax.

use super::Failure;
use super::exit::INVALID;
use crate::api::proto::v1;
use crate::model::text;
use crate::model::validate::quote;

/// What a selector may be, in a word for errors.
const SYNTAX: &str = "write KEY=VALUE, KEY!=VALUE, KEY, !KEY, 'KEY in (A, B)' or 'KEY notin (A, B)', several separated by commas";

/// Parses selectors, each of several requirements separated by commas. Jobs must meet all.
///
/// # Errors
/// If one can't be read.
pub(super) fn parse(selectors: &[String]) -> Result<Vec<v1::LabelRequirement>, Failure> {
    let mut parsed: Vec<v1::LabelRequirement> = Vec::new();
    for part in selectors.iter().flat_map(|selector| split(selector)).map(str::trim) {
        let unreadable = || Failure::new(INVALID, format!("--label {}: {SYNTAX}", quote(part)));
        let new = requirement(part).ok_or_else(unreadable)?;
        let contradicts = |old: &v1::LabelRequirement| {
            let both = [old, &new].iter().all(|label| label.operator() == v1::LabelOperator::In);
            both && old.key == new.key && !old.values.iter().any(|value| new.values.contains(value))
        };
        if parsed.iter().any(contradicts) {
            let message =
                format!("--label: {} is selected with two values, which no job has", quote(&new.key));
            return Err(Failure::new(INVALID, message));
        }
        parsed.push(new);
    }
    Ok(parsed)
}

/// Splits at commas that are not in parentheses.
fn split(selector: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    selector
        .split(|c: char| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            c == ',' && depth <= 0
        })
        .collect()
}

fn requirement(text: &str) -> Option<v1::LabelRequirement> {
    let made = |key: &str, operator: v1::LabelOperator, values: Vec<&str>| {
        let key = key.trim();
        let valid =
            !key.is_empty() && text::is_label(key) && values.iter().all(|value| text::is_label(value));
        valid.then(|| v1::LabelRequirement {
            key: key.to_owned(),
            operator: operator.into(),
            values: values.into_iter().map(str::to_owned).collect(),
        })
    };
    if let Some((key, list)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let values = list.split(',').map(str::trim).collect();
        let (key, word) = key.trim().rsplit_once(char::is_whitespace)?;
        let operator = match word {
            "in" => v1::LabelOperator::In,
            "notin" => v1::LabelOperator::NotIn,
            _ => return None,
        };
        return made(key, operator, values);
    }
    if let Some((key, value)) = text.split_once("!=") {
        return made(key, v1::LabelOperator::NotIn, vec![value.trim()]);
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return made(key, v1::LabelOperator::In, vec![value.trim()]);
    }
    match text.strip_prefix('!') {
        Some(key) => made(key, v1::LabelOperator::DoesNotExist, Vec::new()),
        None => made(text, v1::LabelOperator::Exists, Vec::new()),
    }
}

/// Returns whether labels meet a requirement, as the broker decides it.
pub(super) fn is_met(
    requirement: &v1::LabelRequirement,
    labels: &std::collections::BTreeMap<String, String>,
) -> bool {
    let value = labels.get(&requirement.key);
    let listed = value.is_some_and(|value| requirement.values.contains(value));
    match requirement.operator() {
        v1::LabelOperator::Unspecified | v1::LabelOperator::In => listed,
        v1::LabelOperator::NotIn => !listed,
        v1::LabelOperator::Exists => value.is_some(),
        v1::LabelOperator::DoesNotExist => value.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(selector: &str) -> Vec<(String, v1::LabelOperator, Vec<String>)> {
        let requirements = parse(&[selector.to_owned()]).unwrap_or_default().into_iter();
        requirements.map(|found| (found.key.clone(), found.operator(), found.values)).collect()
    }

    #[test]
    fn selectors_are_those_of_kubectl() {
        use v1::LabelOperator::{DoesNotExist, Exists, In, NotIn};
        let one = |key: &str, operator, values: &[&str]| {
            (key.to_owned(), operator, values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>())
        };
        for (selector, expected) in [
            ("team=vision", vec![one("team", In, &["vision"])]),
            ("team==vision", vec![one("team", In, &["vision"])]),
            ("team!=vision,owner", vec![one("team", NotIn, &["vision"]), one("owner", Exists, &[])]),
            ("!owner", vec![one("owner", DoesNotExist, &[])]),
            ("team in (a, b), x=1", vec![one("team", In, &["a", "b"]), one("x", In, &["1"])]),
            ("team notin (a)", vec![one("team", NotIn, &["a"])]),
            ("team=", vec![one("team", In, &[""])]),
        ] {
            assert_eq!(parsed(selector), expected, "{selector}");
        }
        for wrong in ["", "=x", "a=b=c d", "team in a", "team of (a)", "in (a)", "team in (a", "a b"] {
            let error = parse(&[wrong.to_owned()]).expect_err(wrong);
            assert!(error.message.starts_with("--label ") && error.message.contains("KEY=VALUE"), "{wrong}");
        }
    }
}
