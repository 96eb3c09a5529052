//! Selection of jobs: filters that find few among many ended jobs, and counts of many live ones.
//!
//! A million jobs wait in ten queues; printed are the time and the longest step of a count by queue and phase, and of a
//! list by a label that ten jobs have. Then an archive is filled with ended jobs, and filters with at most 100 hits are
//! listed: printed are the pages of each, and the time of the slowest page; last, how long it takes to make the index for
//! a journal that has none. `JOBS` and `ENDED` are the numbers of jobs.
//!
//!     JOBS=1000000 ENDED=10000000 cargo bench --bench selection

use std::sync::Arc;
use std::time::{Duration, Instant};

use weir::broker::query::{CountBy, CountJobs, ListJobs};
use weir::broker::{Broker, CallId, Effect, Input, Query, Random};
use weir::journal::sqlite::SqliteJournal;
use weir::journal::{Batch, Journal};
use weir::model::id::{JobId, Revision, Term};
use weir::model::spec::minimal;
use weir::model::time::Timestamp;
use weir::state::apply::{ArchiveRow, FinishedJob};
use weir::state::command::{Command, Request, Submission};
use weir::state::job::{JobEnd, Principal};
use weir::state::job_filter::{JobFilter, LabelOperator, LabelRequirement, TimeRange};
use weir::state::view::JobPhase;

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const QUEUES: u64 = 10;
/// Rows in one append.
const BATCH: u64 = 512;

