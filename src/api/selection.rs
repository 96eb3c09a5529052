//! Selection of jobs: filters, pages of live and ended jobs together, and counts.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use sha2::{Digest, Sha256};
use tonic::Status;

use super::convert::{self, Invalid, parse_phase};
use super::error;
use super::job::Jobs;
use super::page::{check_count, fill_message, page_size, read_token};
use super::proto::v1;
use crate::broker::query::{
    CountBy, CountJobs, GetPool, GetQueue, GetStatus, JobFilter, JobPage, ListJobs, ListQueues,
};
use crate::model::attempt::OutcomeKind;
use crate::model::id::{JobId, Revision};
use crate::model::limit::{COUNT_GROUPS_MAX, FILTER_ENTRIES_MAX, LABEL_LEN_MAX, PAGE_BYTES_MAX, PAGE_MAX};
use crate::model::region::RegionCode;
use crate::model::text;
use crate::model::time::Timestamp;
use crate::model::validate::quote;
use crate::runtime::handle::{Archive, FinishedJobs};
use crate::state::job_filter::{LabelOperator, LabelRequirement, TimeRange};
use crate::state::view::JobView;

/// Phases in a filter: as many as there are, and one more.
const PHASES_MAX: usize = 8;
/// What jobs are counted by at once.
const COUNT_BY_MAX: usize = 4;
/// Pages of the broker and of the archive that one page of a list is made from: a filter that selects few jobs does not
/// make its client ask again and again.
const ROUNDS_MAX: usize = 16;

/// Jobs that a request selects.
struct Selection {
    filter: JobFilter,
    with_live: bool,
    with_ended: bool,
}

impl Jobs {
    pub(super) async fn list(&self, message: v1::ListJobsRequest) -> Result<v1::ListJobsResponse, Status> {
        let limit = page_size(message.page_size)?;
        let view = v1::JobView::try_from(message.view).map_err(|_| {
            let description = format!("{} is not a view: use NAME (1), BASIC (2) or FULL (3)", message.view);
            error::invalid(convert::invalid("view", description))
        })?;
        let asked = message.filter.clone().unwrap_or_default();
        // A token is of its filter: with another one it would leave jobs out.
        let filter_hash = hash(&asked);
        let before = read_token(&message.page_token, " with the same filter", |text| {
            let (id, hash) = text.split_once('.')?;
            (hash == filter_hash).then_some(())?;
            id.parse().ok().map(JobId)
        })?;
        let selection = self.selection(&asked).await?;
        let (revision, mut jobs, next) =
            self.page(&selection, before.unwrap_or(JobId(u64::MAX)), limit).await?;
        self.add_pools(&mut jobs).await?;
        let all = jobs.len();
        let messages = jobs.iter().map(|job| shown(convert::job_message(job), view));
        let mut jobs = fill_message(messages, PAGE_BYTES_MAX);
        self.name_dependencies(&mut jobs).await;
        let jobs = fill_message(jobs.into_iter(), PAGE_BYTES_MAX);
        // Jobs that did not fit are on the next page.
        let next = if jobs.len() < all { jobs.last().map(|job| JobId(job.id)) } else { next };
        Ok(v1::ListJobsResponse {
            jobs,
            next_page_token: next.map(|id| format!("{id}.{filter_hash}")).unwrap_or_default(),
            revision: revision.0,
        })
    }

