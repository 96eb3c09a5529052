//! Translation of snapshot objects and archive rows. Derived fields are not stored: recovery rebuilds them.

use super::translate::{Translate, get, message, put};
use super::{Error, proto};
use crate::model::attempt::OutcomeKind;
use crate::model::id::{JobId, PoolId, Revision, UnitId};
use crate::model::interval::IntervalSet;
use crate::model::resource::Resources;
use crate::state::Queue;
use crate::state::apply::{ArchiveRow, FinishedAttempt, FinishedJob};
use crate::state::job::{Job, Progress, Tried};
use crate::state::live::Attempt;
use crate::state::pool::{FailureTracker, Node, Pool};
use crate::state::snapshot::{Head, Object};
use proto::object::Body;

message!(Head as Head {
    journal: journal,
    term: term,
    revision: revision,
    now_unix_ms: now,
    settings: settings [required],
    regions: regions,
    models: models,
    next_job: next_job,
    next_pool: next_pool,
    next_queue: next_queue,
    next_reservation: next_reservation,
    key: key,
    writer_sessions: writer_sessions,
    workload_profile: profile [default],
    workload: workload [default],
});

impl Translate<proto::WriterSession> for (u64, Revision) {
    fn to_message(&self) -> proto::WriterSession {
        proto::WriterSession { writer_session: self.0, began: self.1.0 }
    }

    fn from_message(message: proto::WriterSession) -> Result<Self, Error> {
        let proto::WriterSession { writer_session, began } = message;
        Ok((writer_session, Revision(began)))
    }
}

message!(Job as Job {
    id: id,
    name: name,
    queue: queue,
    spec: spec,
    submitted_unix_ms: submitted_at,
    submitted_by: submitted_by [default],
    started_unix_ms: started_at,
    revision: revision,
    closing: closing [absent_as_zero],
    pending_dependencies: pending_dependencies,
    dependency_failed: dependency_failed,
    first_failure: first_failure,
    groups: groups,
    simulated: simulated,
    held: held,
});

message!(Progress as Progress {
    waiting: waiting [default],
    ended: ended,
    past: tried,
    live: live,
    running: running,
});

message!(Tried as PastAttempts {
    unit: unit,
    attempts: attempts,
    failures: failures,
    losses: losses,
    returns: returns,
    not_before_unix_ms: not_before,
    avoid: avoid,
});

impl Translate<proto::EndedUnits> for (OutcomeKind, IntervalSet) {
    fn to_message(&self) -> proto::EndedUnits {
        proto::EndedUnits { kind: self.0.to_message(), units: Some(self.1.to_message()) }
    }

    fn from_message(message: proto::EndedUnits) -> Result<Self, Error> {
        let proto::EndedUnits { kind, units } = message;
        Ok((get!(kind, "kind"), get!(units, "units", required)))
    }
}

impl Translate<proto::Attempt> for Attempt {
    fn to_message(&self) -> proto::Attempt {
        let Self {
            unit: UnitId { job, unit },
            number,
            failures,
            losses,
            returns,
            pool,
            phase,
            stop,
            ordered_at,
            ordered_revision,
            start_by,
            started_at,
            ends_by,
            leased,
            after,
            placements,
            revision,
        } = self;
        proto::Attempt {
            job: job.0,
            unit: *unit,
            number: *number,
            failures: *failures,
            losses: *losses,
            returns: *returns,
            pool: pool.0,
            phase: put!(phase),
            stop: put!(stop, absent_as_zero),
            ordered_unix_ms: ordered_at.0,
            ordered_revision: ordered_revision.0,
            start_by_unix_ms: start_by.0,
            started_unix_ms: put!(started_at),
            ends_by_unix_ms: ends_by.0,
            leased: *leased,
            after: put!(after),
            placements: put!(placements),
            revision: revision.0,
        }
    }

