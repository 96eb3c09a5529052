//! The language of messages: `--lang`, else that of the locale.

mod catalogue;
mod description;
mod translate;

use std::sync::OnceLock;

use super::output::time;
use crate::api::proto::v1;
use crate::model::language::{Language, Text};
use crate::model::reason;

/// The value of `--lang`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lang {
    En,
    Zh,
    OfLocale,
}

/// Reads a language, also as a locale: `zh`, `zh_CN.UTF-8`. An empty text is that of an empty variable.
///
/// # Errors
/// What is allowed, if the text is no such language.
pub fn parse(text: &str) -> Result<Lang, String> {
    match text.to_lowercase() {
        empty if empty.is_empty() => Ok(Lang::OfLocale),
        english if english.starts_with("en") => Ok(Lang::En),
        chinese if chinese.starts_with("zh") => Ok(Lang::Zh),
        _ => Err("use en or zh".to_owned()),
    }
}

/// Set once, before a command runs: what prints is spread over many places.
static CURRENT: OnceLock<Language> = OnceLock::new();

/// Sets the language of this process: the flag, else that of the locale.
pub fn set(flag: Option<Lang>) {
    let language = flag.map_or_else(of_locale, |lang| match lang {
        Lang::En => Language::English,
        Lang::Zh => Language::Chinese,
        Lang::OfLocale => of_locale(),
    });
    let _ = CURRENT.set(language);
}

/// The language of this process.
pub fn current() -> Language {
    CURRENT.get().copied().unwrap_or_default()
}

/// The language of messages by the variables of POSIX, in their order.
fn of_locale() -> Language {
    let variables = ["LC_ALL", "LC_MESSAGES", "LANG"];
    let set = variables.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    if set.is_some_and(|locale| locale.starts_with("zh")) { Language::Chinese } else { Language::English }
}

/// The text in the language of this process.
pub fn text(english: &'static str, chinese: &'static str) -> &'static str {
    Text::new(english, chinese).in_language(current())
}

/// A line that was made in English, in the language of this process, if its message is in the catalogue.
pub fn translated(line: &str) -> String {
    match current() {
        Language::English => line.to_owned(),
        Language::Chinese => translate::line(line),
    }
}

/// What a command did, the same.
pub fn translated_result(english: &str) -> String {
    match current() {
        Language::English => english.to_owned(),
        Language::Chinese => translate::result(english),
    }
}

/// A value that `describe` prints, the same.
pub fn translated_value(english: &str) -> String {
    match current() {
        Language::English => english.to_owned(),
        Language::Chinese => translate::value(english),
    }
}

/// The name of a line of `describe`, in the language of this process.
pub fn label(english: &str) -> String {
    let chinese = description::LABELS.iter().find(|(known, _)| *known == english);
    match (current(), chinese) {
        (Language::Chinese, Some((_, chinese))) => (*chinese).to_owned(),
        _ => english.to_owned(),
    }
}

/// A reason's message in the language of this process, with times in the local zone. A code that this build does not know
/// keeps the message of the broker.
pub fn reason_text(reason: &v1::Reason) -> String {
    let mut parameters = reason.parameters.clone();
    if let Some(until) = parameters.get_mut("until")
        && let Ok(unix_ms) = until.parse()
    {
        *until = time(unix_ms);
    }
    let parameter = |name: &str| parameters.get(name).map(String::as_str);
    reason::message(&reason.code, current(), parameter).unwrap_or_else(|| reason.message.clone())
}
