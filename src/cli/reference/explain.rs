//! `weir explain`: what a field of a file or a code means.

use super::{FILES, Field, QUANTITIES, reasons, whole_schema};
use crate::cli::exit::NOT_FOUND;
use crate::cli::input::meant;
use crate::cli::output::{Format, print, print_value, value_of, wrapped};
use crate::cli::{Failure, language};
use crate::model::language::Text;
use crate::model::suggest::{nearest, question};
use crate::model::validate::quote;

/// Explain a field of a file, or a code that `why` or an error prints.
///
/// Files are job (weir submit), queues (weir apply) and agent (weir agent); a field is written with those around it.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir explain job\n  weir explain job.groups.devices\n  weir explain agent.host\n  weir explain NodeFragmentation\n  weir explain job -o json > job.schema.json     a JSON schema, for editors"
)]
pub struct Explain {
    /// FILE, FILE.FIELD, FILE.FIELD.FIELD …, or a code. Without it, the files and codes are listed.
    what: Option<String>,
    /// Output format: json and yaml print the JSON schema of a whole file.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

impl Explain {
    pub fn run(self) -> Result<u8, Failure> {
        let Some(what) = &self.what else {
            print(&overview())?;
            return Ok(0);
        };
        if let Some((column, entry)) = reasons::find(what) {
            let language = language::current();
            let line = |name: Text, text: Text| {
                wrapped(&format!("{}: {}", name.in_language(language), text.in_language(language)), 2)
            };
            let meaning = line(Text::new("meaning", "含义"), entry.meaning);
            print(&format!("{}\n{meaning}{}", entry.code, line(column, entry.remedy)))?;
            return Ok(0);
        }
        // One queue is meant, not the list of them that a file has.
        let path = match what.strip_prefix("queue") {
            Some(rest) if rest.is_empty() || rest.starts_with('.') => format!("queues.queues{rest}"),
            _ => what.clone(),
        };
        let mut path = path.split('.').peekable();
        let named = FILES.iter().find(|file| {
            path.peek().is_some_and(|first| *first == file.name || first.strip_suffix('s') == Some(file.name))
        });
        // Fields of jobs are what most people look for.
        let file = named.unwrap_or(&FILES[0]);
        if named.is_some() {
            path.next();
        }
        let root = value_of(&(file.schema)())?;
        if matches!(self.output, Format::Json | Format::Yaml) {
            return print_value(self.output, whole_schema(file.name, root)).map(|()| 0);
        }
        let (mut field, mut name) = (Field::of(&root), file.name.to_owned());
        for part in path {
            let fields = field.fields();
            let part = part.split('[').next().unwrap_or(part);
            let Some((found, inner)) = fields.into_iter().find(|(known, _)| *known == part) else {
                return Err(unknown(what, &name, part, &field));
            };
            name = format!("{name}.{found}");
            field = inner;
        }
        print(&text(&name, &field))?;
        Ok(0)
    }
}

/// What can be explained, of which `typed` is the beginning: files and codes, or the fields of one that is typed before the
/// last dot.
pub fn topics(typed: &str) -> Vec<String> {
    let Some((parent, _)) = typed.rsplit_once('.') else {
        let files = FILES.iter().map(|file| file.name.to_owned());
        let codes =
            reasons::tables().into_iter().flat_map(|table| table.rows).map(|entry| entry.code.to_owned());
        return files.chain(codes).collect();
    };
    let mut path = parent.split('.');
    let Some(file) = FILES.iter().find(|file| Some(file.name) == path.clone().next()) else {
        return Vec::new();
    };
    path.next();
    let Ok(root) = value_of(&(file.schema)()) else { return Vec::new() };
    let found = path.try_fold(Field::of(&root), |field, part| {
        field.fields().into_iter().find(|(known, _)| *known == part).map(|(_, inner)| inner)
    });
    found.map_or_else(Vec::new, |field| {
        field.fields().into_iter().map(|(name, _)| format!("{parent}.{name}")).collect()
    })
}

fn overview() -> String {
    let mut text = "files, with `weir explain FILE`:\n".to_owned();
    for file in FILES {
        text.push_str(&format!("  {}\n", file.name));
    }
    text.push_str("codes, with `weir explain CODE`:\n");
    for table in reasons::tables() {
        let codes: Vec<&str> = table.rows.iter().map(|entry| entry.code).collect();
        text.push_str(&format!("  {}\n{}", table.title, wrapped(&codes.join(", "), 6)));
    }
    text
}

fn unknown(what: &str, at: &str, part: &str, field: &Field<'_>) -> Failure {
    let known: Vec<&str> = field.fields().into_iter().map(|(name, _)| name).collect();
    let mut near = meant(part, &known);
    if !what.contains('.') {
        near.extend(nearest(
            what,
            reasons::tables().iter().flat_map(|table| table.rows.iter().map(|entry| entry.code)),
        ));
    }
    let message = format!("{} is not a field of {at}, and not a code{}", quote(part), question(&near));
    let failure = Failure::new(NOT_FOUND, message);
    if known.is_empty() { failure } else { failure.hint(format!("{at} has the fields {}", known.join(", "))) }
}

/// A field with the fields inside of it.
fn text(name: &str, field: &Field<'_>) -> String {
    let kind = field.type_text();
    let mut out = format!("{name}  <{kind}>\n{}", wrapped(&field.description(), 2));
    if let Some((_, help)) = QUANTITIES.iter().find(|(title, _)| *title == kind) {
        out.push_str(&wrapped(&format!("Written as {}.", help.replace("\\|", "|")), 2));
    }
    let fields = field.fields();
    if !fields.is_empty() {
        out.push_str("\nfields\n");
    }
    for (name, inner) in fields {
        out.push_str(&format!("  {name}  <{}>\n{}", inner.type_text(), wrapped(&inner.description(), 6)));
    }
    out
}
