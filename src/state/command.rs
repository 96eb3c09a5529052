//! Commands: what someone wants to happen. `decide` turns each into events or a rejection.

use std::sync::Arc;

use super::job::{Closing, Principal};
use super::token::RequestToken;
use crate::model::attempt::AttemptReport;
use crate::model::demand::WorkloadProfile;
use crate::model::exchange::{Hello, Inventory};
use crate::model::high_water::JournalKey;
use crate::model::id::{
    AttemptId, Epoch, JobId, JournalId, NodeId, NodeRef, PoolId, ReservationId, Revision, Term, UnitId,
};
use crate::model::interval::IntervalSet;
use crate::model::link::Link;
use crate::model::plan::{Plan, Start};
use crate::model::pool::{Connectivity, DrainMode};
use crate::model::price::PriceSchedule;
use crate::model::queue::QueueSpec;
use crate::model::reservation::Reservation;
use crate::model::spec::{JobSpec, Labels};
use crate::model::time::Timestamp;

/// A command with who gives it and, from clients, the token that makes it repeatable.
#[derive(Clone, Debug)]
pub struct Request {
    pub principal: Principal,
    pub token: Option<RequestToken>,
    pub command: Command,
}

/// What is wanted.
#[derive(Clone, Debug)]
pub enum Command {
    /// The first command of every writer.
    StartTerm {
        /// For a journal that is new.
        journal: JournalId,
        /// For a journal that has no key yet.
        key: JournalKey,
        /// A random number that no other turn has.
        writer_session: u64,
        term: Term,
    },
    Submit {
        jobs: Vec<Submission>,
    },
    /// `reason` is what the caller gave as one, or empty.
    Cancel {
        jobs: Vec<JobId>,
        reason: String,
    },
    /// Cancels units of a job: those that wait end, those that have an attempt are stopped.
    CancelUnits {
        job: JobId,
        units: IntervalSet,
    },
    /// `based_on` is as below, of the job.
    UpdateJob {
        job: JobId,
        based_on: Revision,
        change: JobChange,
    },
    CreateQueue {
        spec: QueueSpec,
    },
    /// `based_on` is the revision that the caller saw; 0 overwrites whatever is there.
    UpdateQueue {
        spec: QueueSpec,
        based_on: Revision,
    },
    /// By name, so that a repeated request finds its token and not a queue that is gone. `based_on` is as above.
    DeleteQueue {
        name: String,
        based_on: Revision,
    },
    CordonPool {
        pool: PoolId,
        cordoned: bool,
    },
    /// `deadline_ms` counts from now; 0 means none.
    DrainPool {
        pool: PoolId,
        mode: DrainMode,
        deadline_ms: u64,
    },
    CordonNode {
        pool: PoolId,
        node: NodeId,
        cordoned: bool,
    },
    /// By name, as a queue is.
    DeletePool {
        name: String,
        based_on: Revision,
    },
    /// Gives up a live attempt of a pool that can't be reached.
    Abandon {
        attempt: AttemptId,
    },
    /// Prices of a pool from an instant on.
    SetPrices {
        pool: PoolId,
        valid_from: Timestamp,
        schedule: PriceSchedule,
    },
    SetLink {
        link: Link,
    },
    /// The reservation's `id` is ignored: the broker gives one.
    Reserve {
        reservation: Reservation,
    },
    EndReservation {
        reservation: ReservationId,
    },
    OpenSession {
        hello: Hello,
    },
    ReportNodes {
        pool: PoolId,
        inventory: Inventory,
    },
    ReportAttempt {
        pool: PoolId,
        epoch: Epoch,
        report: AttemptReport,
    },
    ChangeConnectivity {
        pool: PoolId,
        connectivity: Connectivity,
    },
    /// A full inventory has ended: these nodes were not in it.
    RemoveNodes {
        pool: PoolId,
        nodes: Vec<NodeId>,
    },
    /// Notes a scheduling round; its starts follow one by one.
    RecordRound {
        plan: Plan,
    },
    /// One decision of a plan, re-checked here.
    Start {
        start: Start,
    },
    /// Takes in what the scheduler has learned.
    UpdateWorkloadProfile {
        /// `None` if it stays as it is.
        profile: Option<Arc<WorkloadProfile>>,
    },
    DueAction(DueAction),
}

/// A job to be submitted.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Empty: made from `name_prefix` and the job's number.
    pub name: String,
    /// Empty: `job`.
    pub name_prefix: String,
    /// Empty: the default queue.
    pub queue: String,
    /// It may wait for a pool that can run it, if no present one ever can.
    pub allow_pending: bool,
    /// It starts nothing before it is released.
    pub held: bool,
    pub spec: JobSpec,
}

/// What changes in a live job. `None` and empty lists change nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobChange {
    pub priority: Option<i32>,
    pub held: Option<bool>,
    /// In milliseconds; 0 takes the queue's default. A longer one is of attempts that are ordered from then on.
    pub max_run_ms: Option<u64>,
    /// Labels that are set.
    pub labels: Labels,
    /// Keys of labels that are removed.
    pub labels_removed: Vec<String>,
}

/// What falls due by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DueAction {
    ExpireTokens {
        count: u32,
    },
    /// A back-off is over.
    Release(UnitId),
    /// An attempt has run too long.
    EndRun(UnitId),
    /// A gang didn't start whole in time.
    EndStart(UnitId),
    /// An attempt of a closing job.
    StopClosing(UnitId),
    /// A drain's deadline has passed.
    BeginEviction(PoolId),
    /// An attempt in a pool that evicts.
    StopDraining(UnitId),
    /// An attempt in a lost pool whose lease is over: the pool has been silent for `silent_ms`.
    EndLease {
        unit: UnitId,
        silent_ms: u64,
    },
    /// A node's quarantine is over.
    ReleaseNode(NodeRef),
    /// A reservation's interval is over.
    EndReservation(ReservationId),
    /// A job whose dependency ended otherwise than it asked.
    Close(JobId, Closing),
}