    fn from_message(message: proto::Attempt) -> Result<Self, Error> {
        let proto::Attempt {
            job,
            unit,
            number,
            failures,
            losses,
            returns,
            pool,
            phase,
            stop,
            ordered_unix_ms,
            ordered_revision,
            start_by_unix_ms,
            started_unix_ms,
            ends_by_unix_ms,
            leased,
            after,
            placements,
            revision,
        } = message;
        Ok(Self {
            unit: UnitId { job: JobId(job), unit },
            number,
            failures,
            losses,
            returns,
            pool: get!(pool, "pool"),
            phase: get!(phase, "phase"),
            stop: get!(stop, "stop", absent_as_zero),
            ordered_at: get!(ordered_unix_ms, "ordered_unix_ms"),
            ordered_revision: get!(ordered_revision, "ordered_revision"),
            start_by: get!(start_by_unix_ms, "start_by_unix_ms"),
            started_at: get!(started_unix_ms, "started_unix_ms"),
            ends_by: get!(ends_by_unix_ms, "ends_by_unix_ms"),
            leased,
            after: get!(after, "after"),
            placements: get!(placements, "placements"),
            revision: get!(revision, "revision"),
        })
    }
}

impl Translate<proto::Queue> for Queue {
    fn to_message(&self) -> proto::Queue {
        let Self { id, parent, spec, revision, usage: _, jobs: _ } = self;
        proto::Queue { id: id.0, parent: put!(parent), spec: put!(spec, required), revision: revision.0 }
    }

    fn from_message(message: proto::Queue) -> Result<Self, Error> {
        let proto::Queue { id, parent, spec, revision } = message;
        Ok(Self {
            id: get!(id, "id"),
            parent: get!(parent, "parent"),
            spec: get!(spec, "spec", required),
            revision: get!(revision, "revision"),
            usage: Resources::default(),
            jobs: 0,
        })
    }
}

impl Translate<proto::Pool> for Pool {
    fn to_message(&self) -> proto::Pool {
        proto::Pool {
            id: self.id.0,
            spec: Some(self.spec.to_message()),
            instance: self.instance.to_message(),
            key_digest: self.key_digest.to_message(),
            epoch: self.epoch.0,
            connectivity: self.connectivity.to_message(),
            not_ready_since_unix_ms: self.not_ready_since.to_message(),
            served_epoch: self.served_epoch.0,
            cordoned: self.cordoned,
            drain: self.drain.to_message(),
            registered_unix_ms: self.registered_at.0,
            revision: self.revision.0,
            next_node: self.next_node,
            cordoned_absent: self.cordoned_absent.iter().cloned().collect(),
        }
    }

    fn from_message(message: proto::Pool) -> Result<Self, Error> {
        let proto::Pool {
            id,
            spec,
            instance,
            key_digest,
            epoch,
            connectivity,
            not_ready_since_unix_ms,
            served_epoch,
            cordoned,
            drain,
            registered_unix_ms,
            revision,
            next_node,
            cordoned_absent,
        } = message;
        Ok(Self {
            id: get!(id, "id"),
            spec: get!(spec, "spec", required),
            instance: get!(instance, "instance"),
            key_digest: get!(key_digest, "key_digest"),
            epoch: get!(epoch, "epoch"),
            connectivity: get!(connectivity, "connectivity"),
            not_ready_since: get!(not_ready_since_unix_ms, "not_ready_since_unix_ms"),
            served_epoch: get!(served_epoch, "served_epoch"),
            cordoned,
            drain: get!(drain, "drain"),
            registered_at: get!(registered_unix_ms, "registered_unix_ms"),
            revision: get!(revision, "revision"),
            next_node,
            cordoned_absent: cordoned_absent.into_iter().collect(),
            nodes: Default::default(),
            node_names: Default::default(),
            attempts: Default::default(),
            total: Resources::default(),
            committed: Resources::default(),
        })
    }
}

message!(FailureTracker as FailureTracker {
    faults: faults,
    jobs: jobs,
    last_job: last_job,
    quarantines: quarantines,
    quarantined_until_unix_ms: quarantined_until,
});

fn node_to_message(pool: PoolId, node: &Node) -> proto::Node {
    proto::Node {
        pool: pool.0,
        id: node.id.0,
        spec: Some(node.spec.to_message()),
        cordoned: node.cordoned,
        gone: node.gone,
        revision: node.revision.0,
        failures: put!(&node.failure_tracker, default),
    }
}

