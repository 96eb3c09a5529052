//! Output: tables, JSON and YAML, and the formats of times and quantities. All output is sanitised here.

use std::io::{IsTerminal, Write};

use serde::Serialize;
use serde_json::{Map, Value};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::{Failure, language};
pub use crate::model::amount::thousandths;
use crate::model::text;
use crate::model::time::Timestamp;

/// Output format of the commands that print objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// Table with more columns.
    Wide,
    /// Indented JSON.
    Json,
    /// YAML.
    Yaml,
    /// TYPE/NAME, one per line.
    Name,
}

/// Prints `value` as JSON or YAML. Beside each time in milliseconds, `NAME_unix_ms`, there is the same as `NAME_at` in
/// RFC 3339. Control and bidirectional characters are escaped.
///
/// # Errors
/// If standard output can't be written.
pub fn print_value(format: Format, value: Value) -> Result<(), Failure> {
    let value = with_times(value);
    let text = match format {
        Format::Yaml => yaml(&value)?,
        Format::Json | Format::Table | Format::Wide | Format::Name => json(&value, json_escape)?,
    };
    print(&text)
}

/// Prints `value` as JSON on one line, otherwise as [`print_value`] does.
///
/// # Errors
/// If standard output can't be written.
pub fn print_line(value: Value) -> Result<(), Failure> {
    let text = serde_json::to_string(&with_times(value)).map_err(anyhow::Error::from)?;
    print(&(escaped(&text, json_escape) + "\n"))
}

/// An object as it is printed in JSON.
///
/// # Errors
/// If it can't be represented in JSON.
pub fn value_of(object: &impl Serialize) -> Result<Value, Failure> {
    Ok(serde_json::to_value(object).map_err(anyhow::Error::from)?)
}

/// Adds the times that people can read.
fn with_times(value: Value) -> Value {
    match value {
        Value::Array(list) => list.into_iter().map(with_times).collect(),
        Value::Object(map) => {
            let mut out = Map::new();
            for (key, value) in map {
                if let (Some(name), Some(ms)) = (key.strip_suffix("_unix_ms"), value.as_u64()) {
                    out.insert(format!("{name}_at"), Timestamp(ms).to_string().into());
                }
                out.insert(key, with_times(value));
            }
            Value::Object(out)
        }
        scalar => scalar,
    }
}

fn json(value: &impl Serialize, escape: fn(char) -> String) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)? + "\n";
    // In JSON these characters can only be inside a string, where an escape has the same meaning.
    Ok(escaped(&text, escape))
}

/// YAML. Values with control or bidirectional characters become JSON, which is valid YAML: plain YAML
/// scalars have no escapes.
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

/// Replaces control and bidirectional characters, except line feeds, by `escape`.
fn escaped(text: &str, escape: fn(char) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && text::is_control_or_bidi(c) { out.push_str(&escape(c)) } else { out.push(c) }
    }
    out
}

/// The text with control and bidirectional characters escaped; line feeds stay.
pub fn sanitised(text: &str) -> String {
    escaped(text, |c| c.escape_unicode().to_string())
}

/// Writes sanitised text to standard output. If the reader has closed the pipe, the process exits with 0.
///
/// # Errors
/// If standard output can't be written.
pub fn print(text: &str) -> Result<(), Failure> {
    print_raw(&sanitised(text))
}

/// Writes text without sanitising it, like [`print`] otherwise. Only for text that holds no foreign data.
///
/// # Errors
/// If standard output can't be written.
pub fn print_raw(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => Ok(outcome?),
    }
}

/// Standard error as a log's destination, sanitised.
#[derive(Clone, Copy, Debug)]
pub struct SanitisedLog {
    /// Lets escape characters pass, for the colours of the formatter, which escapes those in values.
    pub coloured: bool,
}

impl Write for SanitisedLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            let allowed = c == '\n' || (c == '\u{1b}' && self.coloured);
            if !allowed && text::is_control_or_bidi(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
        }
        // Standard error may be closed: an agent continues without a log.
        let _ = std::io::stderr().write_all(out.as_bytes());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Writes a message to standard error, in the language of this process. Errors are ignored: standard error may be closed.
pub fn report(message: &str) {
    let lines: String = message.lines().map(|line| language::translated(line) + "\n").collect();
    let _ = std::io::stderr().write_all(lines.as_bytes());
}

/// Prints what was done, a line to standard output, in the language of this process.
///
/// # Errors
/// If standard output can't be written.
pub fn announce(line: &str) -> Result<(), Failure> {
    print(&format!("{}\n", language::translated_result(line)))
}

/// The text with spaces up to `width` columns. Many characters, such as Chinese ones, are two columns wide.
pub fn padded(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(text.width())))
}

/// Wraps text into lines of the terminal's width, 100 columns at most, each indented.
pub fn wrapped(text: &str, indent: usize) -> String {
    let columns = terminal_size().map_or(LINE_COLUMNS_MAX, |(columns, _)| columns);
    let width = columns.clamp(40, LINE_COLUMNS_MAX);
    let (mut out, mut column) = (String::new(), 0);
    for (space, word) in pieces(text) {
        if column > 0 && column + space + word.width() <= width {
            out.push_str(&" ".repeat(space));
            column += space;
        } else {
            if column > 0 {
                out.push('\n');
            }
            out.push_str(&" ".repeat(indent));
            column = indent;
        }
        out.push_str(word);
        column += word.width();
    }
    out.push('\n');
    out
}

