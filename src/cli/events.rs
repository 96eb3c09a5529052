//! `weir events`: what happened, in order.

use std::time::Duration;

use serde_json::Value;
use tonic::Streaming;

use super::connect::{RETRY_TIMEOUT, is_transient, job_name, with_retries};
use super::exit::{INVALID, USAGE};
use super::get::{short_outcome, unit_range};
use super::job_list::{JobFilter, as_flag};
use super::kind::Kind;
use super::output::{Columns, Format, now_ms, print, print_line, print_value, report, time, value_of};
use super::{Connect, Failure, quantity, selector};
use crate::api::client::Client;
use crate::api::proto::{name_of, v1};
use crate::model::validate::quote;

/// Print what happened to jobs, pools and queues, in order.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir events --since 1h\n  weir events job/train-7\n  weir events pool/gz-nvidia -f\n  weir events -f --kind job_ended,attempt_ended -l team=vision\n  weir events -f -o json --after 184467        one line of JSON per event\n\nEach event has its REVISION (-o wide, json): to go on later without a loss or a repetition, give the last one\nto --after. Events are retained for three days by default (weir server --event-retention).\nWithout --queue, or with the default queue, those of all queues are printed.\n\nUNIT is the unit and, behind the dot, the number of its attempt."
)]
pub struct Events {
    /// Only events of this object: job/NAME, job/QUEUE/NAME, pool/NAME or queue/NAME.
    object: Option<String>,
    /// Go on with events as they happen. Survives restarts of the broker.
    #[arg(long, short)]
    follow: bool,
    /// Only events that happened at most this long ago: 90s, 5m, 2d.
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration_ms)]
    since: Option<u64>,
    /// Only events after this revision: the last that was processed.
    #[arg(long, value_name = "REVISION", conflicts_with = "since")]
    after: Option<u64>,
    /// Only events of these kinds, comma-separated: job_ended, pool_connectivity_changed, …; job, attempt, pool, node or queue
    /// for all of theirs. A wrong one is answered with all.
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = parse_kinds)]
    kind: Vec<Kinds>,
    /// Only events of jobs whose labels meet this, as in `weir get jobs`.
    #[arg(long, short, value_name = "SELECTOR")]
    label: Vec<String>,
    /// Only events of these pools, of their nodes, and of attempts there, comma-separated.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pool: Vec<String>,
    /// Also events of the queues below --queue, or below the queue that is named.
    #[arg(long)]
    subtree: bool,
    /// Output format; json prints a line for each event, name what it is about.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// Kinds of events that one word names.
#[derive(Clone, Debug)]
struct Kinds(Vec<v1::EventKind>);

/// All kinds of events.
fn all_kinds() -> impl Iterator<Item = v1::EventKind> {
    (1..).map_while(|number| v1::EventKind::try_from(number).ok())
}

fn kind_name(kind: v1::EventKind) -> String {
    name_of::<v1::EventKind>(kind.into()).to_lowercase()
}

fn parse_kinds(text: &str) -> Result<Kinds, String> {
    let name = text.to_lowercase().replace('-', "_");
    let group = format!("{name}_");
    let is_group = ["job", "attempt", "pool", "node", "queue"].contains(&name.as_str());
    let found = all_kinds().filter(|kind| {
        let own = kind_name(*kind);
        // Units are a job's.
        own == name || is_group && own.starts_with(&group) || name == "job" && own == "units_cancelled"
    });
    let found: Vec<v1::EventKind> = found.collect();
    if found.is_empty() {
        let all: Vec<String> = all_kinds().map(kind_name).collect();
        return Err(format!("use job, attempt, pool, node, queue, {}", all.join(", ")));
    }
    Ok(Kinds(found))
}

/// Before a stream is begun again after its connection broke.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

