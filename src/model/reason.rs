//! Why a job waits or a command is refused: stable codes, each with its numbers.

use std::fmt;

use super::id::JobId;
use super::region::RegionCode;
use super::resource::ResourceKind;
use super::time::Timestamp;

/// How long a reason will hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permanence {
    /// Only another job spec or another pool would help.
    Never,
    /// An admin or an agent must act.
    Closed,
    /// Running work must end first.
    Busy,
    /// It fits; its turn will come.
    Fits,
}

/// Why one pool does not take a unit now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolReason {
    RegionNotAllowed { region: RegionCode },
    PoolNotAllowed,
    PoolSimulated,
    RunUnsupported { needs: &'static str },
    LeaseUnsupported,
    SecretsUnsupported,
    SharesUnsupported,
    NoNodes,
    DeviceMissing { models: Vec<String> },
    NodeLabelMissing { nodes: u64 },
    TaintNotTolerated { nodes: u64 },
    TaskTooLarge { kind: ResourceKind, needed: u64, largest: u64 },
    PoolTooSmall { kind: ResourceKind, needed: u64, total: u64 },
    PoolCordoned,
    PoolDraining,
    PoolSuspect,
    PoolUnreachable,
    PoolLost,
    NodesCordoned { nodes: u64 },
    NodesQuarantined { nodes: u64 },
    NodesReserved { nodes: u64 },
    ResourcesBusy { kind: ResourceKind, needed: u64, free: u64 },
    NodeFragmentation { kind: ResourceKind, needed: u64, free: u64, largest: u64 },
    Fits,
}

impl PoolReason {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::RegionNotAllowed { .. } => "RegionNotAllowed",
            Self::PoolNotAllowed => "PoolNotAllowed",
            Self::PoolSimulated => "PoolSimulated",
            Self::RunUnsupported { .. } => "RunUnsupported",
            Self::LeaseUnsupported => "LeaseUnsupported",
            Self::SecretsUnsupported => "SecretsUnsupported",
            Self::SharesUnsupported => "SharesUnsupported",
            Self::NoNodes => "NoNodes",
            Self::DeviceMissing { .. } => "DeviceMissing",
            Self::NodeLabelMissing { .. } => "NodeLabelMissing",
            Self::TaintNotTolerated { .. } => "TaintNotTolerated",
            Self::TaskTooLarge { .. } => "TaskTooLarge",
            Self::PoolTooSmall { .. } => "PoolTooSmall",
            Self::PoolCordoned => "PoolCordoned",
            Self::PoolDraining => "PoolDraining",
            Self::PoolSuspect => "PoolSuspect",
            Self::PoolUnreachable => "PoolUnreachable",
            Self::PoolLost => "PoolLost",
            Self::NodesCordoned { .. } => "NodesCordoned",
            Self::NodesQuarantined { .. } => "NodesQuarantined",
            Self::NodesReserved { .. } => "NodesReserved",
            Self::ResourcesBusy { .. } => "ResourcesBusy",
            Self::NodeFragmentation { .. } => "NodeFragmentation",
            Self::Fits => "Fits",
        }
    }

    /// How long the reason will hold.
    pub fn permanence(&self) -> Permanence {
        match self {
            Self::RegionNotAllowed { .. }
            | Self::PoolNotAllowed
            | Self::PoolSimulated
            | Self::RunUnsupported { .. }
            | Self::LeaseUnsupported
            | Self::SecretsUnsupported
            | Self::SharesUnsupported
            | Self::NoNodes
            | Self::DeviceMissing { .. }
            | Self::NodeLabelMissing { .. }
            | Self::TaintNotTolerated { .. }
            | Self::TaskTooLarge { .. }
            | Self::PoolTooSmall { .. } => Permanence::Never,
            Self::PoolCordoned
            | Self::PoolDraining
            | Self::PoolSuspect
            | Self::PoolUnreachable
            | Self::PoolLost
            | Self::NodesCordoned { .. }
            | Self::NodesQuarantined { .. } => Permanence::Closed,
            Self::NodesReserved { .. } | Self::ResourcesBusy { .. } | Self::NodeFragmentation { .. } => {
                Permanence::Busy
            }
            Self::Fits => Permanence::Fits,
        }
    }

    /// What the code means and what would help, for the manual.
    pub fn manual() -> &'static [(&'static str, &'static str, &'static str)] {
        &[
            ("RegionNotAllowed", "the job's regions leave this pool's region out", "allow the region"),
            ("PoolNotAllowed", "the job names pools, and this is none of them", "name the pool, or none"),
            (
                "PoolSimulated",
                "the job wants its command truly run, and this pool only simulates",
                "allow simulated pools",
            ),
            (
                "RunUnsupported",
                "the pool can't run this kind of task (process, container or pod)",
                "use the other kind",
            ),
            (
                "LeaseUnsupported",
                "the job asks `on_pool_lost: requeue`, and nothing in this pool keeps leases",
                "use `wait`, or `may_overlap`",
            ),
            (
                "SecretsUnsupported",
                "the job refers to secrets, and this pool resolves none",
                "use another pool",
            ),
            (
                "SharesUnsupported",
                "a task asks for a part of a device, and this pool gives out whole ones only",
                "ask for a whole device",
            ),
            ("NoNodes", "the pool has no nodes", "wait for its agent to report some"),
            ("DeviceMissing", "no node has a device of the models asked for", "name further models"),
            ("NodeLabelMissing", "no node carries the labels asked for", "label a node, or ask for less"),
            (
                "TaintNotTolerated",
                "every node that would do carries a taint the job doesn't tolerate",
                "add a toleration",
            ),
            ("TaskTooLarge", "no node could hold one task even if it were empty", "make the task smaller"),
            (
                "PoolTooSmall",
                "the whole gang would not fit even if the pool were empty",
                "make the gang smaller",
            ),
            ("PoolCordoned", "an admin has closed the pool for new work", "uncordon it"),
            ("PoolDraining", "an admin is emptying the pool", "uncordon it"),
            ("PoolSuspect", "the pool's agent has missed heartbeats", "wait, or look at the agent"),
            ("PoolUnreachable", "the pool's agent is silent", "look at the agent"),
            ("PoolLost", "the pool's agent has been silent for long", "start the agent"),
            ("NodesCordoned", "the nodes that would do are closed for new work", "uncordon a node"),
            (
                "NodesQuarantined",
                "the nodes that would do failed everything they were given, and rest for a while",
                "wait, look at the nodes, or uncordon one",
            ),
            (
                "NodesReserved",
                "the nodes that would do are kept for jobs that have waited longer, or matter more",
                "wait: later the job may have them, too",
            ),
            ("ResourcesBusy", "the pool has too little free of one resource", "wait for work to end"),
            (
                "NodeFragmentation",
                "enough is free in all, but not on one node",
                "wait, or ask for smaller tasks",
            ),
            ("Fits", "the unit fits; its turn will come", "nothing"),
        ]
    }
}

