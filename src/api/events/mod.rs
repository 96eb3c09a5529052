//! EventService: streams what happened, as the journal has it.

mod filter;
mod names;
mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tonic::{Request, Response, Status};

use super::connection::identity_of;
use super::convert::{self, Subject};
use super::error;
use super::job::Jobs;
use super::page::fill_message;
use super::proto::v1;
use super::response_stream::{ResponseSender, ResponseStream, spawn_response};
use super::watch::REOPEN_WAIT;
use crate::broker::query::GetStatus;
use crate::model::id::{JobId, Revision};
use crate::model::limit::{CHUNK_BYTES_MAX, PAGE_MAX};
use crate::model::time::Timestamp;
use crate::runtime::handle::EventPage;
use crate::state::event::EventRecord;
use crate::state::view::JobView;
use filter::Filter;
use names::Names;
use page::read;

/// Implements EventService.
#[derive(Clone)]
pub struct Events {
    pub(super) jobs: Jobs,
}

/// How often a stream that follows reads at most: a busy broker commits hundreds of times a second.
const READ_INTERVAL: Duration = Duration::from_millis(20);
/// After so long without a selected event the cursor alone is sent, if it has moved.
const CURSOR_INTERVAL: Duration = Duration::from_secs(5);

#[tonic::async_trait]
impl v1::event_service_server::EventService for Events {
    type StreamEventsStream = ResponseStream<v1::StreamEventsResponse>;

    async fn stream_events(
        &self,
        request: Request<v1::StreamEventsRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        // A name that a reader has gone on with may be deleted by now.
        let is_new = message.after_revision.is_none();
        let filter = filter::read(&self.jobs, &message.filter.clone().unwrap_or_default(), is_new).await?;
        let beginning = self.beginning(&message).await?;
        let journal = self.jobs.journal().await?;
        let reader = Reader {
            jobs: self.jobs.clone(),
            filter,
            from: Timestamp(message.from_unix_ms),
            names: Names::new(journal),
            follow: message.follow,
        };
        Ok(Response::new(spawn_response(
            &identity,
            |sender| async move { reader.send(beginning, &sender).await },
        )))
    }
}

impl Events {
    /// Where a stream begins.
    async fn beginning(&self, message: &v1::StreamEventsRequest) -> Result<Beginning, Status> {
        let broker = &self.jobs.broker;
        let Some(after) = message.after_revision.map(Revision) else {
            let at = Timestamp(message.from_unix_ms);
            let after = broker.archive_page(move |archive| archive.revision_before(at)).await?;
            return Ok(Beginning { after, is_cursor: false });
        };
        if message.from_unix_ms > 0 {
            let description = "can't be given beside after_revision";
            return Err(error::invalid(convert::invalid("from_unix_ms", description)));
        }
        let (end, _) = broker.query(GetStatus).await?;
        if after > end {
            let description = format!(
                "{after} is beyond the journal's end, {end}: it is the cursor of another journal, or of a newer copy"
            );
            return Err(error::invalid(convert::invalid("after_revision", description)));
        }
        let floor = read(&self.jobs, after).await?.floor;
        if after < floor {
            return Err(error::compacted(after, floor));
        }
        Ok(Beginning { after, is_cursor: true })
    }
}

/// Where a stream begins.
struct Beginning {
    after: Revision,
    /// The reader has seen all that is before.
    is_cursor: bool,
}

/// Reads the journal for one stream.
struct Reader {
    jobs: Jobs,
    filter: Filter,
    /// Earlier events are left out: a batch of events may have some.
    from: Timestamp,
    names: Names,
    follow: bool,
}