    pub(super) async fn count(&self, message: v1::CountJobsRequest) -> Result<v1::CountJobsResponse, Status> {
        check_count("by", "entries", message.by.len(), 0, COUNT_BY_MAX)?;
        let by = message.by.iter().enumerate().map(|(index, by)| count_by(&format!("by[{index}]"), by));
        let by: Vec<CountBy> = by.collect::<Result<_, _>>().map_err(error::invalid)?;
        let selection = self.selection(&message.filter.unwrap_or_default()).await?;
        let mut counts: BTreeMap<Vec<String>, u64> = BTreeMap::new();
        let (mut revision, _) = self.broker.query(GetStatus).await?;
        let mut before = Some(JobId(u64::MAX)).filter(|_| selection.with_live);
        let mut is_first = true;
        while let Some(below) = before {
            let query = CountJobs { filter: selection.filter.clone(), by: by.clone(), before: below };
            let (at, part) = self.broker.query(query).await?;
            // The first step counts all, unless they are tens of thousands.
            revision = if std::mem::take(&mut is_first) { at } else { revision };
            for (values, count) in part.counts {
                *counts.entry(values).or_default() += count;
            }
            check_groups(&counts)?;
            before = part.next;
        }
        let mut before = Some(JobId(u64::MAX)).filter(|_| selection.with_ended);
        while let Some(below) = before {
            let page = self.ended(&selection.filter, below, PAGE_MAX).await?;
            // What ended later was counted while it was live.
            let ended = page.jobs.iter().filter(|job| job.revision <= revision);
            let mut jobs: Vec<JobView> = ended.map(|job| job.view()).collect();
            if by.iter().any(|by| matches!(by, CountBy::Pool | CountBy::Region)) {
                self.add_pools(&mut jobs).await?;
            }
            for values in jobs.iter().flat_map(|job| values_of(job, &by)) {
                *counts.entry(values).or_default() += 1;
            }
            check_groups(&counts)?;
            before = page.next;
        }
        let counts = counts.into_iter().map(|(values, count)| v1::JobCount { values, count });
        Ok(v1::CountJobsResponse { counts: counts.collect(), revision: revision.0 })
    }
}

impl Jobs {
    /// A page of the selected jobs, newest first, and below which id the next one begins.
    async fn page(
        &self,
        selection: &Selection,
        mut before: JobId,
        limit: usize,
    ) -> Result<(Revision, Vec<JobView>, Option<JobId>), Status> {
        let (mut revision, mut found) = (Revision(0), Vec::new());
        for _ in 0..ROUNDS_MAX {
            let (at, more, next) = self.part(selection, before, limit - found.len()).await?;
            revision = at;
            found.extend(more);
            let Some(next) = next else { return Ok((revision, found, None)) };
            before = next;
            if found.len() >= limit {
                break;
            }
        }
        Ok((revision, found, Some(before)))
    }

    /// A part of a page: one of live jobs merged with one of ended jobs.
    async fn part(
        &self,
        selection: &Selection,
        before: JobId,
        limit: usize,
    ) -> Result<(Revision, Vec<JobView>, Option<JobId>), Status> {
        let filter = selection.filter.clone();
        let (revision, live) = match selection.with_live {
            true => self.broker.query(ListJobs { filter, before, limit }).await?,
            false => (self.broker.query(GetStatus).await?.0, JobPage { jobs: Vec::new(), next: None }),
        };
        let ended = match selection.with_ended {
            true => self.ended(&selection.filter, before, limit).await?,
            false => FinishedJobs::default(),
        };
        // Both lists are complete down to the larger of the ids at which they stop.
        let floor = live.next.max(ended.next);
        let mut jobs: Vec<JobView> = ended.jobs.iter().map(|job| job.view()).collect();
        let fresh =
            live.jobs.into_iter().filter(|job| !ended.jobs.iter().any(|other| other.job.id == job.id));
        jobs.extend(fresh);
        jobs.retain(|job| floor.is_none_or(|floor| job.id >= floor));
        jobs.sort_by_key(|job| std::cmp::Reverse(job.id));
        let cut = jobs.len() > limit;
        jobs.truncate(limit);
        let next = if cut { jobs.last().map(|job| job.id) } else { floor };
        Ok((revision, jobs, next))
    }

    /// A page of the selected jobs that have not ended, newest first, and below which id the next one begins.
    pub(super) async fn live_page(
        &self,
        message: &v1::JobFilter,
        before: JobId,
        limit: usize,
    ) -> Result<(Revision, Vec<JobView>, Option<JobId>), Status> {
        let selection = Selection { with_ended: false, ..self.selection(message).await? };
        self.page(&selection, before, limit).await
    }

