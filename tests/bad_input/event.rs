//! Events: bad cursors, and bad values in every field of the filter.

use tonic::Code;
use weir::api::proto::v1;

use crate::table::{Call, Case, invalid, refused};

fn stream(change: impl FnOnce(&mut v1::StreamEventsRequest)) -> Call {
    let mut request = v1::StreamEventsRequest::default();
    change(&mut request);
    Call::StreamEvents(request)
}

fn filtered(change: impl FnOnce(&mut v1::EventFilter)) -> Call {
    stream(|request| change(request.filter.get_or_insert_default()))
}

fn label(key: &str, operator: i32, values: &[&str]) -> v1::LabelRequirement {
    let values = values.iter().map(|value| (*value).to_owned()).collect();
    v1::LabelRequirement { key: key.to_owned(), operator, values }
}

/// Bad values of everything about events.
pub fn cases() -> Vec<Case> {
    let mut all = vec![
        invalid(
            stream(|r| r.after_revision = Some(u64::MAX)),
            "after_revision",
            "18446744073709551615 is beyond the journal's end",
        ),
        invalid(
            stream(|r| (r.after_revision, r.from_unix_ms) = (Some(1), 1)),
            "from_unix_ms",
            "can't be given beside after_revision",
        ),
        invalid(filtered(|f| f.kinds = vec![1, 0]), "filter.kinds[1]", "0 is not a kind of event"),
        invalid(filtered(|f| f.kinds = vec![999]), "filter.kinds[0]", "999 is not a kind of event"),
        invalid(filtered(|f| f.kinds = vec![1; 65]), "filter.kinds", "65 entries, 0 to 64 are allowed"),
        invalid(
            filtered(|f| f.labels = vec![label("", 1, &["a"])]),
            "filter.labels[0].key",
            "can't be the key",
        ),
        invalid(
            filtered(|f| f.labels = vec![label("a", 9, &["a"])]),
            "filter.labels[0].operator",
            "9 is not an operator",
        ),
        invalid(
            filtered(|f| f.labels = vec![label("a", 1, &[])]),
            "filter.labels[0].values",
            "0 values, 1 to 64",
        ),
        invalid(
            filtered(|f| f.labels = vec![label("a", 1, &["b"]); 65]),
            "filter.labels",
            "65 entries, 0 to 64 are allowed",
        ),
        invalid(filtered(|f| f.queues = vec!["default".to_owned(); 65]), "filter.queues", "65 entries"),
        invalid(filtered(|f| f.pools = vec!["normal".to_owned(); 65]), "filter.pools", "65 entries"),
    ];
    let job = |id, queue: &str, name: &str| {
        let job = v1::JobRef { id, queue: queue.to_owned(), name: name.to_owned() };
        filtered(|f| f.job = Some(job))
    };
    for reference in [job(0, "", ""), job(1, "", "a")] {
        all.push(invalid(reference, "filter.job", "identify the job by id, or by queue and name"));
    }
    for (field, reference) in
        [("id", job(999, "", "")), ("queue", job(0, "nope", "a")), ("name", job(0, "", "no"))]
    {
        all.push(refused(reference, &format!("filter.job.{field}"), Code::NotFound, "does not exist"));
    }
    for name in ["nope", "", "\u{202e}", &"n".repeat(1 << 20)] {
        let queue = filtered(|f| f.queues = vec!["default".to_owned(), name.to_owned()]);
        all.push(invalid(queue, "filter.queues[1]", "does not exist"));
        all.push(invalid(filtered(|f| f.pools = vec![name.to_owned()]), "filter.pools[0]", "does not exist"));
    }
    all
}
