//! Deliberate faults: each weakens one line of the kernel. They show that the simulator finds such
//! bugs. Without the feature `mutants` none can be on, and the compiler takes them out.

/// A fault that can be switched on, for the whole process.
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
    /// Every fault, with what it does.
    pub const ALL: [(Self, &'static str); 22] = [
        (Self::AnswerBeforeDurable, "replies and orders go out before their events are durable"),
        (
            Self::AnswerHeartbeatUnconfirmed,
            "heartbeats are answered without asking the journal whose turn it is",
        ),
        (Self::TakeOldEpochs, "what older speakers of a pool say is taken"),
        (Self::ForgetHeldDevices, "a device counts as free while it is held"),
        (Self::ForgetLastUndo, "a gang that does not fit gives back all that it took but one"),
        (Self::IgnoreQueueLimit, "a queue's limit is not looked at"),
        (Self::LoseEarly, "a pool is lost, and its work requeued, before its lease has ended"),
        (Self::LeaseFromAnswer, "an agent counts its lease from the answer, not from its heartbeat"),
        (Self::EndStopsEarly, "an agent reports the end of what it has only begun to stop"),
        (Self::OvertakePredecessor, "an attempt starts beside the one it is to follow"),
        (Self::ForgetUnacknowledged, "an agent forgets an end when it has told it, not when it is durable"),
        (Self::DropTouchedAttempts, "a snapshot leaves out attempts that change while it is written"),
        (Self::ForgetTokens, "request tokens are not remembered"),
        (Self::RetryFailuresFreely, "failures don't count against max_attempts"),
        (Self::HideStops, "watchers are not told that an attempt is stopping"),
        (Self::OmitCordonedPools, "`why` leaves out cordoned pools"),
        (Self::TrustOldDisk, "an older copy of the journal is taken for the newest"),
        (Self::SkipRecoveryGrace, "a new turn starts work before its pools are heard"),
        (Self::StandStill, "time stands still while the clock is behind the journal"),
        (Self::ObeyStaleIds, "a report on another attempt of the same name is taken"),
        (Self::SwallowTornBatch, "a record that ends early is read as far as it goes"),
        (Self::AppendWhenDeposed, "the journal takes what a deposed writer appends"),
    ];

    /// This fault is switched on.
    #[cfg(not(feature = "mutants"))]
    #[inline(always)]
    pub const fn is_on(self) -> bool {
        false
    }

    /// This fault is switched on.
    #[cfg(feature = "mutants")]
    pub fn is_on(self) -> bool {
        ON.load(std::sync::atomic::Ordering::Relaxed) == self as u8
    }

    /// Switches one fault on, and every other off.
    #[cfg(feature = "mutants")]
    pub fn switch(on: Option<Self>) {
        ON.store(on.map_or(NONE, |mutant| mutant as u8), std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(feature = "mutants")]
const NONE: u8 = u8::MAX;
#[cfg(feature = "mutants")]
static ON: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(NONE);