    async fn ended(&self, filter: &JobFilter, before: JobId, limit: usize) -> Result<FinishedJobs, Status> {
        let filter = filter.clone();
        let read = move |archive: &mut dyn Archive| archive.jobs(&filter, before, limit);
        Ok(self.broker.archive_page(read).await?)
    }

    /// Reads a filter. Its queues are looked up: one that does not exist is probably a typing error.
    async fn selection(&self, message: &v1::JobFilter) -> Result<Selection, Status> {
        for (field, len) in [
            ("filter.queues", message.queues.len()),
            ("filter.labels", message.labels.len()),
            ("filter.pools", message.pools.len()),
            ("filter.regions", message.regions.len()),
            ("filter.outcomes", message.outcomes.len()),
        ] {
            check_count(field, "entries", len, 0, FILTER_ENTRIES_MAX)?;
        }
        // The filter is evaluated for every job that a page looks at.
        let values = message.labels.iter().map(|label| label.values.len()).sum();
        check_count("filter.labels", "values in all", values, 0, FILTER_ENTRIES_MAX)?;
        check_count("filter.phases", "entries", message.phases.len(), 0, PHASES_MAX)?;
        let mut filter = read_filter(message).map_err(error::invalid)?;
        let with_ended = message.with_ended || filter.names_ended();
        for (index, name) in message.queues.iter().enumerate() {
            self.check_queue(&format!("filter.queues[{index}]"), name, with_ended).await?;
        }
        for (index, name) in message.pools.iter().enumerate() {
            self.check_pool(&format!("filter.pools[{index}]"), name, with_ended).await?;
        }
        if message.subtree && !filter.queues.is_empty() {
            self.add_queues_below(&mut filter.queues).await?;
        }
        Ok(Selection {
            with_live: filter.selects_live(),
            with_ended: with_ended
                && (filter.phases.is_empty() || filter.phases.iter().any(|phase| phase.is_end())),
            filter,
        })
    }

    /// Refuses a queue that does not exist. Jobs that have ended may be of a queue that is deleted.
    pub(super) async fn check_queue(&self, field: &str, name: &str, with_ended: bool) -> Result<(), Status> {
        let filter = JobFilter { queues: [name.to_owned()].into(), ..JobFilter::default() };
        if self.broker.query(GetQueue(name.to_owned())).await?.1.is_some()
            || with_ended && self.is_any_ended(&filter).await?
        {
            return Ok(());
        }
        let description = format!("queue {} does not exist", quote(name));
        Err(error::invalid(convert::invalid(field, description)))
    }

    /// The same for a pool.
    pub(super) async fn check_pool(&self, field: &str, name: &str, with_ended: bool) -> Result<(), Status> {
        let filter = JobFilter { pools: vec![name.to_owned()], ..JobFilter::default() };
        if self.broker.query(GetPool(name.to_owned())).await?.1.is_some()
            || with_ended && self.is_any_ended(&filter).await?
        {
            return Ok(());
        }
        let description = format!("pool {} does not exist", quote(name));
        Err(error::invalid(convert::invalid(field, description)))
    }

    /// Returns whether a filter selects any job that has ended.
    async fn is_any_ended(&self, filter: &JobFilter) -> Result<bool, Status> {
        Ok(!self.ended(filter, JobId(u64::MAX), 1).await?.jobs.is_empty())
    }

    async fn add_queues_below(&self, queues: &mut BTreeSet<String>) -> Result<(), Status> {
        let (_, all) = self.broker.query(ListQueues).await?;
        // A queue's name is its path.
        let is_below = |name: &String| name.match_indices('/').any(|(end, _)| queues.contains(&name[..end]));
        let below: Vec<String> =
            all.into_iter().map(|queue| queue.queue.spec.name).filter(is_below).collect();
        queues.extend(below);
        Ok(())
    }
}

