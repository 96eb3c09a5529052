//! Real traces: what each format has, as nodes and jobs.

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
    /// After the first one.
    pub(crate) arrives_ms: u64,
    pub(crate) duration_ms: u64,
    pub(crate) tasks: u32,
    /// What one task asks for.
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) devices: Option<DeviceAmount>,
    /// Allowed device models; empty means any.
    pub(crate) models: Vec<String>,
}

/// Jobs as they came.
pub(crate) struct Trace {
    /// In the order of their arrival.
    pub(crate) jobs: Vec<Job>,
    /// Rows that say of no job how long it ran, or on what.
    pub(crate) left_out: usize,
}

impl Trace {
    /// Takes jobs by the second of their arrival, whichever the first is.
    fn new(mut jobs: Vec<(u64, Job)>, left_out: usize, path: &Path) -> anyhow::Result<Self> {
        jobs.sort_by_key(|(at, _)| *at);
        let Some((first, _)) = jobs.first() else { bail!("{} has no job", path.display()) };
        let first = *first;
        let jobs =
            jobs.into_iter().map(|(at, job)| Job { arrives_ms: (at - first).saturating_mul(1_000), ..job });
        Ok(Self { jobs: jobs.collect(), left_out })
    }
}

/// Splits `units` evenly over as few tasks as nodes of `per_node` units allow.
fn split(units: u32, per_node: u32) -> (u32, u32) {
    let each = (1..=units.min(per_node.max(1))).rev().find(|each| units.is_multiple_of(*each)).unwrap_or(1);
    (units / each, each)
}

/// Fisher and Yates's shuffle.
pub(crate) fn shuffle<T>(items: &mut [T], random: &mut Random) {
    for last in (1..items.len()).rev() {
        items.swap(last, random.below(last as u64 + 1) as usize);
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
    if bytes.starts_with(b"PK") || bytes.starts_with(&[0x1f, 0x8b]) {
        bail!("{} is packed: unpack it first", path.display());
    }
    String::from_utf8(bytes).with_context(|| format!("can't read {}", path.display()))
}

/// Rows of a CSV file without quotes, each as its named cells.
fn rows<T>(
    path: &Path,
    columns: &[&str],
    read: impl Fn(&[&str]) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<T>> {
    let text = text(path)?;
    let mut lines = text.lines();
    let heading: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    // A column that may be missing is marked; its cells are empty then.
    let place = |name: &&str| {
        let (name, may_be_missing) = name.strip_suffix('?').map_or((*name, false), |name| (name, true));
        match heading.iter().position(|column| *column == name) {
            None if !may_be_missing => bail!("{} has no column {name}", path.display()),
            place => Ok(place.unwrap_or(usize::MAX)),
        }
    };
    let places = columns.iter().map(place).collect::<anyhow::Result<Vec<_>>>()?;
    let mut all = Vec::new();
    for (number, line) in lines.enumerate().filter(|(_, line)| !line.is_empty()) {
        let cells: Vec<&str> = line.split(',').collect();
        let cells: Vec<&str> =
            places.iter().map(|place| cells.get(*place).copied().unwrap_or_default()).collect();
        all.push(read(&cells).with_context(|| format!("{}, line {}", path.display(), number + 2))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of its own, gone at the end.
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
    fn a_job_is_split_evenly_over_as_few_nodes_as_it_can() {
        let found: Vec<_> = [1, 8, 12, 16, 24, 7, 11].map(|units| split(units, 8)).into();
        assert_eq!(found, [(1, 1), (1, 8), (2, 6), (2, 8), (3, 8), (1, 7), (11, 1)]);
        assert_eq!(split(5, 0), (5, 1));
    }

    #[test]
    fn a_packed_file_is_called_that() {
        let file = File::new("packed", b"PK\x03\x04\xff");
        let error = text(&file.0).unwrap_err().to_string();
        assert!(error.ends_with("is packed: unpack it first"), "{error}");
    }
}
