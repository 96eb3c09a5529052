//! Why a job waits: stable codes, each with its numbers.

use std::fmt;

use super::amount::thousandths;
use super::id::JobId;
use super::region::RegionCode;
use super::resource::ResourceKind;
use super::time::Timestamp;

/// How long a reason will hold, from the most lasting on: what must change before the unit can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permanence {
    /// The job spec or the pool's capacity must change.
    Never,
    /// An admin or an agent must act.
    Closed,
    /// Running work must end, or a reserved node must be released.
    Busy,
    /// Nothing: the unit fits and will be scheduled.
    Fits,
}

/// Why one pool can't start a unit now. Amounts are in the kind's own unit; "suitable" nodes satisfy the
/// unit's labels, tolerations and device models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolReason {
    /// The job's constraints exclude the pool's region.
    RegionNotAllowed { region: RegionCode },
    /// The job names its allowed pools, and the pool is not one of them.
    PoolNotAllowed,
    /// The job requires that its tasks run, and the pool only simulates them.
    PoolSimulated,
    /// The pool does not run this kind of task. `needs` names the kind, in the plural.
    RunUnsupported { needs: &'static str },
    /// The job needs leases, and the pool does not support them.
    LeaseUnsupported,
    /// The job refers to secrets, and the pool does not resolve them.
    SecretsUnsupported,
    /// A task requests a fraction of a device, and the pool assigns whole devices only.
    SharesUnsupported,
    /// The pool has no nodes.
    NoNodes,
    /// No node has a device of one of `models`; empty means a device of any model.
    DeviceMissing { models: Vec<String> },
    /// None of the pool's `nodes` has the requested labels.
    NodeLabelMissing { nodes: u64 },
    /// Each of the `nodes` with the requested labels has a taint that the job does not tolerate.
    TaintNotTolerated { nodes: u64 },
    /// One task needs more than the `largest` amount on any suitable node, even if the node were empty.
    TaskTooLarge { kind: ResourceKind, needed: u64, largest: u64 },
    /// The gang needs more than all suitable nodes have in `total`, even if they were empty.
    PoolTooSmall { kind: ResourceKind, needed: u64, total: u64 },
    /// An admin has cordoned the pool.
    PoolCordoned,
    /// An admin is draining the pool.
    PoolDraining,
    /// [`Connectivity::Suspect`](super::pool::Connectivity::Suspect).
    PoolSuspect,
    /// [`Connectivity::Unreachable`](super::pool::Connectivity::Unreachable).
    PoolUnreachable,
    /// [`Connectivity::Lost`](super::pool::Connectivity::Lost).
    PoolLost,
    /// Suitable nodes are cordoned, and the others would not be enough even if they were empty.
    NodesCordoned { nodes: u64 },
    /// The same with quarantined nodes.
    NodesQuarantined { nodes: u64 },
    /// The unit would fit on nodes that are reserved for other jobs.
    NodesReserved { nodes: u64 },
    /// The unit needs more than is `free` on all suitable nodes together.
    ResourcesBusy { kind: ResourceKind, needed: u64, free: u64 },
    /// The suitable nodes have enough `free` in total, but no more than `largest` on one node.
    NodeFragmentation { kind: ResourceKind, needed: u64, free: u64, largest: u64 },
    /// The unit fits and will be scheduled.
    Fits,
}

impl PoolReason {
    /// Returns the stable code.
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

    /// Returns how long the reason will hold.
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

    /// Returns a row (code, meaning, what helps) for every reason, for `docs/reference/reasons.md`.
    pub fn manual() -> &'static [(&'static str, &'static str, &'static str)] {
        &[
            ("RegionNotAllowed", "the job's constraints exclude this pool's region", "allow the region"),
            (
                "PoolNotAllowed",
                "the job names its allowed pools, and this pool is not one of them",
                "add the pool, or name none",
            ),
            (
                "PoolSimulated",
                "the pool only simulates tasks. The job neither names it nor has `simulate` in all its groups, or sets `real_only`",
                "name the pool, or add `simulate` to all groups",
            ),
            (
                "RunUnsupported",
                "the pool does not run this kind of task (process, container or pod)",
                "use another kind of task, or another pool",
            ),
            (
                "LeaseUnsupported",
                "the job's `on_pool_lost: requeue` needs leases, which this pool does not support",
                "set `on_pool_lost: wait`, or `may_overlap`",
            ),
            (
                "SecretsUnsupported",
                "the job refers to secrets, and this pool does not resolve secrets",
                "use another pool",
            ),
            (
                "SharesUnsupported",
                "a task requests a fraction of a device, and this pool assigns whole devices only",
                "request a whole device",
            ),
            ("NoNodes", "the pool has no nodes", "wait until its agent reports nodes"),
            ("DeviceMissing", "no node has a device of a requested model", "allow other models"),
            ("NodeLabelMissing", "no node has the requested labels", "label a node, or request fewer labels"),
            (
                "TaintNotTolerated",
                "every node with the requested labels has a taint that the job does not tolerate",
                "add a toleration",
            ),
            (
                "TaskTooLarge",
                "one task requests more than any suitable node has, even if the node were empty",
                "request less per task",
            ),
            (
                "PoolTooSmall",
                "the gang requests more than the pool has, even if the pool were empty",
                "make the gang smaller",
            ),
            ("PoolCordoned", "an admin has closed the pool to new work", "uncordon the pool"),
            ("PoolDraining", "an admin is draining the pool", "uncordon the pool"),
            ("PoolSuspect", "the pool's agent has missed heartbeats", "wait, or check the agent"),
            (
                "PoolUnreachable",
                "the pool's agent has missed heartbeats for longer than the timeout",
                "check the agent and its connection",
            ),
            (
                "PoolLost",
                "the pool's agent has been unreachable for so long that leases expire",
                "start the agent",
            ),
            ("NodesCordoned", "suitable nodes are closed to new work", "uncordon a node"),
            (
                "NodesQuarantined",
                "suitable nodes are quarantined for a while, because attempts on them failed repeatedly",
                "wait, check the nodes, or uncordon one",
            ),
            (
                "NodesReserved",
                "the suitable nodes are reserved for jobs that have waited longer or have a higher priority",
                "wait until a node is released",
            ),
            (
                "ResourcesBusy",
                "the pool has too little free capacity of one resource",
                "wait until running work ends",
            ),
            (
                "NodeFragmentation",
                "the pool has enough free capacity in total, but too little on each node",
                "wait, or request smaller tasks",
            ),
            ("Fits", "the unit fits and will be scheduled", "nothing"),
        ]
    }
}