impl Events {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let mut request = v1::StreamEventsRequest {
            after_revision: self.after,
            from_unix_ms: self.since.map_or(0, |ms| now_ms().saturating_sub(ms).max(1)),
            filter: Some(self.filter(connect)?),
            follow: self.follow,
        };
        let client = connect.client()?;
        let mut printer = Printer { output: self.output, widths: Columns::default(), is_begun: false };
        loop {
            let mut responses = begin(&client, &request).await?;
            loop {
                match responses.message().await {
                    Ok(Some(response)) => {
                        if let Some(at) = response.removed_before_unix_ms {
                            report(&format!("events before {} are no longer retained", time(at)));
                        }
                        printer.print(&response.events)?;
                        (request.after_revision, request.from_unix_ms) = (Some(response.revision), 0);
                    }
                    // A stream that follows ends only with the broker.
                    Ok(None) if !self.follow => return Ok(0),
                    Ok(None) => break,
                    Err(status) if is_transient(&status) => break,
                    Err(status) => return Err(failure(status)),
                }
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    fn filter(&self, connect: &Connect) -> Result<v1::EventFilter, Failure> {
        let mut filter = v1::EventFilter {
            kinds: self.kind.iter().flat_map(|kinds| &kinds.0).map(|kind| *kind as i32).collect(),
            queues: JobFilter::of_queue(&connect.queue).message.queues,
            subtree: self.subtree,
            job: None,
            labels: selector::parse(&self.label)?,
            pools: self.pool.clone(),
        };
        // Several words may name one kind.
        filter.kinds.sort_unstable();
        filter.kinds.dedup();
        let Some(object) = &self.object else {
            if self.subtree && filter.queues.is_empty() {
                return Err(Failure::new(
                    USAGE,
                    "--subtree needs another queue than the default: write --queue NAME or queue/NAME",
                ));
            }
            return Ok(filter);
        };
        let split = object.split_once('/').map(|(kind, name)| (Kind::parse(kind), name));
        match split {
            Some((Some(Kind::Pools), name)) => filter.pools.push(name.to_owned()),
            Some((Some(Kind::Queues), name)) => filter.queues.push(name.to_owned()),
            Some((Some(Kind::Jobs), _)) | None => {
                // Its name has its queue.
                (filter.job, filter.queues) = (Some(connect.job_ref(object)?), Vec::new());
            }
            Some(_) => {
                let message = format!(
                    "{} has no events of its own: write job/NAME, pool/NAME or queue/NAME; for nodes, --pool NAME --kind node",
                    quote(object)
                );
                return Err(Failure::new(INVALID, message));
            }
        }
        Ok(filter)
    }
}

/// Begins a stream, with the first answer of the broker awaited.
async fn begin(
    client: &Client,
    request: &v1::StreamEventsRequest,
) -> Result<Streaming<v1::StreamEventsResponse>, Failure> {
    let call = || async { client.events().stream_events(request.clone()).await };
    Ok(with_retries(RETRY_TIMEOUT, call).await.map_err(failure)?.into_inner())
}

fn failure(status: tonic::Status) -> Failure {
    Failure::from(status).with_fields(|field| match field {
        "after_revision" => "--after".to_owned(),
        "filter.job" => "job".to_owned(),
        "from_unix_ms" => "--since".to_owned(),
        field if field.starts_with("filter.kinds") => "--kind".to_owned(),
        field => as_flag(field),
    })
}

/// Prints events as they come.
struct Printer {
    output: Format,
    widths: Columns,
    is_begun: bool,
}

impl Printer {
    fn print(&mut self, events: &[v1::Event]) -> Result<(), Failure> {
        match self.output {
            Format::Table | Format::Wide => {
                let wide = self.output == Format::Wide;
                let heading = (!self.is_begun).then(|| heading(wide));
                self.is_begun = true;
                let rows = heading.into_iter().chain(events.iter().map(|event| row(event, wide)));
                let rows: Vec<Vec<String>> = rows.collect();
                print(&self.widths.format(&rows))
            }
            Format::Name => events.iter().try_for_each(|event| print(&format!("{}\n", object(event)))),
            Format::Json => events.iter().try_for_each(|event| print_line(value(event)?)),
            Format::Yaml => events.iter().try_for_each(|event| {
                print("---\n")?;
                print_value(Format::Yaml, value(event)?)
            }),
        }
    }
}

fn is_of_attempt(event: &v1::Event) -> bool {
    kind_name(event.kind()).starts_with("attempt_")
}

/// An event with the fields that it has.
fn value(event: &v1::Event) -> Result<Value, Failure> {
    let mut value = value_of(event)?;
    if let Value::Object(fields) = &mut value {
        fields.retain(|name, value| match value {
            // The first unit has the number 0, and an update has it either way.
            _ if name == "unit" => is_of_attempt(event),
            _ if name == "held" => event.kind() == v1::EventKind::JobUpdated,
            Value::Null | Value::Bool(false) => false,
            Value::Number(number) => number.as_u64() != Some(0),
            Value::String(text) => !text.is_empty() && text != "UNSPECIFIED",
            Value::Array(list) => !list.is_empty(),
            Value::Bool(true) | Value::Object(_) => true,
        });
    }
    Ok(value)
}

fn heading(wide: bool) -> Vec<String> {
    let more: &[&str] = if wide { &["REVISION", "BY"] } else { &[] };
    ["TIME", "KIND", "OBJECT", "UNIT", "POOL", "DETAIL"].iter().chain(more).map(|t| (*t).to_owned()).collect()
}

fn row(event: &v1::Event, wide: bool) -> Vec<String> {
    let unit = match event.number {
        0 if is_of_attempt(event) => event.unit.to_string(),
        0 => String::new(),
        number => format!("{}.{number}", event.unit),
    };
    let mut row = vec![
        time(event.happened_unix_ms),
        name_of::<v1::EventKind>(event.kind).to_owned(),
        object(event),
        unit,
        event.pool.clone(),
        detail(event),
    ];
    if wide {
        row.extend([event.revision.to_string(), event.principal.clone()]);
    }
    row
}

/// What an event is about, as `describe` takes it.
fn object(event: &v1::Event) -> String {
    if event.job_id > 0 {
        return match event.job_name.as_str() {
            "" => event.job_id.to_string(),
            name => job_name(&event.queue, name),
        };
    }
    match (event.queue.as_str(), event.node.as_str()) {
        ("", "") => format!("pool/{}", event.pool),
        ("", node) => format!("node/{node}"),
        (queue, _) => format!("queue/{queue}"),
    }
}

/// What only events of this kind have, in a word.
fn detail(event: &v1::Event) -> String {
    let outcome = event.outcome.as_ref().map(short_outcome);
    let retry = event.retry_unix_ms.map(|at| format!("retry-at-{}", time(at)));
    let phase = (event.job_phase > 0).then(|| name_of::<v1::JobPhase>(event.job_phase).to_owned());
    let connectivity =
        (event.connectivity > 0).then(|| name_of::<v1::Connectivity>(event.connectivity).to_owned());
    let range = |range: &v1::UnitRange| unit_range(range.first, range.last);
    let units: Vec<String> = event.units.iter().map(range).collect();
    let units = (!units.is_empty()).then(|| units.join(","));
    let drained = event.drain.as_ref().map_or("NONE", |drain| name_of::<v1::DrainMode>(drain.mode));
    let drain = (event.kind() == v1::EventKind::PoolDrainChanged).then(|| drained.to_owned());
    let until = event.until_unix_ms.map(|at| format!("until-{}", time(at)));
    let reason = (!event.reason.is_empty()).then(|| event.reason.clone());
    let held = event.held.then(|| "HELD".to_owned());
    let all = [phase, outcome, reason, units, connectivity, drain, held, retry, until];
    all.into_iter().flatten().collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_one_by_one_or_by_what_they_are_about() {
        let count = |text: &str| parse_kinds(text).map(|kinds| kinds.0.len());
        assert_eq!(count("job_ended"), Ok(1));
        assert_eq!(count("Pool-Connectivity-Changed"), Ok(1));
        assert_eq!((count("job"), count("attempt"), count("queue")), (Ok(5), Ok(5), Ok(3)));
        assert_eq!((count("pool"), count("node")), (Ok(8), Ok(6)));
        let all = all_kinds().count();
        assert_eq!(all, 5 + 5 + 3 + 8 + 6, "every kind belongs to a word");
        assert!(count("jobs").is_err_and(|error| error.contains("node_released")));
        assert!(count("pool_").is_err());
    }

    #[test]
    fn events_are_named_by_what_they_are_about() {
        let event = |job_id, job_name: &str, queue: &str, pool: &str, node: &str| v1::Event {
            job_id,
            job_name: job_name.to_owned(),
            queue: queue.to_owned(),
            pool: pool.to_owned(),
            node: node.to_owned(),
            ..v1::Event::default()
        };
        assert_eq!(object(&event(7, "a", "default", "gz", "")), "job/a");
        assert_eq!(object(&event(7, "a", "team/x", "", "")), "job/team/x/a");
        assert_eq!(object(&event(7, "", "", "", "")), "7", "a job that is not in the archive any more");
        assert_eq!(object(&event(0, "", "team", "", "")), "queue/team");
        assert_eq!(object(&event(0, "", "", "gz", "")), "pool/gz");
        assert_eq!(object(&event(0, "", "", "gz", "n1")), "node/n1");
    }
}
