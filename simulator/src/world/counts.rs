//! How often each kind of thing happened: a kind that never comes up is not tested.

use std::collections::BTreeMap;

use weir::model::attempt::OutcomeKind;
use weir::model::reason::{JobReason, PoolReason};
use weir::state::event::Event;
use weir::state::rejection::Rejection;

/// How often each kind of thing happened.
#[derive(Clone, Debug)]
pub struct Counts {
    pub events: [u64; Event::KINDS.len()],
    pub rejections: [u64; Rejection::MANUAL.len()],
    pub outcomes: BTreeMap<&'static str, u64>,
    pub reasons: BTreeMap<&'static str, u64>,
    /// Attempts ordered in a line behind another.
    pub lined_up: u64,
    /// Writers that found another in their place.
    pub deposed: u64,
    /// Brokers that started on an older copy of the journal, and those of them that noticed.
    pub older_disks: u64,
    pub older_disks_noticed: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            events: [0; Event::KINDS.len()],
            rejections: [0; Rejection::MANUAL.len()],
            outcomes: BTreeMap::new(),
            reasons: BTreeMap::new(),
            lined_up: 0,
            deposed: 0,
            older_disks: 0,
            older_disks_noticed: 0,
        }
    }
}

impl Counts {
    pub(crate) fn event(&mut self, event: &Event) {
        self.events[event.kind()] += 1;
        if let Event::AttemptOrdered { order } = event {
            self.lined_up += u64::from(order.after.is_some());
        }
        if let Event::AttemptEnded { ended, .. } = event {
            *self.outcomes.entry(ended.outcome.kind.code()).or_default() += 1;
        }
    }

    pub(crate) fn rejection(&mut self, rejection: &Rejection) {
        self.rejections[rejection.kind()] += 1;
    }

    pub(crate) fn reason(&mut self, code: &'static str) {
        *self.reasons.entry(code).or_default() += 1;
    }

    /// Adds another seed's counts.
    pub fn add(&mut self, other: &Self) {
        self.events.iter_mut().zip(other.events).for_each(|(sum, more)| *sum += more);
        self.rejections.iter_mut().zip(other.rejections).for_each(|(sum, more)| *sum += more);
        for (sum, more) in [
            (&mut self.lined_up, other.lined_up),
            (&mut self.deposed, other.deposed),
            (&mut self.older_disks, other.older_disks),
            (&mut self.older_disks_noticed, other.older_disks_noticed),
        ] {
            *sum += more;
        }
        for (sums, more) in [(&mut self.outcomes, &other.outcomes), (&mut self.reasons, &other.reasons)] {
            more.iter().for_each(|(kind, count)| *sums.entry(kind).or_default() += count);
        }
    }

    /// Every kind with its count, by what it is a kind of.
    pub fn kinds(&self) -> [(&'static str, Vec<(&'static str, u64)>); 5] {
        let of = |counts: &BTreeMap<&'static str, u64>, code: &'static str| {
            (code, counts.get(code).copied().unwrap_or_default())
        };
        let manual = |entry: &(&'static str, &'static str, &'static str)| of(&self.reasons, entry.0);
        let reasons = PoolReason::manual().iter().chain(JobReason::manual());
        [
            ("events", Event::KINDS.into_iter().zip(self.events).collect()),
            ("rejections", Rejection::MANUAL.iter().map(|entry| entry.0).zip(self.rejections).collect()),
            ("outcomes", OutcomeKind::ALL.iter().map(|kind| of(&self.outcomes, kind.code())).collect()),
            ("reasons", reasons.map(manual).collect()),
            (
                "cases",
                vec![
                    ("attempts in lines", self.lined_up),
                    ("deposed writers", self.deposed),
                    ("older disks", self.older_disks),
                    ("older disks noticed", self.older_disks_noticed),
                ],
            ),
        ]
    }

    /// Kinds that never came up.
    pub fn unreached(&self) -> Vec<&'static str> {
        let kinds = self.kinds().into_iter().flat_map(|(_, kinds)| kinds);
        kinds.filter(|(_, count)| *count == 0).map(|(kind, _)| kind).collect()
    }
}