fn node_from_message(message: proto::Node) -> Result<(PoolId, Node), Error> {
    let proto::Node { pool, id, spec, cordoned, gone, revision, failures } = message;
    let spec = get!(spec, "spec", required);
    let mut node = Node::new(get!(id, "id"), spec, Vec::new(), get!(revision, "revision"));
    (node.cordoned, node.gone) = (cordoned, gone);
    node.failure_tracker = get!(failures, "failures", default);
    Ok((PoolId(pool), node))
}

impl Translate<proto::Object> for Object {
    fn to_message(&self) -> proto::Object {
        let body = match self {
            Self::Head(head) => Body::Head(head.to_message()),
            Self::Queue(queue) => Body::Queue(queue.to_message()),
            Self::Spec(id, body) => {
                Body::Spec(proto::Spec { id: id.to_message(), body: put!(body, required) })
            }
            Self::Job(job) => Body::Job(job.to_message()),
            Self::Attempt(attempt) => Body::Attempt(attempt.to_message()),
            Self::Pool(pool) => Body::Pool(pool.to_message()),
            Self::Node(pool, node) => Body::Node(node_to_message(*pool, node)),
            Self::Token(key, entry) => {
                Body::Token(proto::Token { key: key.to_message(), entry: put!(entry, required) })
            }
            Self::RunTime(shape, micros) => {
                Body::RunTime(proto::RunTime { shape: shape.to_message(), micros: *micros })
            }
            Self::Price(price) => Body::Price(price.to_message()),
            Self::Link(link) => Body::Link(link.to_message()),
            Self::Reservation(reservation) => Body::Reservation(reservation.to_message()),
        };
        proto::Object { body: Some(body) }
    }

    fn from_message(message: proto::Object) -> Result<Self, Error> {
        let body = message.body.ok_or_else(|| Error::unknown("kind of object", "none"))?;
        Ok(match body {
            Body::Head(head) => Self::Head(Translate::from_message(head)?),
            Body::Queue(queue) => Self::Queue(Translate::from_message(queue)?),
            Body::Spec(proto::Spec { id, body }) => Self::Spec(get!(id, "id"), get!(body, "body", required)),
            Body::Job(job) => Self::Job(Translate::from_message(job)?),
            Body::Attempt(attempt) => Self::Attempt(Translate::from_message(attempt)?),
            Body::Pool(pool) => Self::Pool(Translate::from_message(pool)?),
            Body::Node(node) => {
                let (pool, node) = node_from_message(node)?;
                Self::Node(pool, Box::new(node))
            }
            Body::Token(proto::Token { key, entry }) => {
                Self::Token(get!(key, "key"), get!(entry, "entry", required))
            }
            Body::RunTime(proto::RunTime { shape, micros }) => Self::RunTime(get!(shape, "shape"), micros),
            Body::Price(price) => Self::Price(Translate::from_message(price)?),
            Body::Link(link) => Self::Link(Translate::from_message(link)?),
            Body::Reservation(reservation) => Self::Reservation(Translate::from_message(reservation)?),
        })
    }
}

message!(FinishedJob as ArchivedJob {
    job: job [required],
    queue: queue,
    spec: spec [required],
    end: end,
    ended_unix_ms: ended_at,
    revision: revision,
});

message!(FinishedAttempt as ArchivedAttempt {
    attempt: attempt [required],
    pool: pool,
    region: region,
    nodes: nodes,
    end: ended [required],
    revision: revision,
});

impl Translate<proto::ArchiveRow> for ArchiveRow {
    fn to_message(&self) -> proto::ArchiveRow {
        use proto::archive_row::Body;
        let body = match self {
            Self::Job(job) => Body::Job(job.to_message()),
            Self::Attempt(attempt) => Body::Attempt(attempt.to_message()),
        };
        proto::ArchiveRow { body: Some(body) }
    }

    fn from_message(message: proto::ArchiveRow) -> Result<Self, Error> {
        use proto::archive_row::Body;
        match message.body {
            Some(Body::Job(job)) => Ok(Self::Job(Translate::from_message(job)?)),
            Some(Body::Attempt(attempt)) => Ok(Self::Attempt(Translate::from_message(attempt)?)),
            None => Err(Error::unknown("kind of archive row", "none")),
        }
    }
}
