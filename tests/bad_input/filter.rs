//! Filters of jobs with bad values.

use weir::api::proto::v1;

use crate::table::{Call, Case, invalid};

/// A filter with one thing changed.
fn filter(change: impl FnOnce(&mut v1::JobFilter)) -> Option<v1::JobFilter> {
    let mut filter = v1::JobFilter::default();
    change(&mut filter);
    Some(filter)
}

fn label(key: &str, operator: i32, values: usize) -> v1::LabelRequirement {
    v1::LabelRequirement { key: key.to_owned(), operator, values: vec!["v".to_owned(); values] }
}

/// Bad values of each method that takes a filter, and of what else it takes.
pub fn cases() -> Vec<Case> {
    let list = |filter| Call::ListJobs(v1::ListJobsRequest { filter, ..Default::default() });
    let count = |filter| Call::CountJobs(v1::CountJobsRequest { filter, by: Vec::new() });
    let mut all = of_filter(list);
    all.extend(of_filter(count));
    all.extend(of_filter(|filter| Call::Cancel(v1::CancelRequest { filter, ..Default::default() })));
    let page = |page_size, page_token: &str, view| {
        let page_token = page_token.to_owned();
        Call::ListJobs(v1::ListJobsRequest { page_size, page_token, view, filter: None })
    };
    let token_rule = "is not the next_page_token of an earlier page with the same filter";
    all.extend([
        invalid(page(1_001, "", 0), "page_size", "1001 is not within 0 and 1000"),
        invalid(page(0, "next\u{7}", 0), "page_token", "\"next\\u{7}\" is not the next_page_token"),
        invalid(page(0, "-1", 0), "page_token", token_rule),
        // Of another filter.
        invalid(page(0, "7.00000000", 0), "page_token", token_rule),
        invalid(page(0, "", 77), "view", "77 is not a view: use NAME (1), BASIC (2) or FULL (3)"),
    ]);
    let by = |by| {
        let by = vec![v1::CountBy { by: Some(v1::count_by::By::Dimension(1)) }, v1::CountBy { by }];
        Call::CountJobs(v1::CountJobsRequest { by, ..Default::default() })
    };
    let dimension = |value| by(Some(v1::count_by::By::Dimension(value)));
    let many = Call::CountJobs(v1::CountJobsRequest {
        by: vec![v1::CountBy { by: Some(v1::count_by::By::Dimension(1)) }; 5],
        ..Default::default()
    });
    all.extend([
        invalid(many, "by", "5 entries, 0 to 4 are allowed"),
        invalid(by(None), "by[1]", "set `dimension`"),
        invalid(dimension(0), "by[1].dimension", "0 is not a dimension"),
        invalid(dimension(77), "by[1].dimension", "77 is not a dimension"),
        invalid(
            by(Some(v1::count_by::By::Label("a b".to_owned()))),
            "by[1].label",
            "\"a b\" can't be the key",
        ),
    ]);
    all
}

fn of_filter(call: impl Fn(Option<v1::JobFilter>) -> Call) -> Vec<Case> {
    let with_label = |label: v1::LabelRequirement| {
        let first = v1::LabelRequirement::equal("first", "v");
        call(filter(|f| f.labels = vec![first, label]))
    };
    let texts = |count| vec!["x".to_owned(); count];
    let case = |change: fn(&mut v1::JobFilter), field: &str, expected: &str| {
        invalid(call(filter(change)), field, expected)
    };
    vec![
        case(|f| f.queues = vec!["nope".to_owned()], "filter.queues[0]", "queue \"nope\" does not exist"),
        case(
            |f| (f.with_ended, f.queues) = (true, vec!["default".to_owned(), "x\u{7}".to_owned()]),
            "filter.queues[1]",
            "queue \"x\\u{7}\" does not exist",
        ),
        invalid(call(filter(|f| f.queues = texts(65))), "filter.queues", "65 entries, 0 to 64"),
        case(|f| f.phases = vec![0], "filter.phases[0]", "0 is not a job phase"),
        case(|f| f.phases = vec![1, 77], "filter.phases[1]", "77 is not a job phase"),
        case(|f| f.phases = vec![1; 100_000], "filter.phases", "100000 entries, 0 to 8"),
        case(|f| f.labels = vec![label("k", 1, 1); 65], "filter.labels", "65 entries, 0 to 64"),
        case(|f| f.labels = vec![label("k", 1, 33); 2], "filter.labels", "66 values in all, 0 to 64"),
        invalid(with_label(label("", 1, 1)), "filter.labels[1].key", "\"\" can't be the key of a label"),
        invalid(
            with_label(label("a b", 1, 1)),
            "filter.labels[1].key",
            "\"a b\" can't be the key of a label",
        ),
        invalid(with_label(label("k", 77, 1)), "filter.labels[1].operator", "77 is not an operator"),
        invalid(with_label(label("k", 1, 0)), "filter.labels[1].values", "0 values, 1 to 64 are allowed"),
        invalid(with_label(label("k", 2, 65)), "filter.labels", "66 values in all, 0 to 64"),
        invalid(with_label(label("k", 3, 1)), "filter.labels[1].values", "1 values, 0 to 0 are allowed"),
        invalid(
            with_label(v1::LabelRequirement::equal("k", "a b")),
            "filter.labels[1].values",
            "\"a b\" can't be the value of a label",
        ),
        case(|f| f.name_prefix = "n".repeat(254), "filter.name_prefix", "254 bytes, at most 253"),
        case(|f| f.submitted_by = "n".repeat(254), "filter.submitted_by", "254 bytes, at most 253"),
        case(|f| f.pools = vec!["nope".to_owned()], "filter.pools[0]", "pool \"nope\" does not exist"),
        invalid(call(filter(|f| f.pools = texts(65))), "filter.pools", "65 entries, 0 to 64"),
        case(|f| f.regions = vec!["Mars".to_owned()], "filter.regions[0]", "\"Mars\""),
        invalid(call(filter(|f| f.regions = texts(65))), "filter.regions", "65 entries, 0 to 64"),
        case(
            |f| f.outcomes = vec!["Failed".to_owned(), "Succeeded".to_owned()],
            "filter.outcomes[1]",
            "\"Succeeded\" is not the code of a failure: use Failed, OutOfMemory",
        ),
        invalid(call(filter(|f| f.outcomes = texts(65))), "filter.outcomes", "65 entries, 0 to 64"),
        case(
            |f| (f.submitted_from_unix_ms, f.submitted_before_unix_ms) = (7, 7),
            "filter.submitted_before_unix_ms",
            "7 is not after the range's beginning, 7",
        ),
        case(
            |f| (f.ended_from_unix_ms, f.ended_before_unix_ms) = (7, 6),
            "filter.ended_before_unix_ms",
            "6 is not after the range's beginning, 7",
        ),
    ]
}