/// A line that begins with `start`; on a terminal its text is wrapped, and later lines are indented below it.
pub fn hanging(start: &str, text: &str) -> String {
    let Some((columns, _)) = terminal_size() else { return format!("{start}{text}\n") };
    // Where little of the line would be left, a smaller indentation has to do.
    let indent = if start.width() + 24 <= columns { start.width() } else { 6 };
    let (mut out, mut column) = (start.trim_end().to_owned(), start.width());
    if column > out.width() {
        out.push_str(&" ".repeat(column - out.width()));
    }
    for (space, word) in pieces(text) {
        if column + space + word.width() > columns && column > indent {
            out.push_str(&format!("\n{}", " ".repeat(indent)));
            column = indent;
        } else {
            out.push_str(&" ".repeat(space));
            column += space;
        }
        out.push_str(word);
        column += word.width();
    }
    out + "\n"
}

/// The pieces between which a text may be wrapped, each with the number of spaces before it: its words, and the clauses of
/// Chinese, which has no spaces.
fn pieces(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let words = text.split_whitespace().enumerate();
    words.flat_map(|(index, word)| {
        let clauses = word.split_inclusive(['，', '；', '。', '、']).enumerate();
        clauses.map(move |(clause, piece)| (usize::from(index > 0 && clause == 0), piece))
    })
}

/// Longer lines are hard to read.
const LINE_COLUMNS_MAX: usize = 100;

/// Columns and lines of the terminal that standard output is; `None` if it is none.
pub fn terminal_size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// The part of a text that fits a terminal, with a last line for how many lines it has more.
pub fn fitted(text: &str, (columns, lines): (usize, usize)) -> String {
    let total = text.lines().count();
    // The cursor stands in a line of its own.
    let shown = if total < lines { total } else { lines.saturating_sub(2) };
    let mut out: String = text.lines().take(shown).map(|line| cut_to_width(line, columns) + "\n").collect();
    if shown < total {
        out.push_str(&format!("… and {} more\n", total - shown));
    }
    out
}

/// The line, cut to a width in columns.
fn cut_to_width(line: &str, columns: usize) -> String {
    if line.width() <= columns {
        return line.to_owned();
    }
    let mut out = String::new();
    for c in line.chars() {
        if out.width() + c.width().unwrap_or(0) + 1 > columns {
            break;
        }
        out.push(c);
    }
    out + "…"
}

/// Formats an aligned table, see [`Columns::format`].
pub fn table(rows: &[Vec<String>]) -> String {
    Columns::default().format(rows)
}

/// The widths of a table's columns, which stay or grow while rows are added.
#[derive(Debug, Default)]
pub struct Columns(Vec<usize>);

impl Columns {
    /// Formats aligned rows, the heading first. Spaces in cells become `_` and empty cells `-`, so that `awk` can split
    /// the columns.
    pub fn format(&mut self, rows: &[Vec<String>]) -> String {
        let cell = |text: &String| {
            let text = text::escape(text).replace(' ', "_");
            if text.is_empty() { "-".to_owned() } else { text }
        };
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(cell).collect()).collect();
        for row in &rows {
            self.0.resize(self.0.len().max(row.len()), 0);
            for (width, cell) in self.0.iter_mut().zip(row) {
                *width = cell.width().max(*width);
            }
        }
        let mut out = String::new();
        for row in rows {
            let cells = row.iter().zip(&self.0).map(|(text, width)| padded(text, width + 3));
            out.push_str(cells.collect::<String>().trim_end());
            out.push('\n');
        }
        out
    }
}

/// Formats a duration like kubectl: `45s`, `7m`, `3h20m`, `2d4h`.
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

/// Formats the time since `unix_ms`, see [`span`].
pub fn age(unix_ms: u64) -> String {
    span(now_ms().saturating_sub(unix_ms))
}

/// The wall clock, in milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Formats a time as RFC 3339 in the local time zone, to the second.
pub fn time(unix_ms: u64) -> String {
    let at = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(
        || Timestamp(unix_ms).to_string(),
        |at| at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
    )
}

/// Formats bytes in binary units, rounded down to a tenth: `1.5Gi`.
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

/// Formats a command so that a shell reads the same words.
pub fn shell_words(words: &[&str]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "%+,-./:=@_".contains(c);
    let quoted = |word: &&str| {
        if !word.is_empty() && word.chars().all(plain) {
            (*word).to_owned()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// True if standard output is a terminal.
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chinese_is_wrapped_after_its_clauses() {
        let found: Vec<_> = pieces("a: 位于 CN-CQ，不在；b 2").collect();
        assert_eq!(found, [(0, "a:"), (1, "位于"), (1, "CN-CQ，"), (0, "不在；"), (0, "b"), (1, "2")]);
        assert!(pieces("").next().is_none());
    }

    #[test]
    fn columns_are_aligned_where_characters_are_two_columns_wide() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let text = table(&[row(["QUEUE", "JOBS"]), row(["气象", "12"]), row(["climate", "3"])]);
        assert_eq!(text, "QUEUE     JOBS\n气象      12\nclimate   3\n");
    }

    #[test]
    fn printed_values_parse_back_unchanged_and_contain_no_control_or_bidi_characters() {
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
