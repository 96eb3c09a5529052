//! Why a job waits: stable codes, each with its numbers.

pub mod table;

use std::fmt;

use super::id::JobId;
use super::language::{Language, Parameter, render};
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

    /// Returns the numbers and names of this case, for the message.
    pub fn parameters(&self) -> Vec<Parameter> {
        let nodes = |nodes: &u64| vec![("nodes", nodes.to_string())];
        let amounts = |kind: &ResourceKind, amounts: &[(&'static str, &u64)]| {
            let amounts = amounts.iter().map(|(name, amount)| (*name, amount.to_string()));
            std::iter::once(("kind", kind.to_string())).chain(amounts).collect()
        };
        match self {
            Self::RegionNotAllowed { region } => vec![("region", region.to_string())],
            Self::RunUnsupported { needs } => vec![("needs", (*needs).to_owned())],
            Self::DeviceMissing { models } => vec![("models", models.join("|"))],
            Self::NodeLabelMissing { nodes: count }
            | Self::TaintNotTolerated { nodes: count }
            | Self::NodesCordoned { nodes: count }
            | Self::NodesQuarantined { nodes: count }
            | Self::NodesReserved { nodes: count } => nodes(count),
            Self::TaskTooLarge { kind, needed, largest } => {
                amounts(kind, &[("needed", needed), ("largest", largest)])
            }
            Self::PoolTooSmall { kind, needed, total } => {
                amounts(kind, &[("needed", needed), ("total", total)])
            }
            Self::ResourcesBusy { kind, needed, free } => {
                amounts(kind, &[("needed", needed), ("free", free)])
            }
            Self::NodeFragmentation { kind, needed, free, largest } => {
                amounts(kind, &[("needed", needed), ("free", free), ("largest", largest)])
            }
            Self::PoolNotAllowed
            | Self::PoolSimulated
            | Self::LeaseUnsupported
            | Self::SecretsUnsupported
            | Self::SharesUnsupported
            | Self::NoNodes
            | Self::PoolCordoned
            | Self::PoolDraining
            | Self::PoolSuspect
            | Self::PoolUnreachable
            | Self::PoolLost
            | Self::Fits => Vec::new(),
        }
    }
}

/// The message of a code, in a language; `None` if the code is not one of reasons or help.
pub fn message<'a>(
    code: &str,
    language: Language,
    parameter: impl Fn(&str) -> Option<&'a str>,
) -> Option<String> {
    let reasons = table::POOLS.iter().chain(table::JOBS).map(|row| (row.entry.code, row.message));
    let (_, template) = reasons.chain(table::HELP.iter().copied()).find(|(known, _)| *known == code)?;
    Some(render(template, language, parameter))
}

/// The message in English.
fn fmt_message(f: &mut fmt::Formatter<'_>, code: &str, parameters: &[Parameter]) -> fmt::Result {
    let find =
        |name: &str| parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
    f.write_str(&message(code, Language::English, find).unwrap_or_default())
}

impl fmt::Display for PoolReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_message(f, self.code(), &self.parameters())
    }
}

/// A change to a job or a pool that would let a unit start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Help {
    /// Allow this region, in which `pool` has free capacity.
    AllowRegion { region: RegionCode, pool: String },
    /// Ask for at most so many devices per task.
    FewerDevices { devices: u64 },
    /// Uncordon this pool.
    UncordonPool { pool: String },
}

impl Help {
    /// Returns the stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::AllowRegion { .. } => "AllowRegion",
            Self::FewerDevices { .. } => "FewerDevices",
            Self::UncordonPool { .. } => "UncordonPool",
        }
    }

    /// Returns the numbers and names of this case, for the message.
    pub fn parameters(&self) -> Vec<Parameter> {
        match self {
            Self::AllowRegion { region, pool } => {
                vec![("region", region.to_string()), ("pool", pool.clone())]
            }
            Self::FewerDevices { devices } => vec![("devices", devices.to_string())],
            Self::UncordonPool { pool } => vec![("pool", pool.clone())],
        }
    }
}

impl fmt::Display for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_message(f, self.code(), &self.parameters())
    }
}

/// Why a job waits, apart from its pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobReason {
    /// A user holds the job: it starts nothing until it is released.
    Held,
    /// The unit would exceed a limit of its queue, or of an ancestor of it: `used` plus `needed` is above
    /// `limit`.
    QueueLimit { queue: String, kind: ResourceKind, limit: u64, used: u64, needed: u64 },
    /// A job that this one depends on has not ended.
    DependencyPending { job: JobId, queue: String, name: String },
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
            Self::Held => "Held",
            Self::QueueLimit { .. } => "QueueLimit",
            Self::DependencyPending { .. } => "DependencyPending",
            Self::BackingOff { .. } => "BackingOff",
            Self::BrokerReadOnly => "BrokerReadOnly",
            Self::RecoveryGracePeriod { .. } => "RecoveryGracePeriod",
        }
    }

    /// Returns the numbers and names of this case, for the message.
    pub fn parameters(&self) -> Vec<Parameter> {
        match self {
            Self::QueueLimit { queue, kind, limit, used, needed } => vec![
                ("queue", queue.clone()),
                ("kind", kind.to_string()),
                ("limit", limit.to_string()),
                ("used", used.to_string()),
                ("needed", needed.to_string()),
            ],
            Self::DependencyPending { job, queue, name } => {
                vec![("job", job.to_string()), ("queue", queue.clone()), ("name", name.clone())]
            }
            Self::BackingOff { until } => vec![("until", until.0.to_string())],
            Self::Held | Self::BrokerReadOnly => Vec::new(),
            Self::RecoveryGracePeriod { pools, until } => {
                vec![("pools", pools.to_string()), ("until", until.0.to_string())]
            }
        }
    }
}

impl fmt::Display for JobReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_message(f, self.code(), &self.parameters())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<&str> {
        let mut names: Vec<&str> =
            text.split('{').skip(1).filter_map(|rest| rest.split('}').next()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn messages_have_the_same_parameters_in_every_language_and_chinese_is_chinese() {
        let reasons = table::POOLS.iter().chain(table::JOBS);
        for (code, message) in
            reasons.map(|row| (row.entry.code, row.message)).chain(table::HELP.iter().copied())
        {
            assert_eq!(parts(message.english), parts(message.chinese), "{code}");
            assert!(!message.chinese.is_ascii(), "{code}");
        }
    }

    #[test]
    fn messages_are_rendered_with_their_amounts() {
        let reason = PoolReason::NodeFragmentation {
            kind: ResourceKind::Device,
            needed: 4_000,
            free: 9_000,
            largest: 2_500,
        };
        let english = "9 devices free, at most 2.5 devices on one node, 4 devices needed";
        assert_eq!(reason.to_string(), english);
        let parameters = reason.parameters();
        let find =
            |name: &str| parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
        let chinese = message(reason.code(), Language::Chinese, find);
        assert_eq!(chinese.as_deref(), Some("空闲 9 张加速卡，单个节点上最多 2.5 张加速卡，需要 4 张加速卡"));
        let missing = |models: &[&str]| PoolReason::DeviceMissing {
            models: models.iter().map(|model| (*model).to_owned()).collect(),
        };
        assert_eq!(missing(&[]).to_string(), "has no devices");
        assert_eq!(missing(&["A100", "A800"]).to_string(), "has no A100 or A800");
    }
}
