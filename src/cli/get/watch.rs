//! `weir get --watch`: what changes, as it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use super::list::List;
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::cli::Failure;
use crate::cli::connect::{RETRY_TIMEOUT, is_transient, with_retries};
use crate::cli::job_list::JobFilter;
use crate::cli::output::{Columns, Format, print, print_value, report, value_of};

/// Between two lists of objects that the broker sends no changes of.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Before a watch is begun again after its connection broke.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Prints the jobs, and then each that changes, until the reader of standard output is gone.
pub(super) async fn jobs(
    client: &Client,
    output: Format,
    list: &List<v1::Job>,
    only: Option<v1::JobRef>,
    filter: Option<JobFilter>,
) -> Result<u8, Failure> {
    let selected = |job: &&v1::Job| filter.as_ref().is_none_or(|filter| filter.matches(job));
    let mut widths = Columns::default();
    // The first list comes in several messages; their rows are aligned with each other.
    let mut rows = vec![list.heading.clone()];
    let mut from_revision = 0;
    let mut pools = BTreeMap::new();
    loop {
        let request = v1::WatchJobsRequest { job: only.clone(), from_revision };
        let call = || async { client.jobs().watch_jobs(request.clone()).await };
        let mut changes = with_retries(RETRY_TIMEOUT, call).await?.into_inner();
        loop {
            match changes.message().await {
                Ok(Some(mut change)) => {
                    from_revision = change.revision;
                    for job in &mut change.jobs {
                        keep_pools(&mut pools, job);
                    }
                    for job in change.jobs.iter().filter(selected) {
                        match output {
                            Format::Table | Format::Wide => rows.push((list.row)(job)),
                            Format::Name => print(&format!("{}\n", (list.name)(job)))?,
                            Format::Json | Format::Yaml => print_value(output, (list.value)(job)?)?,
                        }
                    }
                    if from_revision > 0 && matches!(output, Format::Table | Format::Wide) {
                        print(&widths.format(&std::mem::take(&mut rows)))?;
                    }
                }
                Ok(None) => break,
                Err(status) if is_transient(&status) => break,
                Err(status) => return Err(status.into()),
            }
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Gives a job that has ended the pools where it ran when it was seen before: changes have those of live attempts.
fn keep_pools(pools: &mut BTreeMap<u64, Vec<String>>, job: &mut v1::Job) {
    if job.ended_unix_ms.is_some() {
        let before = pools.remove(&job.id).unwrap_or_default();
        if job.pools.is_empty() {
            job.pools = before;
        }
    } else if !job.pools.is_empty() {
        pools.insert(job.id, job.pools.clone());
    }
}

/// Prints a list, and then each of its objects that differs from when it was printed, or is no longer there.
pub(super) async fn objects<T: Serialize>(
    output: Format,
    list: &List<T>,
    mut read: impl AsyncFnMut() -> Result<Vec<T>, Failure>,
) -> Result<u8, Failure> {
    let mut printed: BTreeMap<String, (String, serde_json::Value)> = BTreeMap::new();
    let mut widths = Columns::default();
    let mut rows = vec![list.heading.clone()];
    loop {
        let objects = match read().await {
            Ok(objects) => objects,
            // The broker may be restarting, and what was printed stays true.
            Err(failure) if failure.code == crate::cli::exit::UNREACHABLE && !printed.is_empty() => {
                tokio::time::sleep(POLL_INTERVAL).await;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        let keys: BTreeSet<String> = objects.iter().map(list.key).collect();
        printed.retain(|key, (name, _)| {
            let is_listed = keys.contains(key);
            if !is_listed {
                report(&format!("{name} is no longer listed"));
            }
            is_listed
        });
        for object in &objects {
            let (key, value) = ((list.key)(object), value_of(object)?);
            if printed.get(&key).is_some_and(|(_, before)| *before == value) {
                continue;
            }
            match output {
                Format::Table | Format::Wide => rows.push((list.row)(object)),
                Format::Name => print(&format!("{}\n", (list.name)(object)))?,
                Format::Json | Format::Yaml => print_value(output, (list.value)(object)?)?,
            }
            printed.insert(key, ((list.name)(object), value));
        }
        if matches!(output, Format::Table | Format::Wide) {
            print(&widths.format(&std::mem::take(&mut rows)))?;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
