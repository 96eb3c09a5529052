//! Counts of live jobs by what they have in common.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;
use strum::VariantArray;

use super::{JobFilter, Query};
use crate::broker::Broker;
use crate::model::id::{JobId, QueueId};
use crate::model::limit::PAGE_MAX;
use crate::state::State;
use crate::state::job::Job;
use crate::state::job_filter::LiveFilter;
use crate::state::pool::Pool;
use crate::state::view::JobPhase;

/// What one step of a count looks at, jobs and the places where they are: a few milliseconds.
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
        let by_place = self.by.iter().any(|by| matches!(by, CountBy::Pool | CountBy::Region));
        // Texts are compared and made once per group, not once per job.
        let mut counts: FxHashMap<Vec<u64>, u64> = FxHashMap::default();
        let (mut texts, mut next, mut key) = (IndexedTexts::default(), None, Vec::new());
        for job in state.jobs_before(self.before) {
            if filter.looked_at() >= COUNTED_MAX {
                break;
            }
            next = Some(job.id);
            if !filter.matches(job) {
                continue;
            }
            let pools = if by_place { filter.pools_of(job) } else { BTreeSet::new() };
            let places = pools.into_iter().map(|pool| state.pool(pool));
            let places = places.chain([None]).take(if by_place { usize::MAX } else { 1 });
            let mut counted = BTreeSet::new();
            for place in places {
                // The last one stands for a job that is nowhere.
                if place.is_none() && !counted.is_empty() {
                    continue;
                }
                key.clear();
                key.extend(self.by.iter().map(|by| value_of(by, job, place, state, &mut texts)));
                // Two pools of one region are one place, if only regions are asked for.
                if by_place && !counted.insert(key.clone()) {
                    continue;
                }
                // Most jobs are of a group that is counted already.
                match counts.get_mut(&key[..]) {
                    Some(count) => *count += 1,
                    None => drop(counts.insert(key.clone(), 1)),
                }
            }
        }
        let text = |by: &CountBy, value: u64| match by {
            CountBy::Queue => {
                let queue = u32::try_from(value).ok().and_then(|id| state.queue(QueueId(id)));
                queue.map_or_else(String::new, |queue| queue.spec.name.clone())
            }
            CountBy::Phase => {
                let phase = JobPhase::VARIANTS.iter().find(|phase| **phase as u64 == value);
                phase.map_or("", Into::into).to_owned()
            }
            CountBy::Pool | CountBy::Region | CountBy::Outcome | CountBy::Label(_) => texts.text(value),
        };
        let values = |key: &[u64]| self.by.iter().zip(key).map(|(by, value)| text(by, *value)).collect();
        JobCounts {
            counts: counts.iter().map(|(key, count)| (values(key), *count)).collect(),
            next: next.filter(|_| filter.looked_at() >= COUNTED_MAX),
        }
    }
}

/// A number for a job's value of what is counted by, at one of the places where it is.
fn value_of(by: &CountBy, job: &Job, place: Option<&Pool>, state: &State, texts: &mut IndexedTexts) -> u64 {
    match by {
        CountBy::Queue => job.queue.0.into(),
        CountBy::Phase => job.phase() as u64,
        CountBy::Pool => texts.index_of(place.map_or("", |pool| &pool.spec.name)),
        CountBy::Region => {
            texts.index_of(&place.map_or_else(String::new, |pool| pool.spec.region.to_string()))
        }
        CountBy::Outcome => {
            texts.index_of(job.first_failure.as_ref().map_or("", |failure| failure.kind.code()))
        }
        CountBy::Label(label) => {
            let value = state.spec(job.spec).and_then(|entry| entry.spec.labels.get(label));
            texts.index_of(value.map_or("", String::as_str))
        }
    }
}

/// Numbers for texts.
#[derive(Default)]
struct IndexedTexts {
    indices: FxHashMap<String, u64>,
    texts: Vec<String>,
}

impl IndexedTexts {
    fn index_of(&mut self, text: &str) -> u64 {
        if let Some(index) = self.indices.get(text) {
            return *index;
        }
        let index = self.texts.len() as u64;
        self.indices.insert(text.to_owned(), index);
        self.texts.push(text.to_owned());
        index
    }

    fn text(&self, index: u64) -> String {
        let text = usize::try_from(index).ok().and_then(|index| self.texts.get(index));
        text.cloned().unwrap_or_default()
    }
}
