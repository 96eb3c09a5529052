//! Filters of ended jobs: an archive finds what looking at every job finds.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Writer, each};
use crate::journal::Archive;
use crate::model::attempt::{Outcome, OutcomeKind};
use crate::model::id::JobId;
use crate::model::region::RegionCode;
use crate::model::spec::Labels;
use crate::model::time::Timestamp;
use crate::state::apply::{ArchiveRow, FinishedAttempt, FinishedJob};
use crate::state::job::{JobEnd, Principal};
use crate::state::job_filter::{JobFilter, LabelOperator, LabelRequirement, TimeRange};
use crate::state::view::JobPhase;

const JOBS: u64 = 600;
const HOUR_MS: u64 = 3_600_000;
const QUEUES: [&str; 3] = ["default", "team", "team/vision"];
const POOLS: [(&str, &str); 3] = [("yubei", "CN-CQ"), ("hami", "CN-XJ"), ("guian", "CN-GZ")];
const OUTCOMES: [OutcomeKind; 2] = [OutcomeKind::Failed, OutcomeKind::TimedOut];
const VALUES: [&str; 3] = ["a", "b", ""];

fn pick<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

fn some<T: Copy>(rng: &mut StdRng, from: &[T]) -> Vec<T> {
    let all = from.iter().copied();
    if rng.random_ratio(2, 3) { Vec::new() } else { all.filter(|_| rng.random_ratio(1, 2)).collect() }
}

/// Random jobs that have ended, each with up to three attempts, made after two that ran.
fn random_rows(rng: &mut StdRng, job: &FinishedJob, attempt: &FinishedAttempt) -> Vec<ArchiveRow> {
    let mut rows = Vec::new();
    for id in 1_000..1_000 + JOBS {
        let (mut job, mut labels) = (job.clone(), Labels::new());
        for key in ["k", "l"] {
            if rng.random_ratio(1, 2) {
                labels.insert(key.to_owned(), pick(rng, &VALUES).to_owned());
            }
        }
        Arc::make_mut(&mut job.spec).labels = labels;
        (job.job.id, job.queue) = (JobId(id), pick(rng, &QUEUES).to_owned());
        job.job.name = format!("{}-{id}", pick(rng, &["train", "test"])).into();
        job.job.submitted_at = Timestamp((id - 999) * 60_000);
        job.ended_at = Timestamp(job.job.submitted_at.0 + rng.random_range(0..100 * HOUR_MS));
        job.job.submitted_by = pick(rng, &[Principal::Anonymous, Principal::System].each_ref()).clone();
        job.end = pick(rng, &[JobEnd::Succeeded, JobEnd::Failed, JobEnd::Cancelled]);
        job.job.first_failure =
            (job.end == JobEnd::Failed).then(|| Box::new(Outcome::plain(pick(rng, &OUTCOMES), "")));
        for unit in 0..rng.random_range(0..3) {
            let (pool, region) = pick(rng, &POOLS);
            let mut attempt = attempt.clone();
            (attempt.attempt.unit.job, attempt.attempt.unit.unit) = (JobId(id), unit);
            (attempt.pool, attempt.region) = (pool.to_owned(), RegionCode::parse(region).unwrap());
            rows.push(ArchiveRow::Attempt(attempt));
        }
        rows.push(ArchiveRow::Job(job));
    }
    rows
}

fn random_filter(rng: &mut StdRng) -> JobFilter {
    let texts = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let labels = (0..rng.random_range(0..3)).map(|_| {
        let values = texts(vec![pick(rng, &VALUES), pick(rng, &VALUES)]);
        let operator = match rng.random_range(0..4) {
            0 => LabelOperator::In(values),
            1 => LabelOperator::NotIn(values),
            2 => LabelOperator::Exists,
            _ => LabelOperator::DoesNotExist,
        };
        LabelRequirement { key: pick(rng, &["k", "l", "m"]).to_owned(), operator }
    });
    let labels = labels.collect();
    let range = |rng: &mut StdRng, up_to: u64| {
        if rng.random_ratio(2, 3) {
            return TimeRange::default();
        }
        let from = rng.random_range(0..up_to);
        let before = rng.random_ratio(1, 2).then(|| Timestamp(from + rng.random_range(1..up_to)));
        TimeRange { from: Some(Timestamp(from)), before }
    };
    JobFilter {
        queues: texts(some(rng, &QUEUES)).into_iter().collect(),
        phases: some(rng, &[JobPhase::Succeeded, JobPhase::Failed, JobPhase::Cancelled]),
        labels,
        name_prefix: pick(rng, &["", "", "tr", "train-10", "x"]).to_owned(),
        submitted_by: rng.random_ratio(1, 4).then_some(Principal::Anonymous),
        pools: texts(some(rng, &POOLS.map(|(pool, _)| pool))),
        regions: some(rng, &POOLS.map(|(_, region)| RegionCode::parse(region).unwrap())),
        outcomes: some(rng, &OUTCOMES),
        submitted: range(rng, JOBS * 60_000),
        ended: range(rng, 110 * HOUR_MS),
    }
}