/// An amount in the unit that people read: cores, GiB, devices.
pub struct Amount<'a>(pub &'a ResourceKind, pub u64);

impl fmt::Display for Amount<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thousandths = |f: &mut fmt::Formatter<'_>, value: u64| {
            let (whole, rest) = (value / 1_000, value % 1_000);
            if rest == 0 {
                write!(f, "{whole}")
            } else {
                write!(f, "{whole}.{}", format!("{rest:03}").trim_end_matches('0'))
            }
        };
        match self.0 {
            ResourceKind::Cpu => {
                thousandths(f, self.1)?;
                f.write_str(" CPUs")
            }
            ResourceKind::Device => {
                thousandths(f, self.1)?;
                f.write_str(" devices")
            }
            ResourceKind::Memory | ResourceKind::Storage => {
                // Tenths, rounded down: "1.0 GiB free" must not stand for less.
                let (unit, bytes) = if self.1 >= 1 << 30 { ("GiB", 1u64 << 30) } else { ("MiB", 1 << 20) };
                let tenths = u128::from(self.1) * 10 / u128::from(bytes);
                write!(f, "{}.{} {unit} {}", tenths / 10, tenths % 10, self.0)
            }
            ResourceKind::Other(name) => write!(f, "{} {name}", self.1),
        }
    }
}

