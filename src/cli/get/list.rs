//! Lists of objects of each type: how they are printed, once or while they are watched.

use serde::Serialize;
use serde_json::Value;

use super::row::{self, JobColumns};
use crate::api::proto::v1;
use crate::cli::Failure;
use crate::cli::connect::job_name;
use crate::cli::job_file::job_value;
use crate::cli::output::{Format, print, print_value, report, table, value_of};
use crate::cli::queue_file::queue_value;

/// Whether one object was named, or a list was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Listed {
    One,
    Many,
}

/// Makes the cells of an object.
type Row<T> = Box<dyn Fn(&T) -> Vec<String>>;

/// How objects of a type are printed.
pub(super) struct List<T> {
    pub(super) heading: Vec<String>,
    pub(super) row: Row<T>,
    /// `TYPE/NAME`.
    pub(super) name: fn(&T) -> String,
    /// What no other object of the list has.
    pub(super) key: fn(&T) -> String,
    pub(super) value: fn(&T) -> Result<Value, Failure>,
}

impl<T: Serialize + 'static> List<T> {
    fn of(heading: Vec<String>, row: impl Fn(&T) -> Vec<String> + 'static, name: fn(&T) -> String) -> Self {
        Self { heading, row: Box::new(row), name, key: name, value: |object| value_of(object) }
    }

    /// Prints objects, or the only one that was named. `none` is reported in place of a table without rows.
    pub(super) fn print(
        &self,
        output: Format,
        objects: &[T],
        which: Listed,
        none: Option<&str>,
    ) -> Result<(), Failure> {
        match output {
            Format::Table | Format::Wide => match none.filter(|_| objects.is_empty()) {
                Some(none) => report(none),
                None => {
                    let rows = std::iter::once(self.heading.clone()).chain(objects.iter().map(&self.row));
                    print(&table(&rows.collect::<Vec<_>>()))?;
                }
            },
            Format::Name => {
                objects.iter().try_for_each(|object| print(&format!("{}\n", (self.name)(object))))?;
            }
            Format::Json | Format::Yaml => {
                let mut values = objects.iter().map(self.value).collect::<Result<Vec<_>, _>>()?;
                match values.pop_if(|_| which == Listed::One) {
                    Some(value) => print_value(output, value)?,
                    None => print_value(output, values.into())?,
                }
            }
        }
        Ok(())
    }
}

pub(super) fn jobs(columns: JobColumns) -> List<v1::Job> {
    List {
        heading: columns.heading(),
        row: Box::new(move |job| columns.row(job)),
        name: |job| job_name(&job.queue, &job.name),
        key: |job| job.id.to_string(),
        value: job_value,
    }
}

pub(super) fn attempts(wide: bool) -> List<v1::Attempt> {
    let name = |attempt: &v1::Attempt| format!("attempt/{}", attempt.id);
    List::of(row::attempt_heading(wide), move |attempt| row::attempt(attempt, wide), name)
}

pub(super) fn pools(wide: bool) -> List<v1::Pool> {
    let name = |pool: &v1::Pool| format!("pool/{}", pool.name);
    List::of(row::pool_heading(wide), move |pool| row::pool(pool, wide), name)
}

pub(super) fn nodes(wide: bool) -> List<v1::Node> {
    let name = |node: &v1::Node| format!("node/{}", node.name);
    // Nodes of several pools may have one name.
    let key = |node: &v1::Node| format!("{}/{}", node.pool, node.name);
    List { key, ..List::of(row::node_heading(wide), move |node| row::node(node, wide), name) }
}

pub(super) fn queues() -> List<v1::Queue> {
    let heading = row::QUEUE_HEADING.iter().map(|title| (*title).to_owned()).collect();
    let list = List::of(heading, row::queue, |queue: &v1::Queue| format!("queue/{}", queue.name));
    List { value: queue_value, ..list }
}