/// The ids of all selected jobs, page by page.
fn found(archive: &mut dyn Archive, filter: &JobFilter, limit: usize) -> Vec<JobId> {
    let (mut before, mut found) = (JobId(u64::MAX), Vec::new());
    loop {
        let page = archive.jobs(filter, before, limit).unwrap();
        assert!(page.jobs.len() <= limit);
        found.extend(page.jobs.iter().map(|job| job.job.id));
        let Some(next) = page.next else { return found };
        assert!(next < before || found.is_empty() && next <= before, "{next} is not before {before}");
        before = next;
    }
}

#[test]
fn every_filter_finds_what_looking_at_every_job_finds() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        let first = writer.finish("first", "", 1);
        let mut archive = writer.journal.archive().unwrap();
        let job = archive.job(first).unwrap().unwrap();
        let attempt = archive.attempts(first, (0, 0), 1).unwrap().remove(0);
        let mut rng = StdRng::seed_from_u64(3);
        let rows = random_rows(&mut rng, &job, &attempt);
        writer.fixture.archive.extend(rows.clone());
        writer.flush().unwrap();
        archive.check().unwrap();
        let mut selected = 0;
        for round in 0..400 {
            let filter = random_filter(&mut rng);
            let attempts = |id: JobId| {
                rows.iter().filter_map(move |row| match row {
                    ArchiveRow::Attempt(attempt) if attempt.attempt.unit.job == id => Some(attempt),
                    _ => None,
                })
            };
            let jobs = rows.iter().rev().filter_map(|row| match row {
                ArchiveRow::Job(job) => Some(job),
                ArchiveRow::Attempt(_) => None,
            });
            let expected = jobs.filter(|job| {
                let mut pools = attempts(job.job.id).filter(|attempt| filter.pools.contains(&attempt.pool));
                let mut regions =
                    attempts(job.job.id).filter(|attempt| filter.regions.contains(&attempt.region));
                filter.matches_anywhere(&job.view())
                    && (filter.pools.is_empty() || pools.next().is_some())
                    && (filter.regions.is_empty() || regions.next().is_some())
            });
            let mut expected: Vec<JobId> = expected.map(|job| job.job.id).collect();
            let is_first = filter == JobFilter::default();
            expected.extend(is_first.then_some(first));
            let limit = rng.random_range(1..200);
            let mut got = found(&mut *archive, &filter, limit);
            got.retain(|id| *id != first || is_first);
            assert_eq!(got, expected, "round {round}: {filter:?}");
            selected += expected.len();
        }
        assert!(selected > 4_000, "only {selected} jobs were selected");
        // A range without an end that a client can write, and more seeks than one page makes.
        let ended = TimeRange { from: Some(Timestamp(1)), before: Some(Timestamp(u64::MAX)) };
        let all = found(&mut *archive, &JobFilter::default(), 100);
        assert_eq!(found(&mut *archive, &JobFilter { ended, ..JobFilter::default() }, 100), all);
        let values = (0..64).map(|value| value.to_string()).chain(["a".to_owned()]).collect();
        let label = LabelRequirement { key: "k".to_owned(), operator: LabelOperator::In(values) };
        let one = JobFilter { labels: vec![label.clone()], ..JobFilter::default() };
        let many = JobFilter { labels: vec![label; 64], ..JobFilter::default() };
        assert_eq!(found(&mut *archive, &many, 100), found(&mut *archive, &one, 100));
        // What is removed is found by no filter any more, and leaves nothing in the index.
        while writer.journal.prune_archive(Timestamp(JOBS * 60_000 + 50 * HOUR_MS)).unwrap() {
            archive.check().unwrap();
        }
        archive.check().unwrap();
        let all = found(&mut *archive, &JobFilter::default(), 100);
        let by_label = LabelRequirement { key: "k".to_owned(), operator: LabelOperator::Exists };
        let by_label =
            found(&mut *archive, &JobFilter { labels: vec![by_label], ..JobFilter::default() }, 100);
        assert!(!by_label.is_empty() && by_label.len() < all.len());
        assert!(by_label.iter().all(|id| all.contains(id)));
    });
}