impl Reader {
    async fn send(
        mut self,
        beginning: Beginning,
        sender: &ResponseSender<v1::StreamEventsResponse>,
    ) -> Result<(), Status> {
        let Beginning { mut after, is_cursor } = beginning;
        let (mut sent, mut sent_at, mut end) = (None::<Revision>, Instant::now(), None::<Revision>);
        let mut removed_before = None;
        if !is_cursor {
            // The oldest event may be removed meanwhile: without a cursor, the next one is the beginning.
            let page = read(&self.jobs, after.max(read(&self.jobs, after).await?.floor)).await?;
            after = after.max(page.floor);
            let is_floor = after == page.floor && after > Revision(0);
            let oldest = page.events.first().map(|event| event.at.0);
            removed_before = oldest.filter(|at| is_floor && *at > self.from.0);
        }
        loop {
            let watchers = self.jobs.broker.watchers();
            let mut updates = watchers.subscribe();
            // What is later may not be durable.
            let durable = *updates.borrow_and_update();
            let through = if self.follow { durable } else { *end.get_or_insert(durable) };
            while after < through {
                let mut permit = sender.reserve().await?;
                let EventPage { floor, mut events } = read(&self.jobs, after).await?;
                if after < floor {
                    return Err(error::compacted(after, floor));
                }
                events.retain(|event| event.revision <= through);
                let last = events.last().map(|event| event.revision);
                after = last.ok_or_else(|| error::internal("the journal ends before a durable event"))?;
                let mut rest = self.select(events).await?;
                while !rest.is_empty() {
                    let events = fill_message(rest.iter().cloned(), CHUNK_BYTES_MAX);
                    rest.drain(..events.len());
                    let last = events.last().map_or(after.0, |event| event.revision);
                    let revision = if rest.is_empty() { after.0 } else { last };
                    let removed_before_unix_ms = removed_before.take();
                    let message = v1::StreamEventsResponse { events, revision, removed_before_unix_ms };
                    sender.send(permit, message).await?;
                    (sent, sent_at) = (Some(Revision(revision)), Instant::now());
                    permit = sender.reserve().await?;
                }
            }
            // Nothing is selected: the cursor alone moves, now and then.
            let is_behind = sent != Some(after);
            if is_behind && (!self.follow || sent.is_none() || sent_at.elapsed() >= CURSOR_INTERVAL) {
                let permit = sender.reserve().await?;
                let removed_before_unix_ms = removed_before.take();
                let events = Vec::new();
                let message = v1::StreamEventsResponse { events, revision: after.0, removed_before_unix_ms };
                sender.send(permit, message).await?;
                (sent, sent_at) = (Some(after), Instant::now());
            }
            if !self.follow {
                return Ok(());
            }
            tokio::select! {
                changed = updates.changed() => {
                    // Without updates the broker is reopening its journal, after which it has new watchers.
                    tokio::time::sleep(if changed.is_ok() { READ_INTERVAL } else { REOPEN_WAIT }).await;
                }
                () = tokio::time::sleep(CURSOR_INTERVAL), if sent != Some(after) => {}
                () = sender.closed() => return Ok(()),
            }
        }
    }

    /// The events that the filter selects, as messages.
    async fn select(&mut self, events: Vec<EventRecord>) -> Result<Vec<v1::Event>, Status> {
        let wanted = |event: &&EventRecord| {
            let job = convert::job_of(&event.event);
            event.at >= self.from
                && convert::event_kind(&event.event).is_some_and(|kind| self.filter.has_kind(kind))
                && job.is_none_or(|job| self.filter.has_job(job))
        };
        let ids: BTreeSet<JobId> =
            events.iter().filter(wanted).filter_map(|event| convert::job_of(&event.event)).collect();
        let jobs = self.find_jobs(ids).await?;
        let mut selected = Vec::new();
        for record in events {
            self.names.note(&record.event);
            let Some(kind) = convert::event_kind(&record.event).filter(|kind| self.filter.has_kind(*kind))
            else {
                continue;
            };
            let job = convert::job_of(&record.event);
            if record.at < self.from
                || !self.filter.selects_job(job, job.and_then(|id| jobs.get(&id)))
                || !self.filter.selects_queue_event(&record.event)
            {
                continue;
            }
            let place = self.names.place(&self.jobs, &record).await?;
            if !self.filter.selects_pool(&place.pool) {
                continue;
            }
            let job = job.and_then(|id| jobs.get(&id));
            selected.push(convert::event_message(&record, kind, &Subject { job, place: &place }));
        }
        Ok(selected)
    }

    async fn find_jobs(&self, ids: BTreeSet<JobId>) -> Result<BTreeMap<JobId, JobView>, Status> {
        let (ids, mut jobs) = (Vec::from_iter(ids), BTreeMap::new());
        for ids in ids.chunks(PAGE_MAX) {
            jobs.extend(self.jobs.find_all(ids).await?.into_iter().map(|job| (job.id, job)));
        }
        Ok(jobs)
    }
}
