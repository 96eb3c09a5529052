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

/// Prints `value` as JSON or YAML.
///
/// # Errors
/// If it can't be written.
pub fn print_value(format: Format, value: &impl Serialize) -> Result<(), Failure> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value).map_err(anyhow::Error::from)?,
        Format::Json | Format::Table | Format::Wide | Format::Name => {
            serde_json::to_string_pretty(value).map_err(anyhow::Error::from)? + "\n"
        }
    };
    print(&text)
}

/// Writes to standard output; a reader that has gone away is no failure.
///
/// # Errors
/// If it can't be written.
pub fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => Ok(outcome?),
    }
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
