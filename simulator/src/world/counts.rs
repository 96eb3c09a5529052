//! Coverage counters: how often each kind of event, rejection, outcome and reason occurred. A kind that never
//! occurs is not tested.

use std::collections::BTreeMap;

use strum::VariantNames;
use weir::model::attempt::OutcomeKind;
use weir::model::reason::table;
use weir::state::event::Event;
use weir::state::rejection::Rejection;

/// Coverage counters of one seed or a sweep.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Durable events, by kind.
    pub events: BTreeMap<&'static str, u64>,
    /// Rejections sent, by code.
    pub rejections: BTreeMap<&'static str, u64>,
    /// Outcomes of attempts, by code.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Reasons in answers to `why`, by code.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Attempts ordered behind another one on its claim.
    pub queued_behind_claim: u64,
    /// Writers whose append failed because a later term had begun.
    pub deposed: u64,
    /// Stale copies of the journal that a broker was started on.
    pub stale_copies: u64,
    /// Hellos after which a broker on a stale copy had detected it.
    pub stale_copies_detected: u64,
    /// Brokers whose plan at their end was compared with that of a rebuilt one.
    pub plans_compared: u64,
    /// Starts in those plans.
    pub planned_starts_compared: u64,
}

impl Counts {
    pub(crate) fn event(&mut self, event: &Event) {
        *self.events.entry(event.into()).or_default() += 1;
        if let Event::AttemptOrdered { order } = event {
            self.queued_behind_claim += u64::from(order.after.is_some());
        }
        if let Event::AttemptEnded { ended, .. } = event {
            *self.outcomes.entry(ended.outcome.kind.code()).or_default() += 1;
        }
    }

    pub(crate) fn rejection(&mut self, rejection: &Rejection) {
        *self.rejections.entry(rejection.code()).or_default() += 1;
    }

    pub(crate) fn reason(&mut self, code: &'static str) {
        *self.reasons.entry(code).or_default() += 1;
    }

    /// Adds another seed's counts.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.queued_behind_claim, other.queued_behind_claim),
            (&mut self.deposed, other.deposed),
            (&mut self.stale_copies, other.stale_copies),
            (&mut self.stale_copies_detected, other.stale_copies_detected),
            (&mut self.plans_compared, other.plans_compared),
            (&mut self.planned_starts_compared, other.planned_starts_compared),
        ] {
            *sum += more;
        }
        for (sums, more) in [
            (&mut self.events, &other.events),
            (&mut self.rejections, &other.rejections),
            (&mut self.outcomes, &other.outcomes),
            (&mut self.reasons, &other.reasons),
        ] {
            more.iter().for_each(|(kind, count)| *sums.entry(kind).or_default() += count);
        }
    }

    /// Every kind with its count, in groups with a title.
    pub fn kinds(&self) -> [(&'static str, Vec<(&'static str, u64)>); 5] {
        let of = |counts: &BTreeMap<&'static str, u64>, code: &'static str| {
            (code, counts.get(code).copied().unwrap_or_default())
        };
        let manual = |row: &table::Row| of(&self.reasons, row.entry.code);
        let reasons = table::POOLS.iter().chain(table::JOBS);
        [
            ("events", Event::VARIANTS.iter().map(|kind| of(&self.events, kind)).collect()),
            ("rejections", Rejection::MANUAL.iter().map(|entry| of(&self.rejections, entry.code)).collect()),
            ("outcomes", OutcomeKind::ALL.iter().map(|kind| of(&self.outcomes, kind.code())).collect()),
            ("reasons", reasons.map(manual).collect()),
            (
                "cases",
                vec![
                    ("attempts behind a claim", self.queued_behind_claim),
                    ("deposed writers", self.deposed),
                    ("stale copies", self.stale_copies),
                    ("stale copies detected", self.stale_copies_detected),
                    ("plans compared", self.plans_compared),
                    ("planned starts compared", self.planned_starts_compared),
                ],
            ),
        ]
    }

    /// Kinds that never occurred.
    pub fn unreached(&self) -> Vec<&'static str> {
        let kinds = self.kinds().into_iter().flat_map(|(_, kinds)| kinds);
        kinds.filter(|(_, count)| *count == 0).map(|(kind, _)| kind).collect()
    }
}