/// Reads a filter but for what must be looked up.
fn read_filter(message: &v1::JobFilter) -> Result<JobFilter, Invalid> {
    let each = |field: &str, index| format!("filter.{field}[{index}]");
    let phases = message.phases.iter().enumerate();
    let phases = phases.map(|(index, phase)| parse_phase(&each("phases", index), *phase));
    let regions = message.regions.iter().enumerate();
    let regions = regions.map(|(index, region)| convert::region(&each("regions", index), region));
    let outcomes = message.outcomes.iter().enumerate().map(|(index, code)| {
        let found = OutcomeKind::ALL.into_iter().skip(1).find(|kind| kind.code() == code);
        found.ok_or_else(|| {
            let codes: Vec<&str> = OutcomeKind::ALL.map(OutcomeKind::code).into_iter().skip(1).collect();
            let description =
                format!("{} is not the code of a failure: use {}", quote(code), codes.join(", "));
            convert::invalid(&each("outcomes", index), description)
        })
    });
    let labels = message.labels.iter().enumerate();
    let labels = labels.map(|(index, label)| label_requirement(&each("labels", index), label));
    for (field, text) in
        [("filter.name_prefix", &message.name_prefix), ("filter.submitted_by", &message.submitted_by)]
    {
        if text.len() > LABEL_LEN_MAX {
            let description = format!("{} bytes, at most {LABEL_LEN_MAX} are allowed", text.len());
            return Err(convert::invalid(field, description));
        }
    }
    Ok(JobFilter {
        queues: message.queues.iter().cloned().collect(),
        phases: phases.collect::<Result<_, _>>()?,
        labels: labels.collect::<Result<_, _>>()?,
        name_prefix: message.name_prefix.clone(),
        submitted_by: (!message.submitted_by.is_empty()).then(|| convert::principal(&message.submitted_by)),
        pools: message.pools.clone(),
        regions: regions.collect::<Result<_, _>>()?,
        outcomes: outcomes.collect::<Result<_, _>>()?,
        submitted: range(
            "filter.submitted_before_unix_ms",
            message.submitted_from_unix_ms,
            message.submitted_before_unix_ms,
        )?,
        ended: range(
            "filter.ended_before_unix_ms",
            message.ended_from_unix_ms,
            message.ended_before_unix_ms,
        )?,
    })
}

/// A range, of which 0 leaves an end open.
fn range(field: &str, from: u64, before: u64) -> Result<TimeRange, Invalid> {
    if before > 0 && before <= from {
        return Err(convert::invalid(field, format!("{before} is not after the range's beginning, {from}")));
    }
    let bound = |at: u64| (at > 0).then_some(Timestamp(at));
    Ok(TimeRange { from: bound(from), before: bound(before) })
}

/// Reads what a label must be like.
pub(super) fn label_requirement(
    field: &str,
    message: &v1::LabelRequirement,
) -> Result<LabelRequirement, Invalid> {
    let operator = v1::LabelOperator::try_from(message.operator).map_err(|_| {
        let allowed = "use IN (1), NOT_IN (2), EXISTS (3) or DOES_NOT_EXIST (4)";
        convert::invalid(
            &format!("{field}.operator"),
            format!("{} is not an operator: {allowed}", message.operator),
        )
    })?;
    if message.key.is_empty() || !text::is_label(&message.key) {
        let description = format!("{} can't be the key of a label", quote(&message.key));
        return Err(convert::invalid(&format!("{field}.key"), description));
    }
    let allowed = match operator {
        v1::LabelOperator::Exists | v1::LabelOperator::DoesNotExist => 0..=0,
        _ => 1..=FILTER_ENTRIES_MAX,
    };
    let (field, count) = (format!("{field}.values"), message.values.len());
    if !allowed.contains(&count) {
        let (least, most) = allowed.into_inner();
        return Err(convert::invalid(&field, format!("{count} values, {least} to {most} are allowed")));
    }
    if let Some(value) = message.values.iter().find(|value| !text::is_label(value)) {
        return Err(convert::invalid(&field, format!("{} can't be the value of a label", quote(value))));
    }
    let operator = match operator {
        v1::LabelOperator::Unspecified | v1::LabelOperator::In => LabelOperator::In(message.values.clone()),
        v1::LabelOperator::NotIn => LabelOperator::NotIn(message.values.clone()),
        v1::LabelOperator::Exists => LabelOperator::Exists,
        v1::LabelOperator::DoesNotExist => LabelOperator::DoesNotExist,
    };
    Ok(LabelRequirement { key: message.key.clone(), operator })
}

