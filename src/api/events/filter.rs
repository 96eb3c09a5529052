//! Which events a stream has.

use std::collections::BTreeSet;

use tonic::Status;

use super::page;
use crate::api::job::Jobs;
use crate::api::page::check_count;
use crate::api::proto::v1;
use crate::api::selection::label_requirement;
use crate::api::{convert, error};
use crate::model::id::JobId;
use crate::model::limit::FILTER_ENTRIES_MAX;
use crate::model::time::Timestamp;
use crate::state::event::Event;
use crate::state::job_filter::LabelRequirement;
use crate::state::view::JobView;

/// What events must be about. Empty fields select all.
pub(super) struct Filter {
    kinds: BTreeSet<v1::EventKind>,
    queues: Vec<String>,
    subtree: bool,
    job: Option<JobId>,
    labels: Vec<LabelRequirement>,
    pools: Vec<String>,
}

/// Reads a filter, and looks up what it names: what does not exist is probably a typing error.
/// Queues and pools are only looked up if `is_new`.
pub(super) async fn read(jobs: &Jobs, message: &v1::EventFilter, is_new: bool) -> Result<Filter, Status> {
    for (field, len) in [
        ("filter.kinds", message.kinds.len()),
        ("filter.queues", message.queues.len()),
        ("filter.labels", message.labels.len()),
        ("filter.pools", message.pools.len()),
    ] {
        check_count(field, "entries", len, 0, FILTER_ENTRIES_MAX)?;
    }
    let values = message.labels.iter().map(|label| label.values.len()).sum();
    check_count("filter.labels", "values in all", values, 0, FILTER_ENTRIES_MAX)?;
    let kinds = message.kinds.iter().enumerate();
    let kinds =
        kinds.map(|(index, kind)| convert::parse_event_kind(&format!("filter.kinds[{index}]"), *kind));
    let kinds = kinds.collect::<Result<_, _>>().map_err(error::invalid)?;
    let labels = message.labels.iter().enumerate();
    let labels = labels.map(|(index, label)| label_requirement(&format!("filter.labels[{index}]"), label));
    let labels = labels.collect::<Result<_, _>>().map_err(error::invalid)?;
    for (index, name) in message.queues.iter().enumerate().filter(|_| is_new) {
        if let Err(status) = jobs.check_queue(&format!("filter.queues[{index}]"), name, true).await
            && !is_deleted(
                jobs,
                |event| matches!(event, Event::QueueDeleted { name: n, .. } if **n == **name),
            )
            .await?
        {
            return Err(status);
        }
    }
    for (index, name) in message.pools.iter().enumerate().filter(|_| is_new) {
        if let Err(status) = jobs.check_pool(&format!("filter.pools[{index}]"), name, true).await
            && !is_deleted(jobs, |event| matches!(event, Event::PoolDeleted { name: n, .. } if **n == **name))
                .await?
        {
            return Err(status);
        }
    }
    let job = match &message.job {
        Some(_) => Some(jobs.find("filter.job", message.job.as_ref()).await?.id),
        None => None,
    };
    let (queues, pools) = (message.queues.clone(), message.pools.clone());
    Ok(Filter { kinds, queues, subtree: message.subtree, job, labels, pools })
}

/// Returns whether the retained events have the deletion that is sought. Reads all of them, which takes up to seconds: only
/// for a name that is not there.
async fn is_deleted(jobs: &Jobs, is_sought: impl Fn(&Event) -> bool) -> Result<bool, Status> {
    let mut after = jobs.broker.archive_page(|archive| archive.revision_before(Timestamp(0))).await?;
    loop {
        let page = page::read(jobs, after).await?;
        if page.events.iter().any(|record| is_sought(&record.event)) {
            return Ok(true);
        }
        let last = page.events.last().map(|event| event.revision);
        match last.or(Some(page.floor).filter(|floor| *floor > after)) {
            Some(next) => after = next,
            None => return Ok(false),
        }
    }
}

impl Filter {
    pub(super) fn has_kind(&self, kind: v1::EventKind) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&kind)
    }

    pub(super) fn has_job(&self, job: JobId) -> bool {
        self.job.is_none_or(|only| only == job)
    }

    /// Returns whether an event of a job, or of none, is selected by what is known of the job.
    pub(super) fn selects_job(&self, id: Option<JobId>, job: Option<&JobView>) -> bool {
        let Some(id) = id else { return self.job.is_none() && self.labels.is_empty() };
        self.has_job(id)
            && (self.labels.is_empty()
                || job.is_some_and(|job| self.labels.iter().all(|l| l.is_met(&job.spec))))
            && (self.queues.is_empty() || job.is_some_and(|job| self.has_queue(&job.queue)))
    }

    /// Returns whether an event of no job is selected by its queue.
    pub(super) fn selects_queue_event(&self, event: &Event) -> bool {
        self.queues.is_empty()
            || convert::job_of(event).is_some()
            || convert::queue_of(event).is_some_and(|queue| self.has_queue(queue))
    }

    pub(super) fn selects_pool(&self, pool: &str) -> bool {
        self.pools.is_empty() || self.pools.iter().any(|other| other == pool)
    }

    fn has_queue(&self, name: &str) -> bool {
        // A queue's name is its path.
        let is_below = |above: &str| name.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
        self.queues.iter().any(|queue| queue == name || self.subtree && is_below(queue))
    }
}