/// Displays an amount of a kind in a readable unit: `1.5 CPUs`, `64.0 GiB memory`, `2 devices`.
pub struct Amount<'a>(pub &'a ResourceKind, pub u64);

impl fmt::Display for Amount<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ResourceKind::Cpu => write!(f, "{} CPUs", thousandths(self.1)),
            ResourceKind::Device => write!(f, "{} devices", thousandths(self.1)),
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
            Self::PoolSimulated => f.write_str("only simulates tasks"),
            Self::RunUnsupported { needs } => write!(f, "does not run {needs}"),
            Self::LeaseUnsupported => {
                f.write_str("does not support leases, which on_pool_lost: requeue needs")
            }
            Self::SecretsUnsupported => f.write_str("does not resolve secrets"),
            Self::SharesUnsupported => f.write_str("assigns whole devices only"),
            Self::NoNodes => f.write_str("has no nodes"),
            Self::DeviceMissing { models } if models.is_empty() => f.write_str("has no devices"),
            Self::DeviceMissing { models } => write!(f, "has no {}", models.join(" or ")),
            Self::NodeLabelMissing { nodes } => write!(f, "none of {nodes} nodes has the requested labels"),
            Self::TaintNotTolerated { nodes } => {
                write!(f, "{nodes} nodes have a taint that the job does not tolerate")
            }
            Self::TaskTooLarge { kind, needed, largest } => write!(
                f,
                "{} needed by one task, the largest node has {}",
                Amount(kind, *needed),
                Amount(kind, *largest)
            ),
            Self::PoolTooSmall { kind, needed, total } => {
                write!(f, "{} needed, {} in total", Amount(kind, *needed), Amount(kind, *total))
            }
            Self::PoolCordoned => f.write_str("cordoned"),
            Self::PoolDraining => f.write_str("being drained"),
            Self::PoolSuspect => f.write_str("its agent has missed heartbeats"),
            Self::PoolUnreachable => f.write_str("its agent is unreachable"),
            Self::PoolLost => f.write_str("its agent has been unreachable for so long that leases expire"),
            Self::NodesCordoned { nodes } => write!(f, "{nodes} suitable nodes are cordoned"),
            Self::NodesQuarantined { nodes } => {
                write!(f, "{nodes} suitable nodes are quarantined after repeated failures")
            }
            Self::NodesReserved { nodes } => {
                write!(f, "{nodes} suitable nodes are reserved for jobs ahead of this one")
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

/// Why a job waits, apart from its pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobReason {
    /// The unit would exceed a limit of its queue, or of an ancestor of it: `used` plus `needed` is above
    /// `limit`.
    QueueLimit { queue: String, kind: ResourceKind, limit: u64, used: u64, needed: u64 },
    /// A job that this one depends on has not ended.
    DependencyPending { job: JobId },
    /// An attempt failed, and the unit's next one starts no earlier than `until`.
    BackingOff { until: Timestamp },
    /// The broker's journal is older than the work of its agents.
    BrokerReadOnly,
    /// The broker has just started, and `pools` have not yet reported; it waits for them until `until` at
    /// most.
    RecoveryGracePeriod { pools: u64, until: Timestamp },
}

impl JobReason {
    /// Returns the stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::QueueLimit { .. } => "QueueLimit",
            Self::DependencyPending { .. } => "DependencyPending",
            Self::BackingOff { .. } => "BackingOff",
            Self::BrokerReadOnly => "BrokerReadOnly",
            Self::RecoveryGracePeriod { .. } => "RecoveryGracePeriod",
        }
    }

    /// Returns a row (code, meaning, what helps) for every reason, for `docs/reference/reasons.md`.
    pub fn manual() -> &'static [(&'static str, &'static str, &'static str)] {
        &[
            (
                "QueueLimit",
                "the unit would exceed a limit of its queue or of an ancestor",
                "wait, or raise the limit",
            ),
            ("DependencyPending", "a job that this one depends on has not ended", "wait for that job"),
            ("BackingOff", "an attempt failed, and the unit waits before its next one", "wait"),
            (
                "BrokerReadOnly",
                "the broker has detected that its journal is older than the work of its agents",
                "restore the newer journal",
            ),
            (
                "RecoveryGracePeriod",
                "the broker has just started, and starts no work until its pools have reported what they run",
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
                "queue {queue} uses {} of {}, {} more needed",
                Amount(kind, *used),
                Amount(kind, *limit),
                Amount(kind, *needed)
            ),
            Self::DependencyPending { job } => write!(f, "waits for job {job} to end"),
            Self::BackingOff { until } => write!(f, "waits until {until} before the next attempt"),
            Self::BrokerReadOnly => {
                f.write_str("the broker is read-only: its journal is older than the work of its agents")
            }
            Self::RecoveryGracePeriod { pools, until } => {
                write!(
                    f,
                    "the broker has just started and waits for reports from {pools} pools, until {until}"
                )
            }
        }
    }
}