fn count_by(field: &str, message: &v1::CountBy) -> Result<CountBy, Invalid> {
    let unknown = || {
        convert::invalid(field, "set `dimension` to one of QUEUE, PHASE, POOL, REGION, OUTCOME, or `label`")
    };
    match message.by.as_ref().ok_or_else(unknown)? {
        v1::count_by::By::Label(key) if !key.is_empty() && text::is_label(key) => {
            Ok(CountBy::Label(key.clone()))
        }
        v1::count_by::By::Label(key) => {
            let description = format!("{} can't be the key of a label", quote(key));
            Err(convert::invalid(&format!("{field}.label"), description))
        }
        v1::count_by::By::Dimension(value) => {
            let described =
                || convert::invalid(&format!("{field}.dimension"), format!("{value} is not a dimension"));
            match v1::CountDimension::try_from(*value).map_err(|_| described())? {
                v1::CountDimension::Unspecified => Err(described()),
                v1::CountDimension::Queue => Ok(CountBy::Queue),
                v1::CountDimension::Phase => Ok(CountBy::Phase),
                v1::CountDimension::Pool => Ok(CountBy::Pool),
                v1::CountDimension::Region => Ok(CountBy::Region),
                v1::CountDimension::Outcome => Ok(CountBy::Outcome),
            }
        }
    }
}

/// Refuses a count by what nearly every job has a value of its own.
fn check_groups(counts: &BTreeMap<Vec<String>, u64>) -> Result<(), Status> {
    if counts.len() <= COUNT_GROUPS_MAX {
        return Ok(());
    }
    let description = format!(
        "the jobs have more than {COUNT_GROUPS_MAX} different values of it: select fewer by a filter"
    );
    Err(error::invalid(convert::invalid("by", description)))
}

/// The values by which an ended job is counted; several if it ran in several places.
fn values_of(job: &JobView, by: &[CountBy]) -> BTreeSet<Vec<String>> {
    let by_place = by.iter().any(|by| matches!(by, CountBy::Pool | CountBy::Region));
    let places = job.pools.iter().zip(&job.regions).map(Some).filter(|_| by_place);
    let is_nowhere = !by_place || job.pools.is_empty();
    let places = places.chain(is_nowhere.then_some(None));
    let value = |by: &CountBy, place: Option<(&String, &RegionCode)>| match by {
        CountBy::Queue => job.queue.clone(),
        CountBy::Phase => <&str>::from(job.phase).to_owned(),
        CountBy::Outcome => job.failure.as_ref().map_or("", |failure| failure.kind.code()).to_owned(),
        CountBy::Label(key) => job.spec.labels.get(key).cloned().unwrap_or_default(),
        CountBy::Pool => place.map_or_else(String::new, |(pool, _)| pool.clone()),
        CountBy::Region => place.map_or_else(String::new, |(_, region)| region.to_string()),
    };
    places.map(|place| by.iter().map(|by| value(by, place)).collect()).collect()
}

/// A job with as much as a view has.
pub(super) fn shown(job: v1::Job, view: v1::JobView) -> v1::Job {
    match view {
        v1::JobView::Full => job,
        v1::JobView::Unspecified | v1::JobView::Basic => v1::Job { spec: None, ..job },
        v1::JobView::Name => {
            v1::Job { id: job.id, name: job.name, queue: job.queue, phase: job.phase, ..v1::Job::default() }
        }
    }
}

/// A short text that other filters don't have.
fn hash(filter: &v1::JobFilter) -> String {
    let hash = Sha256::digest(filter.encode_to_vec());
    data_encoding::HEXLOWER.encode(&hash[..4])
}