impl fmt::Display for PoolReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegionNotAllowed { region } => write!(f, "in {region}, not allowed"),
            Self::PoolNotAllowed => f.write_str("not among the job's pools"),
            Self::PoolSimulated => f.write_str("only simulates its tasks"),
            Self::RunUnsupported { needs } => write!(f, "runs no {needs}"),
            Self::LeaseUnsupported => f.write_str("keeps no leases, and the job asks on_pool_lost: requeue"),
            Self::SecretsUnsupported => f.write_str("resolves no secrets"),
            Self::SharesUnsupported => f.write_str("gives out whole devices only"),
            Self::NoNodes => f.write_str("has no nodes"),
            Self::DeviceMissing { models } if models.is_empty() => f.write_str("has no devices"),
            Self::DeviceMissing { models } => write!(f, "has no {}", models.join(" or ")),
            Self::NodeLabelMissing { nodes } => write!(f, "none of {nodes} nodes has the labels"),
            Self::TaintNotTolerated { nodes } => {
                write!(f, "{nodes} nodes carry a taint that is not tolerated")
            }
            Self::TaskTooLarge { kind, needed, largest } => write!(
                f,
                "{} needed by one task, the largest node has {}",
                Amount(kind, *needed),
                Amount(kind, *largest)
            ),
            Self::PoolTooSmall { kind, needed, total } => {
                write!(f, "{} needed, {} in all", Amount(kind, *needed), Amount(kind, *total))
            }
            Self::PoolCordoned => f.write_str("cordoned"),
            Self::PoolDraining => f.write_str("being drained"),
            Self::PoolSuspect => f.write_str("its agent has missed heartbeats"),
            Self::PoolUnreachable => f.write_str("its agent is silent"),
            Self::PoolLost => f.write_str("its agent has been silent for long"),
            Self::NodesCordoned { nodes } => write!(f, "{nodes} nodes that would do are cordoned"),
            Self::NodesQuarantined { nodes } => {
                write!(f, "{nodes} nodes that would do failed all they were given, and are held back")
            }
            Self::NodesReserved { nodes } => {
                write!(f, "{nodes} nodes that would do are kept for jobs that have waited longer")
            }
            Self::ResourcesBusy { kind, needed, free } => {
                write!(f, "{} free, {} needed", Amount(kind, *free), Amount(kind, *needed))
            }
            Self::NodeFragmentation { kind, needed, free, largest } => write!(
                f,
                "{} free, at most {} on one node, {} needed",
                Amount(kind, *free),
                Amount(kind, *largest),
                Amount(kind, *needed)
            ),
            Self::Fits => f.write_str("fits"),
        }
    }
}

/// What keeps a job from being placed, apart from pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobReason {
    QueueLimit { queue: String, kind: ResourceKind, limit: u64, used: u64, needed: u64 },
    DependencyPending { job: JobId },
    BackingOff { until: Timestamp },
    BrokerReadOnly,
    RecoveryGracePeriod { pools: u64, until: Timestamp },
}

impl JobReason {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::QueueLimit { .. } => "QueueLimit",
            Self::DependencyPending { .. } => "DependencyPending",
            Self::BackingOff { .. } => "BackingOff",
            Self::BrokerReadOnly => "BrokerReadOnly",
            Self::RecoveryGracePeriod { .. } => "RecoveryGracePeriod",
        }
    }

    /// What the code means and what would help, for the manual.
    pub fn manual() -> &'static [(&'static str, &'static str, &'static str)] {
        &[
            ("QueueLimit", "the queue, or one above it, holds as much as it may", "wait, or raise the limit"),
            ("DependencyPending", "a job that must end first has not", "wait for that job"),
            ("BackingOff", "the unit failed and waits for its next try", "wait"),
            (
                "BrokerReadOnly",
                "the broker found that its journal is older than what agents run",
                "restore the newer journal",
            ),
            (
                "RecoveryGracePeriod",
                "the broker has just started and starts nothing until its pools have told what they run",
                "wait some seconds",
            ),
        ]
    }
}

impl fmt::Display for JobReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueLimit { queue, kind, limit, used, needed } => write!(
                f,
                "queue {queue} holds {} of {}, {} more needed",
                Amount(kind, *used),
                Amount(kind, *limit),
                Amount(kind, *needed)
            ),
            Self::DependencyPending { job } => write!(f, "waits for job {job} to end"),
            Self::BackingOff { until } => write!(f, "waits until {until} before the next try"),
            Self::BrokerReadOnly => {
                f.write_str("the broker is read-only: its journal is older than what agents run")
            }
            Self::RecoveryGracePeriod { pools, until } => {
                write!(f, "the broker has just started: {pools} pools are still to be heard, until {until}")
            }
        }
    }
}
