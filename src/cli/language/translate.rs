//! Translation of finished English lines by the templates of the catalogue.
//!
//! Messages about fields are made in many places, most of them in the broker, and each once. Their English text is what
//! the catalogue is searched by, as in gettext, so a text that it lacks, such as one of a newer broker, stays English.

use super::catalogue::{MESSAGES, RESULTS};
use super::description::VALUES;

/// The line in Chinese, as far as the catalogue has it: a line without a template is returned as it is. What is before
/// the message, such as `error: ` and the path of a field, stays in its place.
pub(super) fn line(english: &str) -> String {
    let text = english.trim_start();
    if text.len() < english.len() {
        return format!("{}{}", &english[..english.len() - text.len()], line(text));
    }
    for (english_word, chinese_word) in PREFIXES {
        if let Some(rest) = english.strip_prefix(english_word) {
            return format!("{chinese_word}{}", line(rest));
        }
    }
    // The message may contain `: ` itself, so as much as can be a path or a place is cut off first, and anything else last.
    let ends: Vec<usize> = english.match_indices(": ").map(|(at, _)| at + 2).collect();
    let (places, others): (Vec<usize>, Vec<usize>) =
        ends.into_iter().partition(|at| is_place(&english[..*at]));
    for at in places.into_iter().rev().chain([0]).chain(others) {
        let (before, after) = english.split_at(at);
        if let Some(chinese) = by_template(MESSAGES, after, |_| true) {
            return format!("{before}{chinese}");
        }
    }
    match english.split_once("; ") {
        Some((first, rest)) => {
            let (first_chinese, rest_chinese) = (line(first), line(rest));
            if first_chinese == first && rest_chinese == rest {
                english.to_owned()
            } else {
                format!("{first_chinese}；{rest_chinese}")
            }
        }
        None => english.to_owned(),
    }
}

/// What a command did, in Chinese.
pub(super) fn result(english: &str) -> String {
    by_template(RESULTS, english, |_| true).unwrap_or_else(|| english.to_owned())
}

/// The text can be what stands before a message: names of files and fields, lines and columns, without spaces but in
/// `standard input`.
fn is_place(text: &str) -> bool {
    text.split_terminator(": ").all(|part| !part.replace("standard input", "").contains(' '))
}

/// A value that `describe` prints in Chinese.
pub(super) fn value(english: &str) -> String {
    by_template(VALUES, english, |_| true).unwrap_or_else(|| english.to_owned())
}

/// With which lines of standard error begin.
const PREFIXES: [(&str, &str); 4] =
    [("error: ", "错误："), ("hint: ", "提示："), ("warning: ", "警告："), ("weir: ", "weir：")];

/// The whole text by that of the templates that pass `is_meant` which has most of it in common.
fn by_template(
    table: &[(&str, &'static str)],
    english: &str,
    is_meant: impl Fn(&str) -> bool,
) -> Option<String> {
    let meant = table.iter().filter(|(template, _)| is_meant(template));
    let matching = meant.filter_map(|(template, chinese)| {
        let values = captures(template, english)?;
        Some((template.len() - 2 * values.len(), *chinese, values))
    });
    let (_, chinese, values) = matching.max_by_key(|(fixed, _, _)| *fixed)?;
    Some(filled(table, chinese, &values))
}

/// What stands in the place of each `{}` of the template, if the text matches it.
fn captures<'a>(template: &str, text: &'a str) -> Option<Vec<&'a str>> {
    let mut fixed = template.split("{}");
    let mut rest = text.strip_prefix(fixed.next()?)?;
    let mut values = Vec::new();
    let mut fixed = fixed.peekable();
    while let Some(part) = fixed.next() {
        // The last part is the end of the text; any other one is where it occurs first.
        let at = match (fixed.peek(), part) {
            (None, _) => rest.ends_with(part).then(|| rest.len() - part.len())?,
            (Some(_), part) => rest.find(part)?,
        };
        values.push(&rest[..at]);
        rest = &rest[at + part.len()..];
    }
    rest.is_empty().then_some(values)
}

