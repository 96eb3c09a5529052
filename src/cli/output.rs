//! Tables, JSON and YAML; ages and amounts as people read them.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::Failure;
use crate::model::text;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Wide,
    Json,
    Yaml,
    Name,
}

/// Prints `value` as JSON or YAML, as which it can be read again: what deceives is escaped.
///
/// # Errors
/// If it can't be written.
pub fn print_value(format: Format, value: &impl Serialize) -> Result<(), Failure> {
    let text = match format {
        Format::Yaml => yaml(value)?,
        Format::Json | Format::Table | Format::Wide | Format::Name => json(value, json_escape)?,
    };
    print(&text)
}

fn json(value: &impl Serialize, escape: fn(char) -> String) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)? + "\n";
    // What is left of it can only stand in a text, where an escape says the same.
    Ok(escaped(&text, escape))
}

/// YAML; as JSON, which is YAML too, where its plain texts would deceive.
fn yaml(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_saphyr::to_string(value).map_err(anyhow::Error::from)?;
    if text.chars().any(|c| c != '\n' && text::is_control_or_bidi(c)) {
        json(value, yaml_escape)
    } else {
        Ok(text)
    }
}

fn json_escape(c: char) -> String {
    c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

fn yaml_escape(c: char) -> String {
    format!("\\U{:08x}", u32::from(c))
}

/// The text's lines without what deceives.
fn escaped(text: &str, escape: fn(char) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && text::is_control_or_bidi(c) { out.push_str(&escape(c)) } else { out.push(c) }
    }
    out
}

/// The text's lines as they may be shown.
pub fn sanitised(text: &str) -> String {
    escaped(text, |c| c.escape_unicode().to_string())
}

/// Writes to standard output, whatever the text says as honest lines; a reader that has gone away is
/// no failure.
///
/// # Errors
/// If it can't be written.
pub fn print(text: &str) -> Result<(), Failure> {
    print_raw(&sanitised(text))
}

/// Writes what is our own in every byte.
///
/// # Errors
/// If it can't be written.
pub fn print_raw(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => Ok(outcome?),
    }
}

/// A log's lines on standard error, honest ones.
#[derive(Clone, Copy, Debug)]
pub struct SanitisedLog {
    /// Colours are ours; the formatter sees to it that no value brings its own.
    pub coloured: bool,
}

impl Write for SanitisedLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            let ours = c == '\n' || (c == '\u{1b}' && self.coloured);
            if !ours && text::is_control_or_bidi(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
        }
        // Whoever read the log may be gone: an agent goes on without.
        let _ = std::io::stderr().write_all(out.as_bytes());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Says a line on standard error, if anybody listens.
pub fn tell(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// A table: the first row is the heading. Cells hold no spaces, so that `awk` works.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |text: &str| {
        let text = text::escape(text).replace(' ', "_");
        if text.is_empty() { "-".to_owned() } else { text }
    };
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|text| cell(text)).collect()).collect();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, text) in row.iter().enumerate() {
            line.push_str(&format!("{text:<width$}   ", width = widths[column]));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A span as kubectl writes it: `45s`, `7m`, `3h20m`, `2d4h`.
pub fn span(ms: u64) -> String {
    let seconds = ms / 1_000;
    let pair = |large: u64, small: u64, l: char, s: char| {
        if small == 0 { format!("{large}{l}") } else { format!("{large}{l}{small}{s}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..3_600 => pair(seconds / 60, seconds % 60, 'm', 's'),
        3_600..86_400 => pair(seconds / 3_600, seconds % 3_600 / 60, 'h', 'm'),
        _ => pair(seconds / 86_400, seconds % 86_400 / 3_600, 'd', 'h'),
    }
}

/// Time since `unix_ms`.
pub fn age(unix_ms: u64) -> String {
    span(now_ms().saturating_sub(unix_ms))
}

/// The wall clock.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// A time as RFC 3339, to the second.
pub fn time(unix_ms: u64) -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(unix_ms);
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Bytes in binary units, rounded down to a tenth.
pub fn bytes(amount: u64) -> String {
    for (unit, shift) in [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)] {
        if amount >= 1 << shift {
            let tenths = (u128::from(amount) * 10) >> shift;
            return if tenths.is_multiple_of(10) {
                format!("{}{unit}", tenths / 10)
            } else {
                format!("{}.{}{unit}", tenths / 10, tenths % 10)
            };
        }
    }
    amount.to_string()
}

/// Thousandths as a decimal number.
pub fn thousandths(amount: u64) -> String {
    match amount % 1_000 {
        0 => (amount / 1_000).to_string(),
        rest => format!("{}.{}", amount / 1_000, format!("{rest:03}").trim_end_matches('0')),
    }
}

/// Standard output is a terminal.
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_back_as_they_were_and_show_nothing_that_deceives() {
        let text = "a\u{202e}b\u{0}\u{1b}[31m\u{7f}\u{9b}\u{200b}\u{e0001}\t\u{feff}: - é\n";
        let value = serde_json::json!({ text: [text, "plain"] });
        let shown = json(&value, json_escape).expect("JSON");
        assert!(shown.chars().all(|c| c == '\n' || !text::is_control_or_bidi(c)), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).expect("JSON"), value);
        let shown = yaml(&value).expect("YAML");
        assert!(shown.chars().all(|c| c == '\n' || !text::is_control_or_bidi(c)), "{shown}");
        assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&shown).expect("YAML"), value);
        let plain = serde_json::json!({ "name": "train", "args": ["two\nlines"] });
        assert!(yaml(&plain).expect("YAML").contains("name: train"));
    }
}