fn number_of(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A broker whose disk is always done at once.
struct Bench {
    broker: Broker,
    rows: Vec<ArchiveRow>,
}

impl Bench {
    fn new() -> Self {
        let random = Random { writer_session: 1, journal: 1, key: 1 };
        Self { broker: Broker::new(Default::default(), Term(1), random, NOW), rows: Vec::new() }
    }

    fn request(&mut self, command: Command) {
        let request = Request { principal: Principal::Anonymous, token: None, command };
        let mut inputs = vec![Input::Request { call: CallId(1), request }];
        while let Some(input) = inputs.pop() {
            for effect in self.broker.step(NOW, input) {
                match effect {
                    Effect::Append { after, events, archive } => {
                        self.rows.extend(archive);
                        let through = events.last().map_or(after, |record| record.revision);
                        inputs.push(Input::Appended { through });
                    }
                    Effect::WriteChunk { .. } => inputs.push(Input::ChunkWritten),
                    Effect::Reply { result, .. } => drop(result.expect("an accepted command")),
                    _ => {}
                }
            }
        }
    }

    /// Asks, and returns the answer and how long it took.
    fn ask<Q: Query>(&self, query: Q) -> (Q::Answer, Duration) {
        let begun = Instant::now();
        let answer = query.answer(&self.broker);
        (answer, begun.elapsed())
    }
}

fn label(key: &str, value: &str) -> LabelRequirement {
    LabelRequirement { key: key.to_owned(), operator: LabelOperator::In(vec![value.to_owned()]) }
}

fn live(jobs: u64) {
    let mut bench = Bench::new();
    for queue in 0..QUEUES {
        let spec = weir::model::queue::default_settings(&format!("queue-{queue}"));
        bench.request(Command::CreateQueue { spec });
    }
    for first in (0..jobs).step_by(1_000) {
        let submissions = (first..jobs.min(first + 1_000)).map(|at| {
            let mut spec = minimal();
            spec.labels.insert("rare".to_owned(), (at % (jobs / 10).max(1)).to_string());
            Submission {
                name: String::new(),
                name_prefix: "job".to_owned(),
                queue: format!("queue-{}", at % QUEUES),
                spec,
                allow_pending: true,
                held: false,
            }
        });
        bench.request(Command::Submit { jobs: submissions.collect() });
    }
    let by = vec![CountBy::Queue, CountBy::Phase];
    let (mut before, mut total, mut longest, mut counted) =
        (JobId(u64::MAX), Duration::ZERO, Duration::ZERO, 0);
    loop {
        let query = CountJobs { filter: JobFilter::default(), by: by.clone(), before };
        let (part, took) = bench.ask(query);
        (total, longest) = (total + took, longest.max(took));
        counted += part.counts.values().sum::<u64>();
        let Some(next) = part.next else { break };
        before = next;
    }
    assert_eq!(counted, jobs);
    println!("{jobs} live jobs counted by queue and phase: {total:.1?}, longest step {longest:.1?}");
    let filter = JobFilter { labels: vec![label("rare", "1")], ..JobFilter::default() };
    let (mut before, mut total, mut longest, mut found) =
        (JobId(u64::MAX), Duration::ZERO, Duration::ZERO, 0);
    loop {
        let (page, took) = bench.ask(ListJobs { filter: filter.clone(), before, limit: 100 });
        (total, longest, found) = (total + took, longest.max(took), found + page.jobs.len());
        let Some(next) = page.next else { break };
        before = next;
    }
    println!("{found} of {jobs} live jobs listed by label: {total:.1?}, longest step {longest:.1?}");
}

/// A job that has ended, as the archive stores it.
fn ended_job() -> FinishedJob {
    let mut bench = Bench::new();
    let submission = Submission {
        name: "job".to_owned(),
        name_prefix: String::new(),
        queue: String::new(),
        spec: minimal(),
        allow_pending: true,
        held: false,
    };
    bench.request(Command::Submit { jobs: vec![submission] });
    bench.request(Command::Cancel { jobs: vec![JobId(1)], reason: String::new() });
    let job = bench.rows.into_iter().find_map(|row| match row {
        ArchiveRow::Job(job) => Some(job),
        ArchiveRow::Attempt(_) => None,
    });
    job.expect("the cancelled job")
}

fn archive(jobs: u64) {
    let directory = tempfile::TempDir::new().expect("a folder");
    let mut journal = SqliteJournal::open(directory.path()).expect("a journal");
    let term = journal.begin_term().expect("a term");
    let template = ended_job();
    let rare = (jobs / 100).max(1);
    let begun = Instant::now();
    for first in (1..=jobs).step_by(BATCH as usize) {
        let rows = (first..=jobs.min(first + BATCH - 1)).map(|id| {
            let mut job = template.clone();
            let labels = &mut Arc::make_mut(&mut job.spec).labels;
            labels.insert("team".to_owned(), format!("team-{}", id % 7));
            labels.insert("run".to_owned(), (id % rare).to_string());
            (job.job.id, job.job.name) = (JobId(id), format!("job-{id}").into());
            job.queue = format!("queue-{}", id % QUEUES);
            job.end = if id % rare == 5 { JobEnd::Failed } else { JobEnd::Succeeded };
            job.job.submitted_at = Timestamp(NOW.0 + id * 100);
            job.ended_at = Timestamp(NOW.0 + id * 100 + 50);
            ArchiveRow::Job(job)
        });
        let batch = Batch { term, after: Revision(0), events: Vec::new(), archive: rows.collect() };
        journal.append(&batch).expect("an append");
    }
    let took = begun.elapsed();
    let size = std::fs::metadata(directory.path().join("journal.sqlite")).map_or(0, |file| file.len());
    println!(
        "{jobs} ended jobs archived in {took:.1?}, {:.0} a second, {} bytes each",
        jobs as f64 / took.as_secs_f64(),
        size / jobs.max(1)
    );
    let mut archive = journal.archive().expect("an archive");
    let last = NOW.0 + jobs * 100;
    let team = || label("team", "team-3");
    let filters = [
        ("label", JobFilter { labels: vec![label("run", "5")], ..JobFilter::default() }),
        ("phase failed", JobFilter { phases: vec![JobPhase::Failed], ..JobFilter::default() }),
        (
            "phase failed, label, queue",
            JobFilter {
                phases: vec![JobPhase::Failed],
                labels: vec![team()],
                queues: ["queue-5".to_owned()].into(),
                ..JobFilter::default()
            },
        ),
        ("name", JobFilter { name_prefix: format!("job-{}", jobs / 2), ..JobFilter::default() }),
        (
            "two common labels that exclude each other",
            JobFilter { labels: vec![team(), label("team", "team-4")], ..JobFilter::default() },
        ),
        (
            "ended in ten seconds",
            JobFilter {
                ended: TimeRange { from: Some(Timestamp(last - 10_000)), before: None },
                ..JobFilter::default()
            },
        ),
        (
            "submitted in ten seconds, label",
            JobFilter {
                submitted: TimeRange {
                    from: Some(Timestamp(NOW.0 + jobs * 30)),
                    before: Some(Timestamp(NOW.0 + jobs * 30 + 10_000)),
                },
                labels: vec![team()],
                ..JobFilter::default()
            },
        ),
    ];
    for (what, filter) in filters {
        let (mut before, mut pages, mut found, mut slowest) = (JobId(u64::MAX), 0, 0, Duration::ZERO);
        loop {
            let begun = Instant::now();
            let page = archive.jobs(&filter, before, 100).expect("a page");
            (pages, found, slowest) = (pages + 1, found + page.jobs.len(), slowest.max(begun.elapsed()));
            match page.next {
                Some(next) if pages < 1_000 => before = next,
                _ => break,
            }
        }
        println!("{what}: {found} jobs on {pages} pages, the slowest took {slowest:.1?}");
    }
    let begun = Instant::now();
    archive.check().expect("an archive without damage");
    println!("check of the archive: {:.1?}", begun.elapsed());
    // As a build without the index left it.
    drop((archive, journal));
    let db = rusqlite::Connection::open(directory.path().join("journal.sqlite")).expect("the file");
    db.execute_batch("DELETE FROM archive_term; PRAGMA user_version = 2").expect("an older layout");
    drop(db);
    let begun = Instant::now();
    let journal = SqliteJournal::open(directory.path()).expect("the journal");
    println!("index made for all of them: {:.1?}", begun.elapsed());
    journal.archive().expect("an archive").check().expect("a whole index");
}

fn main() {
    live(number_of("JOBS", 1_000_000));
    archive(number_of("ENDED", 1_000_000));
}