/// The Chinese template with its values, `{0}` for the first. A value that is a message itself is translated, too, unless it
/// is quoted: then a user wrote it.
fn filled(table: &[(&str, &'static str)], chinese: &str, values: &[&str]) -> String {
    let mut out = String::new();
    let mut rest = chinese;
    while let Some((before, after)) = rest.split_once('{') {
        let (number, after) = after.split_once('}').unwrap_or((after, ""));
        let value = number.parse::<usize>().ok().and_then(|number| values.get(number)).copied();
        out.push_str(before);
        let value = value.unwrap_or_default();
        match value.starts_with('"') {
            true => out.push_str(&value.replace("\" or \"", "\" 或 \"")),
            false => out.push_str(&nested(table, value).unwrap_or_else(|| value.to_owned())),
        }
        rest = after;
    }
    out + rest
}

/// A value as a message of its own. Templates that begin with a value would match parts of other texts.
fn nested(table: &[(&str, &'static str)], value: &str) -> Option<String> {
    by_template(table, value, |template| !template.starts_with("{}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_translated_with_their_values_and_without_their_paths() {
        for (english, chinese) in [
            (
                "error: groups[0].count: 0 is not within 1 and 1000000",
                "错误：groups[0].count: 0 不在 1 和 1000000 之间",
            ),
            (
                "       jobs.yaml:3:5: groups[0].gpu: unknown field \"gpu\", did you mean \"devices\"? Write devices: \
                 MODEL:COUNT, such as devices: A100-80G:2.",
                "       jobs.yaml:3:5: groups[0].gpu: 未知字段 \"gpu\"，您是想写 \"devices\" 吗？请写 devices: MODEL:COUNT，例如 \
                 devices: A100-80G:2。",
            ),
            (
                "error: \"x\" is not a duration: expected number at 0; write 90s, 5m or 1h30m",
                "错误：\"x\" 不是时长：expected number at 0；请写 90s、5m 或 1h30m",
            ),
            (
                "error: standard input:2:53: groups[0].count: 5 tasks, but 2 indices",
                "错误：standard input:2:53: groups[0].count: 有 5 个任务，却有 2 个下标",
            ),
            ("error: name: the default queue can't be deleted", "错误：name: 默认队列不能删除"),
            ("error: --state: use failed, cancelled", "错误：--state: 可用 failed, cancelled"),
            // A user's text is never a message.
            ("error: job \"is missing\" does not exist", "错误：作业 \"is missing\" 不存在"),
            ("a text that no template has", "a text that no template has"),
        ] {
            assert_eq!(line(english), chinese);
        }
    }

    /// The string literals of a source file that are messages: several words, none of them Chinese.
    fn messages_of(source: &str) -> Vec<String> {
        let code: String = source
            .split("#[cfg(test)]")
            .next()
            .unwrap_or_default()
            .lines()
            .filter(|line| !line.trim_start().starts_with("//") && !line.contains("after_help"))
            .flat_map(|line| [line, "\n"])
            .collect();
        // A quotation mark in a literal, or as a character, would shift what is inside and what is outside.
        let code = code.replace("'\"'", "").replace("\\\"", "");
        let literals = code.split('"').skip(1).step_by(2);
        let joined = |text: &str| {
            let mut parts = text.split("\\\n");
            let first = parts.next().unwrap_or_default().to_owned();
            parts.fold(first, |joined, part| joined + part.trim_start())
        };
        let is_message = |text: &String| {
            text.contains(' ') && text.is_ascii() && text.chars().any(|c| c.is_ascii_lowercase())
        };
        literals.map(joined).filter(is_message).collect()
    }

    #[test]
    fn messages_about_fields_and_arguments_exist_in_chinese() {
        let mut missing = Vec::new();
        for (file, source) in [
            ("validate.rs", include_str!("../../model/validate.rs")),
            ("selection.rs", include_str!("../../api/selection.rs")),
            ("page.rs", include_str!("../../api/page.rs")),
            ("quantity.rs", include_str!("../quantity.rs")),
            ("selector.rs", include_str!("../selector.rs")),
            ("cancel.rs", include_str!("../cancel.rs")),
            ("cordon.rs", include_str!("../cordon.rs")),
            ("delete.rs", include_str!("../delete.rs")),
            ("rerun.rs", include_str!("../rerun.rs")),
            ("wait.rs", include_str!("../wait.rs")),
            ("logs.rs", include_str!("../logs.rs")),
            ("job.rs", include_str!("../../state/decide/job.rs")),
            ("queue.rs", include_str!("../../state/decide/queue.rs")),
            ("read.rs", include_str!("../job_file/read.rs")),
        ] {
            for message in messages_of(source) {
                // A message may be made of several literals, each with values.
                let mut fixed = message.split('{').enumerate().map(|(index, part)| match index {
                    0 => part,
                    _ => part.split_once('}').map_or("", |(_, after)| after),
                });
                let is_known = |part: &str| {
                    let part = part.rsplit(": ").next().unwrap_or(part).trim();
                    MESSAGES.iter().chain(RESULTS).any(|(english, _)| english.contains(part))
                };
                if !fixed.all(is_known) {
                    missing.push(format!("{file}: {message}"));
                }
            }
        }
        assert_eq!(missing, [""; 0]);
    }

    #[test]
    fn templates_are_distinct_and_their_translations_use_every_value_once() {
        let mut seen = std::collections::BTreeSet::new();
        for (english, chinese) in MESSAGES.iter().chain(RESULTS).chain(VALUES) {
            assert!(seen.insert(*english), "twice: {english}");
            let count = english.matches("{}").count();
            for number in 0..count {
                assert_eq!(chinese.matches(&format!("{{{number}}}")).count(), 1, "{{{number}}}: {chinese}");
            }
            assert_eq!(chinese.matches('{').count(), count, "{chinese}");
            assert!(
                chinese.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c)),
                "not Chinese: {chinese}"
            );
        }
    }
}
