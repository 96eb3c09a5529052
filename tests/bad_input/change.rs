//! Changes and cancels of jobs with bad values.

use tonic::Code;
use weir::api::proto::v1;

use crate::job::job_ref;
use crate::table::{Call, Case, invalid, refused};

fn cancel(change: impl FnOnce(&mut v1::CancelRequest)) -> Call {
    let mut request =
        v1::CancelRequest { jobs: job_ref(0, "", "waits").into_iter().collect(), ..Default::default() };
    change(&mut request);
    Call::Cancel(request)
}

fn units(ranges: &[(u32, u32)]) -> Vec<v1::UnitRange> {
    ranges.iter().map(|(first, last)| v1::UnitRange { first: *first, last: *last }).collect()
}

fn update(change: impl FnOnce(&mut v1::JobChange)) -> Call {
    let mut asked = v1::JobChange::default();
    change(&mut asked);
    Call::UpdateJob(v1::UpdateJobRequest {
        job: job_ref(0, "", "waits"),
        change: Some(asked),
        ..Default::default()
    })
}

pub fn cases() -> Vec<Case> {
    let revision = |revision| {
        let job = job_ref(0, "", "waits");
        let change = Some(v1::JobChange { priority: Some(7), ..Default::default() });
        Call::UpdateJob(v1::UpdateJobRequest { job, revision, change, ..Default::default() })
    };
    let token = Call::UpdateJob(v1::UpdateJobRequest {
        token: "t".repeat(129),
        job: job_ref(0, "", "waits"),
        change: Some(v1::JobChange::default()),
        ..Default::default()
    });
    let set_label = |key: &str, value: &str| {
        let (key, value) = (key.to_owned(), value.to_owned());
        update(move |change| drop(change.labels.insert(key, value)))
    };
    let removed = |keys: Vec<String>| update(move |change| change.labels_removed = keys);
    vec![
        invalid(cancel(|r| r.reason = "a\nb".to_owned()), "reason", "control or invisible characters"),
        invalid(cancel(|r| r.reason = "r".repeat(1_025)), "reason", "1025 bytes, at most 1024 are allowed"),
        invalid(
            cancel(|r| (r.reason, r.units) = ("why".to_owned(), units(&[(0, 0)]))),
            "reason",
            "can't be set beside `units`",
        ),
        invalid(
            cancel(|r| r.filter = Some(v1::JobFilter::default())),
            "jobs",
            "can't be set beside `filter`",
        ),
        invalid(
            cancel(|r| {
                r.jobs.clear();
                (r.filter, r.units) = (Some(v1::JobFilter::default()), units(&[(0, 0)]));
            }),
            "units",
            "can't be set beside `filter`",
        ),
        invalid(
            cancel(|r| {
                r.units = units(&[(0, 0)]);
                r.jobs.push(r.jobs[0].clone());
            }),
            "jobs",
            "2 jobs, `units` are those of one job",
        ),
        invalid(cancel(|r| r.units = units(&[(0, 0); 1_001])), "units", "1001 ranges, 0 to 1000 are allowed"),
        invalid(cancel(|r| r.units = units(&[(0, 5)])), "units", "5 is not within 0 and 0"),
        invalid(cancel(|r| r.units = units(&[(7, 6)])), "units[0].first", "7 is not within 0 and 6"),
        invalid(cancel(|r| r.units = units(&[(0, 0), (0, u32::MAX)])), "units[1].last", "4294967295 is not"),
        invalid(token, "token", "129 bytes"),
        refused(revision(1), "revision", Code::Aborted, "is at revision"),
        refused(revision(u64::MAX), "revision", Code::Aborted, "not 18446744073709551615"),
        invalid(update(|c| c.priority = Some(1_000_001)), "change.priority", "1000001 is not within"),
        invalid(update(|c| c.priority = Some(i32::MIN)), "change.priority", "is not within"),
        invalid(update(|c| c.max_run_ms = Some(u64::MAX)), "change.max_run_ms", "is not within"),
        invalid(set_label("no key", "v"), "change.labels", "is not letters"),
        invalid(set_label("k", "\u{202e}"), "change.labels", "is not letters"),
        invalid(
            update(|c| c.labels = (0..65).map(|n| (n.to_string(), String::new())).collect()),
            "change.labels",
            "65 labels, 0 to 64 are allowed",
        ),
        invalid(removed(vec!["no key".to_owned()]), "change.labels_removed", "is not letters"),
        invalid(removed(vec!["k".to_owned(); 65]), "change.labels_removed", "65 labels, 0 to 64 are allowed"),
    ]
}
