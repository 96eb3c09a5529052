//! Counts of live jobs by what they have in common.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;
use strum::VariantArray;

use super::{JobFilter, Query};
use crate::broker::Broker;
use crate::model::id::JobId;
use crate::model::limit::PAGE_MAX;
use crate::state::State;
use crate::state::job::Job;
use crate::state::job_filter::{LiveFilter, has_attempt};
use crate::state::view::JobPhase;

/// Live jobs that are counted in one step: a few milliseconds.
const COUNTED_MAX: usize = 16 * PAGE_MAX;

/// Asks how many live jobs with ids below `before` there are, by what they have in common.
#[derive(Clone, Debug)]
pub struct CountJobs {
    pub filter: JobFilter,
    pub by: Vec<CountBy>,
    pub before: JobId,
}

/// What jobs are counted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CountBy {
    Queue,
    Phase,
    /// Of live attempts: a job counts once in each of these pools, and as "" if it has none.
    Pool,
    /// The same for the regions of pools.
    Region,
    /// Of the first failed unit, or "".
    Outcome,
    /// The value of this label, or "".
    Label(String),
}

/// Numbers of jobs by their values of what they are counted by, and the id below which counting goes on, if it must.
#[derive(Clone, Debug, Default)]
pub struct JobCounts {
    pub counts: BTreeMap<Vec<String>, u64>,
    pub next: Option<JobId>,
}

impl Query for CountJobs {
    type Answer = JobCounts;

    fn answer(self, broker: &Broker) -> JobCounts {
        let state = &broker.state;
        let filter = LiveFilter::new(state, &self.filter);
        // Texts are compared and made once per group, not once per job.
        let mut counts: FxHashMap<Vec<u64>, u64> = FxHashMap::default();
        let mut texts = IndexedTexts::default();
        let (mut looked_at, mut next, mut key) = (0, None, Vec::with_capacity(self.by.len()));
        for job in state.jobs_before(self.before) {
            if looked_at >= COUNTED_MAX {
                break;
            }
            (looked_at, next) = (looked_at + 1, Some(job.id));
            if filter.matches(job) {
                key.clear();
                count(state, job, &self.by, &mut key, &mut texts, &mut counts);
            }
        }
        let text = |by: &CountBy, value: u64| match by {
            CountBy::Queue => {
                let queue = state.queues().find(|queue| u64::from(queue.id.0) == value);
                queue.map_or_else(String::new, |queue| queue.spec.name.clone())
            }
            CountBy::Phase => JobPhase::VARIANTS
                .iter()
                .find(|phase| **phase as u64 == value)
                .map_or("", Into::into)
                .to_owned(),
            CountBy::Pool | CountBy::Region | CountBy::Outcome | CountBy::Label(_) => texts.text(value),
        };
        let values = |key: &[u64]| self.by.iter().zip(key).map(|(by, value)| text(by, *value)).collect();
        JobCounts {
            counts: counts.iter().map(|(key, count)| (values(key), *count)).collect(),
            next: next.filter(|_| looked_at >= COUNTED_MAX),
        }
    }
}

/// Counts a job under `key` and its values of the rest of `by`: several if it is in several places.
fn count(
    state: &State,
    job: &Job,
    by: &[CountBy],
    key: &mut Vec<u64>,
    texts: &mut IndexedTexts,
    counts: &mut FxHashMap<Vec<u64>, u64>,
) {
    let Some((first, rest)) = by.split_first() else {
        // Most jobs are of a group that is counted already.
        match counts.get_mut(&key[..]) {
            Some(count) => *count += 1,
            None => drop(counts.insert(key.clone(), 1)),
        }
        return;
    };
    let value = match first {
        CountBy::Queue => job.queue.0.into(),
        CountBy::Phase => job.phase() as u64,
        CountBy::Outcome => {
            texts.index_of(job.first_failure.as_ref().map_or("", |failure| failure.kind.code()))
        }
        CountBy::Label(label) => {
            let value = state.spec(job.spec).and_then(|entry| entry.spec.labels.get(label));
            texts.index_of(value.map_or("", String::as_str))
        }
        CountBy::Pool | CountBy::Region => {
            let pools = state.pools().filter(|pool| has_attempt(pool, job.id));
            let mut places: BTreeSet<u64> = pools
                .map(|pool| match first {
                    CountBy::Region => texts.index_of(&pool.spec.region.to_string()),
                    _ => texts.index_of(&pool.spec.name),
                })
                .collect();
            if places.is_empty() {
                places.insert(texts.index_of(""));
            }
            for place in places {
                key.push(place);
                count(state, job, rest, key, texts, counts);
                key.pop();
            }
            return;
        }
    };
    key.push(value);
    count(state, job, rest, key, texts, counts);
    key.pop();
}

/// Numbers for texts.
#[derive(Default)]
struct IndexedTexts {
    indices: FxHashMap<String, u64>,
}

impl IndexedTexts {
    fn index_of(&mut self, text: &str) -> u64 {
        if let Some(index) = self.indices.get(text) {
            return *index;
        }
        let index = self.indices.len() as u64;
        self.indices.insert(text.to_owned(), index);
        index
    }

    fn text(&self, index: u64) -> String {
        let found = self.indices.iter().find(|(_, other)| **other == index);
        found.map_or_else(String::new, |(text, _)| text.clone())
    }
}
