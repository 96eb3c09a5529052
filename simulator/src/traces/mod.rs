//! Readers of real traces: each format becomes nodes and jobs.

pub(crate) mod openb;
pub(crate) mod philly;
pub(crate) mod swf;

use std::path::Path;

use anyhow::{Context, bail};
use weir::model::device::DeviceAmount;
use weir::scheduler::packing::random::Random;

/// A job of a trace: equal tasks that start and end together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    /// Arrival, in milliseconds after the first job's.
    pub(crate) arrives_ms: u64,
    pub(crate) duration_ms: u64,
    pub(crate) tasks: u32,
    /// Request of one task.
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) devices: Option<DeviceAmount>,
    /// Device models that the job accepts; empty means any.
    pub(crate) models: Vec<String>,
}

/// The jobs of a trace.
pub(crate) struct Trace {
    /// In order of arrival.
    pub(crate) jobs: Vec<Job>,
    /// Number of rows that were skipped: they lack the run time or the resources of the job.
    pub(crate) left_out: usize,
}

impl Trace {
    /// Sorts jobs by arrival, in seconds from any origin, and sets each arrival relative to the first.
    ///
    /// # Errors
    /// If there is no job; `path` names the file.
    fn new(mut jobs: Vec<(u64, Job)>, left_out: usize, path: &Path) -> anyhow::Result<Self> {
        jobs.sort_by_key(|(at, _)| *at);
        let Some((first, _)) = jobs.first() else { bail!("{} has no job", path.display()) };
        let first = *first;
        let jobs =
            jobs.into_iter().map(|(at, job)| Job { arrives_ms: (at - first).saturating_mul(1_000), ..job });
        Ok(Self { jobs: jobs.collect(), left_out })
    }
}

/// Splits `units` into the fewest equal tasks of at most `per_node` units; returns (tasks, units of each).
fn split(units: u32, per_node: u32) -> (u32, u32) {
    let each = (1..=units.min(per_node.max(1))).rev().find(|each| units.is_multiple_of(*each)).unwrap_or(1);
    (units / each, each)
}

/// Shuffles in place (Fisher and Yates).
pub(crate) fn shuffle<T>(items: &mut [T], random: &mut Random) {
    for last in (1..items.len()).rev() {
        items.swap(last, random.below(last as u64 + 1) as usize);
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
    if bytes.starts_with(b"PK") || bytes.starts_with(&[0x1f, 0x8b]) {
        bail!("{} is compressed: decompress it first", path.display());
    }
    String::from_utf8(bytes).with_context(|| format!("can't read {}", path.display()))
}

/// Reads a CSV file and passes the cells of `columns` to `read`, row by row.
///
/// A column whose name ends in `?` is optional: its cells are empty if the file lacks it.
fn rows<T>(
    path: &Path,
    columns: &[&str],
    read: impl Fn(&[&str]) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<T>> {
    let text = text(path)?;
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let heading = reader.headers().with_context(|| format!("can't read {}", path.display()))?.clone();
    let position = |name: &&str| {
        let (name, optional) = name.strip_suffix('?').map_or((*name, false), |name| (name, true));
        match heading.iter().position(|column| column == name) {
            None if !optional => bail!("{} has no column {name}", path.display()),
            position => Ok(position),
        }
    };
    let positions = columns.iter().map(position).collect::<anyhow::Result<Vec<_>>>()?;
    let mut all = Vec::new();
    for row in reader.records() {
        let row = row.with_context(|| format!("can't read {}", path.display()))?;
        let cells: Vec<&str> =
            positions.iter().map(|position| position.map_or("", |position| &row[position])).collect();
        let line = row.position().map_or(0, csv::Position::line);
        all.push(read(&cells).with_context(|| format!("{}, line {line}", path.display()))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A temporary file, removed on drop.
    pub(super) struct File(pub(super) std::path::PathBuf);

    impl File {
        pub(super) fn new(name: &str, bytes: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("weir-trace-{name}-{}", std::process::id()));
            std::fs::write(&path, bytes).unwrap();
            Self(path)
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn job_is_split_evenly_over_the_fewest_nodes() {
        let found: Vec<_> = [1, 8, 12, 16, 24, 7, 11].map(|units| split(units, 8)).into();
        assert_eq!(found, [(1, 1), (1, 8), (2, 6), (2, 8), (3, 8), (1, 7), (11, 1)]);
        assert_eq!(split(5, 0), (5, 1));
    }

    #[test]
    fn compressed_file_is_named_as_such() {
        let file = File::new("compressed", b"PK\x03\x04\xff");
        let error = text(&file.0).unwrap_err().to_string();
        assert!(error.ends_with("is compressed: decompress it first"), "{error}");
    }
}
