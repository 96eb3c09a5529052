//! Events: every change of state, in the past tense. The journal is their sequence.

use std::sync::Arc;

use super::job::{Closing, JobEnd, Principal};
use super::token::{TokenEntry, TokenKey};
use crate::model::attempt::{Outcome, Placement, StopReason};
use crate::model::demand::WorkloadProfile;
use crate::model::device::DeviceModel;
use crate::model::high_water::JournalKey;
use crate::model::id::{
    Epoch, InstanceId, JobId, JournalId, NodeId, PoolId, QueueId, ReservationId, Revision, SpecId, Term,
    UnitId,
};
use crate::model::interval::IntervalSet;
use crate::model::limit::{LEASE_MS_DEFAULT, LEASE_MS_MIN};
use crate::model::link::Link;
use crate::model::pool::{Connectivity, Drain, NodeSpec, PoolSpec};
use crate::model::price::Price;
use crate::model::queue::QueueSpec;
use crate::model::region::Region;
use crate::model::reservation::Reservation;
use crate::model::spec::JobSpec;
use crate::model::time::Timestamp;

/// An event with its place in the journal, its time and who caused it.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRecord {
    pub revision: Revision,
    /// Never decreases.
    pub at: Timestamp,
    pub principal: Principal,
    pub event: Event,
}

/// What happened. `VARIANTS` has the names of every kind. `WorkloadProfileConfirmed`: the profile was checked, and
/// what arrives has not changed enough.
#[derive(Clone, Debug, PartialEq, strum::IntoStaticStr, strum::VariantNames)]
pub enum Event {
    JournalCreated { journal: JournalId },
    TermStarted { term: Term },
    SettingsChanged { settings: Settings },
    RegionsAdded { regions: Vec<Region> },
    DeviceModelsAdded { models: Vec<DeviceModel> },
    QueueCreated { queue: QueueId, spec: QueueSpec },
    QueueUpdated { queue: QueueId, spec: QueueSpec },
    QueueDeleted { queue: QueueId, name: Box<str> },
    SpecAdded { spec: SpecId, body: Arc<JobSpec> },
    JobSubmitted { job: JobId, name: Box<str>, queue: QueueId, spec: SpecId },
    TokenUsed { key: TokenKey, entry: TokenEntry },
    TokensExpired { count: u32 },
    JobUpdated { job: JobId, spec: SpecId, held: bool },
    UnitsCancelled { job: JobId, units: IntervalSet },
    JobClosing { job: JobId, why: Closing, reason: Box<str> },
    JobEnded { job: JobId, end: JobEnd },
    RoundPlanned { policy: Box<str>, version: u32, based_on: Revision, budget: u32, cursor: u32 },
    AttemptOrdered { order: OrderedAttempt },
    AttemptStarting { unit: UnitId },
    AttemptRunning { unit: UnitId, started_at: Timestamp },
    AttemptStopping { unit: UnitId, reason: StopReason },
    AttemptEnded { unit: UnitId, ended: EndedAttempt },
    UnitReleased { unit: UnitId },
    PoolRegistered { pool: PoolId, spec: PoolSpec, instance: InstanceId, key_digest: [u8; 16] },
    PoolUpdated { pool: PoolId, spec: PoolSpec },
    PoolDeleted { pool: PoolId, name: Box<str> },
    SessionOpened { pool: PoolId, epoch: Epoch },
    PoolConnectivityChanged { pool: PoolId, connectivity: Connectivity },
    PoolCordoned { pool: PoolId, cordoned: bool },
    PoolDrainChanged { pool: PoolId, drain: Option<Drain> },
    NodeReported { pool: PoolId, node: NodeId, spec: NodeSpec },
    NodeRemoved { pool: PoolId, node: NodeId, name: Box<str> },
    NodeCordoned { pool: PoolId, node: NodeId, cordoned: bool },
    NodeQuarantined { pool: PoolId, node: NodeId, until: Timestamp },
    NodeReleased { pool: PoolId, node: NodeId },
    PricesSet { price: Price },
    LinkSet { link: Link },
    ReservationMade { reservation: Reservation },
    ReservationEnded { reservation: ReservationId },
    KeyDrawn { key: JournalKey },
    WriterSessionStarted { writer_session: u64 },
    WorkloadProfileUpdated { profile: Arc<WorkloadProfile> },
    WorkloadProfileConfirmed,
}

/// A new attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderedAttempt {
    pub unit: UnitId,
    pub number: u32,
    pub pool: PoolId,
    pub start_by: Timestamp,
    pub ends_by: Timestamp,
    pub leased: bool,
    pub after: Option<UnitId>,
    pub placements: Vec<Placement>,
}

/// How an attempt ended and what its unit does next.
#[derive(Clone, Debug, PartialEq)]
pub struct EndedAttempt {
    pub started_at: Option<Timestamp>,
    pub ended_at: Timestamp,
    pub outcome: Outcome,
    pub next: NextTry,
}

/// What a unit does after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextTry {
    /// The outcome is final.
    Never,
    /// It waits again at once; the attempt did not count.
    Now,
    /// It waits again from then on; the attempt counted as a failure.
    At(Timestamp),
    /// It waits again from then on; the attempt did not count.
    Later(Timestamp),
}

/// Times that broker and agents go by, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub heartbeat_ms: u64,
    /// Without heartbeats for so long a pool gets no new start orders.
    pub suspect_ms: u64,
    pub unreachable_ms: u64,
    /// Without heartbeats for so long a pool's shortest leases have surely ended.
    pub lost_ms: u64,
    /// The default length of a lease, for readers of the journal: each job spec has its own.
    pub lease_ms: u64,
    /// From an order until its agent must not start it any more.
    pub start_by_ms: u64,
}

/// From the end of a lease until its attempts are surely gone: the stop's own grace.
pub const LEASE_STOP_GRACE_MS: u64 = 2_000;

/// From the last heartbeat on until an attempt with a lease of `lease_ms` is surely gone: 1 % of drift of either
/// clock, the stop's grace, and some seconds for an agent on a busy machine.
pub fn lease_surely_over_ms(lease_ms: u64) -> u64 {
    lease_ms + lease_ms / 50 + LEASE_STOP_GRACE_MS + 8_000
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat_ms: 2_000,
            suspect_ms: 6_000,
            unreachable_ms: 15_000,
            lost_ms: lease_surely_over_ms(LEASE_MS_MIN),
            lease_ms: LEASE_MS_DEFAULT,
            start_by_ms: 60_000,
        }
    }
}
