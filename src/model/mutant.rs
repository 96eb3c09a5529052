//! Deliberate faults (mutation testing): each weakens one line of the kernel, to prove that the simulator
//! finds such bugs. Without the feature `mutants` none can be active, and the compiler removes them.

/// A fault that can be activated, for the whole process. [`ALL`](Self::ALL) describes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    AnswerBeforeDurable,
    AnswerHeartbeatUnconfirmed,
    TakeOldEpochs,
    ForgetHeldDevices,
    ForgetLastUndo,
    IgnoreQueueLimit,
    LoseEarly,
    LeaseFromAnswer,
    AcceptCopies,
    EndStopsEarly,
    OvertakePredecessor,
    ForgetUnacknowledged,
    DropTouchedAttempts,
    ForgetTokens,
    RetryFailuresFreely,
    HideStops,
    OmitCordonedPools,
    TrustOldDisk,
    SkipRecoveryGrace,
    StandStill,
    ObeyStaleIds,
    SwallowTornBatch,
    AppendWhenDeposed,
}

impl Mutant {
    /// Every fault with its effect, for listings.
    pub const ALL: [(Self, &'static str); 23] = [
        (Self::AnswerBeforeDurable, "replies and orders are sent before their events are durable"),
        (
            Self::AnswerHeartbeatUnconfirmed,
            "heartbeats are answered without checking that the broker is still the journal's writer",
        ),
        (Self::TakeOldEpochs, "messages of sessions with an older epoch are accepted"),
        (Self::ForgetHeldDevices, "a device counts as free while an attempt holds it"),
        (Self::ForgetLastUndo, "a gang that does not fit releases all of its placements but one"),
        (Self::IgnoreQueueLimit, "queue limits are not checked"),
        (Self::LoseEarly, "work of a silent pool is requeued before its lease has expired"),
        (
            Self::LeaseFromAnswer,
            "an agent counts its lease from the heartbeat's answer, not from the heartbeat",
        ),
        (Self::AcceptCopies, "a copy of an agent's state folder may serve the pool beside the original"),
        (Self::EndStopsEarly, "an agent reports an attempt as ended when it has only begun to stop it"),
        (Self::OvertakePredecessor, "an attempt starts before the one that it is queued behind has ended"),
        (
            Self::ForgetUnacknowledged,
            "an agent forgets an outcome when it has reported it, not when it is durable",
        ),
        (Self::DropTouchedAttempts, "a snapshot omits attempts that change while it is written"),
        (Self::ForgetTokens, "request tokens are not stored"),
        (Self::RetryFailuresFreely, "failures don't count towards max_attempts"),
        (Self::HideStops, "watchers get no update when an attempt begins to stop"),
        (Self::OmitCordonedPools, "`why` omits cordoned pools"),
        (Self::TrustOldDisk, "a broker on an older copy of the journal does not become read-only"),
        (Self::SkipRecoveryGrace, "a new writer session starts work before its pools have reported"),
        (Self::StandStill, "time does not advance while the clock is behind the journal"),
        (Self::ObeyStaleIds, "a report on another attempt with a reused id is accepted"),
        (Self::SwallowTornBatch, "a truncated record is decoded as far as it goes"),
        (Self::AppendWhenDeposed, "the journal accepts batches of a deposed writer"),
    ];

    /// True if this fault is active.
    #[cfg(not(feature = "mutants"))]
    #[inline(always)]
    pub const fn is_on(self) -> bool {
        false
    }

    /// True if this fault is active.
    #[cfg(feature = "mutants")]
    pub fn is_on(self) -> bool {
        ON.load(std::sync::atomic::Ordering::Relaxed) == self as u8
    }

    /// Activates one fault, or none, and deactivates every other.
    #[cfg(feature = "mutants")]
    pub fn switch(on: Option<Self>) {
        ON.store(on.map_or(NONE, |mutant| mutant as u8), std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(feature = "mutants")]
const NONE: u8 = u8::MAX;
#[cfg(feature = "mutants")]
static ON: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(NONE);
