//! Lists of objects of each type: how they are printed, once or while they are watched.

use serde::Serialize;
use serde_json::Value;

use super::key::{Key, Keys};
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
    pub(super) keys: Keys<T>,
}

impl<T: Serialize + 'static> List<T> {
    fn of(
        heading: Vec<String>,
        row: impl Fn(&T) -> Vec<String> + 'static,
        name: fn(&T) -> String,
        keys: Keys<T>,
    ) -> Self {
        Self { heading, row: Box::new(row), name, key: name, value: |object| value_of(object), keys }
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
        keys: vec![
            // Many may be submitted in one millisecond. Later ones have higher ids.
            ("submitted", |job| Key::number(job.id)),
            ("started", |job| Key::of(job.started_unix_ms)),
            ("ended", |job| Key::of(job.ended_unix_ms)),
            ("elapsed", |job| Key::of(row::elapsed_ms(job.started_unix_ms, job.ended_unix_ms))),
            ("priority", |job| Key::number(job.spec.as_ref().map_or(0, |spec| spec.priority))),
            ("units", |job| Key::number(job.units.unwrap_or_default().total)),
            ("name", |job| Key::text(&job.name)),
            ("queue", |job| Key::text(&job.queue)),
            ("state", |job| Key::number(job.phase)),
            ("id", |job| Key::number(job.id)),
        ],
    }
}

pub(super) fn attempts(wide: bool) -> List<v1::Attempt> {
    let name = |attempt: &v1::Attempt| format!("attempt/{}", attempt.id);
    let keys: Keys<v1::Attempt> = vec![
        ("unit", |attempt| Key::number(attempt.unit)),
        ("ordered", |attempt| Key::number(attempt.ordered_unix_ms)),
        ("started", |attempt| Key::of(attempt.started_unix_ms)),
        ("ended", |attempt| Key::of(attempt.ended_unix_ms)),
        ("elapsed", |attempt| Key::of(row::elapsed_ms(attempt.started_unix_ms, attempt.ended_unix_ms))),
        ("pool", |attempt| Key::text(&attempt.pool)),
        ("state", |attempt| Key::number(attempt.phase)),
    ];
    List::of(row::attempt_heading(wide), move |attempt| row::attempt(attempt, wide), name, keys)
}

pub(super) fn units() -> List<v1::Units> {
    let heading = row::UNITS_HEADING.iter().map(|title| (*title).to_owned()).collect();
    let name = |units: &v1::Units| format!("unit/{}", row::unit_range(units.first, units.last));
    let keys: Keys<v1::Units> = vec![
        ("units", |units| Key::number(units.first)),
        ("count", |units| Key::number(units.last - units.first)),
        ("state", |units| Key::number(units.state)),
        ("outcome", |units| Key::text(&units.outcome)),
    ];
    List::of(heading, row::units, name, keys)
}

pub(super) fn pools(wide: bool) -> List<v1::Pool> {
    let name = |pool: &v1::Pool| format!("pool/{}", pool.name);
    let keys: Keys<v1::Pool> = vec![
        ("name", |pool| Key::text(&pool.name)),
        ("region", |pool| Key::text(&pool.region)),
        ("state", |pool| Key::text(&row::pool_state(pool))),
        ("nodes", |pool| Key::number(pool.nodes)),
        ("attempts", |pool| Key::number(pool.attempts)),
        ("cpus", |pool| Key::of(pool.total.as_ref().map(|total| total.cpu_millis))),
        ("memory", |pool| Key::of(pool.total.as_ref().map(|total| total.memory_bytes))),
        ("devices", |pool| Key::of(pool.total.as_ref().map(|total| total.device_millis))),
        ("registered", |pool| Key::number(pool.registered_unix_ms)),
    ];
    List::of(row::pool_heading(wide), move |pool| row::pool(pool, wide), name, keys)
}

pub(super) fn nodes(wide: bool) -> List<v1::Node> {
    let name = |node: &v1::Node| format!("node/{}", node.name);
    // Nodes of several pools may have one name.
    let key = |node: &v1::Node| format!("{}/{}", node.pool, node.name);
    let keys: Keys<v1::Node> = vec![
        ("name", |node| Key::text(&node.name)),
        ("pool", |node| Key::text(&node.pool)),
        ("state", |node| Key::text(row::node_state(node))),
        ("tasks", |node| Key::number(node.tasks)),
        ("cpus", |node| Key::of(node.total.as_ref().map(|total| total.cpu_millis))),
        ("memory", |node| Key::of(node.total.as_ref().map(|total| total.memory_bytes))),
        ("devices", |node| Key::of(node.total.as_ref().map(|total| total.device_millis))),
    ];
    List { key, ..List::of(row::node_heading(wide), move |node| row::node(node, wide), name, keys) }
}

pub(super) fn queues() -> List<v1::Queue> {
    let heading = row::QUEUE_HEADING.iter().map(|title| (*title).to_owned()).collect();
    let keys: Keys<v1::Queue> = vec![
        ("name", |queue| Key::text(&queue.name)),
        ("weight", |queue| Key::number(queue.weight)),
        ("jobs", |queue| Key::number(queue.jobs)),
        ("cpus", |queue| Key::of(queue.usage.as_ref().map(|usage| usage.cpu_millis))),
        ("memory", |queue| Key::of(queue.usage.as_ref().map(|usage| usage.memory_bytes))),
        ("devices", |queue| Key::of(queue.usage.as_ref().map(|usage| usage.device_millis))),
    ];
    let list = List::of(heading, row::queue, |queue: &v1::Queue| format!("queue/{}", queue.name), keys);
    List { value: queue_value, ..list }
}
