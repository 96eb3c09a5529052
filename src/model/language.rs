//! Texts in the languages of users, and messages made of a template and parameters.

use super::amount::thousandths;
use super::time::Timestamp;

/// A language that messages exist in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    #[default]
    English,
    Chinese,
}

/// A text in each language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    pub english: &'static str,
    pub chinese: &'static str,
}

impl Text {
    pub const fn new(english: &'static str, chinese: &'static str) -> Self {
        Self { english, chinese }
    }

    /// The text in a language.
    pub fn in_language(self, language: Language) -> &'static str {
        match language {
            Language::English => self.english,
            Language::Chinese => self.chinese,
        }
    }
}

/// A stable code with what it means and what helps.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub code: &'static str,
    pub meaning: Text,
    pub remedy: Text,
}

impl Entry {
    pub const fn new(code: &'static str, meaning: Text, remedy: Text) -> Self {
        Self { code, meaning, remedy }
    }
}

/// A parameter of a message: its name and its value. Amounts are in the base unit of `kind`.
pub type Parameter = (&'static str, String);

/// Fills a template: `{name}` is replaced by the parameter with that name, formatted for people.
pub fn render<'a>(template: Text, language: Language, parameter: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::new();
    let mut rest = template.in_language(language);
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').unwrap_or((after, ""));
        out.push_str(before);
        out.push_str(&value(name, language, &parameter));
        rest = after;
    }
    out + rest
}

/// The value of one parameter, for people.
fn value<'a>(name: &str, language: Language, parameter: &impl Fn(&str) -> Option<&'a str>) -> String {
    let given = parameter(name).unwrap_or_default();
    let chinese = language == Language::Chinese;
    match name {
        "needed" | "free" | "largest" | "total" | "limit" | "used" => {
            amount(parameter("kind").unwrap_or_default(), given.parse().unwrap_or_default(), language)
        }
        "until" => given.parse().map_or_else(|_| given.to_owned(), |ms| Timestamp(ms).to_string()),
        "models" if given.is_empty() => Text::new("devices", "加速卡").in_language(language).to_owned(),
        "models" => given.replace('|', if chinese { " 或 " } else { " or " }),
        "needs" if chinese => match given {
            "processes" => "进程",
            "containers" => "容器",
            "native Kubernetes pods" => "原生的 Kubernetes Pod",
            other => other,
        }
        .to_owned(),
        _ => given.to_owned(),
    }
}

/// An amount of a resource kind in a readable unit: `1.5 CPUs`, `64.0 GiB memory`, `2 devices`.
pub fn amount(kind: &str, amount: u64, language: Language) -> String {
    let unit = |text: Text| text.in_language(language);
    match kind {
        "cpu" => format!("{} {}", thousandths(amount), unit(Text::new("CPUs", "核 CPU"))),
        "devices" => format!("{} {}", thousandths(amount), unit(Text::new("devices", "张加速卡"))),
        "memory" | "storage" => {
            // Tenths, rounded down: "1.0 GiB free" must not stand for less.
            let (name, bytes) = if amount >= 1 << 30 { ("GiB", 1u64 << 30) } else { ("MiB", 1 << 20) };
            let tenths = u128::from(amount) * 10 / u128::from(bytes);
            let what = match kind {
                "memory" => Text::new("memory", "内存"),
                _ => Text::new("storage", "存储"),
            };
            format!("{}.{} {name} {}", tenths / 10, tenths % 10, unit(what))
        }
        other => format!("{amount} {other}"),
    }
}
