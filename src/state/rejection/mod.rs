//! Rejections: why a command changes nothing. Each has a stable code.

mod text;

use std::fmt;

use crate::model::id::{AttemptId, Epoch, JobId, Revision};
use crate::model::language::{Entry, Language, Text};
use crate::model::reason::PoolReason;
use crate::model::time::Timestamp;
use crate::model::validate::Violation;
use crate::state::job::JobEnd;

/// Why a command was refused. `text.rs` has the messages.
#[derive(Clone, Debug, PartialEq, Eq, strum::IntoStaticStr)]
pub enum Rejection {
    Invalid(Vec<Violation>),
    NotFound {
        kind: &'static str,
        name: String,
    },
    /// There is no such job in the queue, but in these.
    #[strum(serialize = "NotFound")]
    JobElsewhere {
        name: String,
        queues: Vec<String>,
    },
    AlreadyExists {
        kind: &'static str,
        name: String,
    },
    Conflict {
        kind: &'static str,
        name: String,
        current: Revision,
        based_on: Revision,
    },
    InUse {
        kind: &'static str,
        name: String,
        by: InUse,
    },
    TokenReused,
    TokenExpired {
        made_at: Timestamp,
    },
    BadDependency {
        field: String,
        job: JobId,
        why: UnmetDependency,
    },
    /// Pools that the job names and that do not exist; some pools with their reasons, how many more there are, and how many
    /// only simulate.
    NeverFits {
        field: String,
        missing: Vec<MissingPool>,
        pools: Vec<(String, PoolReason)>,
        more: usize,
        simulated: usize,
    },
    PoolClaimed {
        pool: String,
    },
    PoolServed {
        pool: String,
        served: Epoch,
        last: Epoch,
    },
    StaleEpoch {
        pool: String,
        current: Epoch,
        epoch: Epoch,
    },
    StaleTerm(u64),
    LimitReached {
        what: &'static str,
        max: usize,
    },
    UnknownAttempt {
        attempt: String,
    },
    Outdated {
        what: &'static str,
    },
    ReadOnly {
        seen: Revision,
        at: Revision,
    },
}

/// A pool that a job names and that does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingPool {
    pub name: String,
    /// Pools that may have been meant.
    pub similar: Vec<String>,
}

/// What keeps a pool or a queue from being deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InUse {
    /// The pool's agent is connected. It counts as gone after `wait_s` seconds.
    Agent {
        wait_s: u64,
    },
    RunningAttempts {
        count: u64,
        wait_s: u64,
    },
    /// The pool's agent was connected less than `wait_s` seconds ago.
    RecentAgent {
        wait_s: u64,
    },
    /// Attempts that may still run, though the pool's agent is gone.
    UnknownAttempts {
        count: u64,
        first: AttemptId,
    },
    /// A queue below the queue.
    Child {
        name: String,
    },
    /// Jobs that have not ended.
    Jobs {
        count: u64,
    },
}

/// Why a job can't be waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnmetDependency {
    /// It is not live: it does not exist, or has ended otherwise than the condition asks.
    Unknown {
        job: JobId,
    },
    Missing {
        job: JobId,
    },
    Ended {
        queue: String,
        name: String,
        end: JobEnd,
    },
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(Language::English))
    }
}

impl std::error::Error for Rejection {}

impl Rejection {
    /// Stable codes with what each means and what helps, for the manual.
    pub const MANUAL: [Entry; 17] = [
        Entry::new(
            "Invalid",
            Text::new(
                "a field's value is not allowed; the error names it",
                "字段的值不被允许；错误信息指出了该字段",
            ),
            Text::new("correct the field", "改正该字段"),
        ),
        Entry::new(
            "NotFound",
            Text::new("the named object does not exist", "指定的对象不存在"),
            Text::new("check the name", "检查名称"),
        ),
        Entry::new(
            "AlreadyExists",
            Text::new("the name is taken", "名称已被占用"),
            Text::new("choose another name", "换一个名称"),
        ),
        Entry::new(
            "Conflict",
            Text::new("the object has changed since you read it", "对象在读取之后已被修改"),
            Text::new("read it again and repeat", "重新读取后再试"),
        ),
        Entry::new(
            "InUse",
            Text::new(
                "the pool or queue can't be deleted while something depends on it; the error names it",
                "算力池或队列仍被使用，不能删除；错误信息说明了原因",
            ),
            Text::new("do as the error asks, then delete it", "按错误信息处理后再删除"),
        ),
        Entry::new(
            "TokenReused",
            Text::new("the request token belongs to another request", "该请求令牌属于另一个请求"),
            Text::new("use a fresh token", "使用新的令牌"),
        ),
        Entry::new(
            "BadDependency",
            Text::new("the job depends on a job that can't be waited for", "作业依赖一个无法等待的作业"),
            Text::new("name a job that exists", "指定一个存在的作业"),
        ),
        Entry::new(
            "NeverFits",
            Text::new(
                "no pool could run the job, even if it were empty and open; the error has each pool's reason",
                "没有算力池能运行该作业，即使它空闲且开放；错误信息列出了各算力池的原因",
            ),
            Text::new(
                "correct the job, or submit it with `--allow-pending` to wait for a pool that can",
                "改正作业，或用 `--allow-pending` 提交，等待能运行它的算力池",
            ),
        ),
        Entry::new(
            "PoolClaimed",
            Text::new("the pool's name is bound to another agent", "该算力池的名称已属于另一个代理"),
            Text::new(
                "use that agent's state folder, or another name",
                "使用那个代理的状态目录，或换一个名称",
            ),
        ),
        Entry::new(
            "PoolServed",
            Text::new(
                "the agent's state folder is a copy, made before the original served the pool again",
                "该代理的状态目录是一份旧副本，此后原目录又服务过该算力池",
            ),
            Text::new(
                "give the copy a pool name and an empty state folder of its own",
                "给副本另起算力池名称，并使用空的状态目录",
            ),
        ),
        Entry::new(
            "StaleEpoch",
            Text::new("a newer session of the pool is active", "该算力池有更新的会话"),
            Text::new("nothing: the newer session continues", "无需处理：较新的会话会继续"),
        ),
        Entry::new(
            "StaleTerm",
            Text::new("a newer broker writes the journal", "较新的调度服务正在写日志"),
            Text::new("nothing: the newer one goes on", "无需处理：较新的调度服务会继续工作"),
        ),
        Entry::new(
            "LimitReached",
            Text::new("the broker holds as many of these as it may", "调度服务中此类对象已达上限"),
            Text::new("remove some", "删除一些"),
        ),
        Entry::new(
            "UnknownAttempt",
            Text::new("the attempt is not live in the reporting pool", "该尝试没有在上报的算力池中运行"),
            Text::new("nothing", "无需处理"),
        ),
        Entry::new(
            "Outdated",
            Text::new("the state changed after the command was computed", "计算命令之后状态已改变"),
            Text::new("nothing: it is computed again", "无需处理：会重新计算"),
        ),
        Entry::new(
            "ReadOnly",
            Text::new("the journal is older than what agents run", "日志比代理正在运行的任务旧"),
            Text::new("restore the newer journal", "恢复较新的日志"),
        ),
        Entry::new(
            "TokenExpired",
            Text::new(
                "the request token is so old that what it did may be forgotten",
                "请求令牌过旧，它执行过的操作可能已不再记录",
            ),
            Text::new(
                "look whether it was done, then use a fresh token",
                "先确认操作是否已完成，再使用新的令牌",
            ),
        ),
    ];

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.into()
    }

    /// The fields that are to be corrected, if it is about fields.
    pub fn violations(&self) -> Vec<Violation> {
        match self {
            Self::Invalid(violations) => violations.clone(),
            Self::BadDependency { field, .. } | Self::NeverFits { field, .. } => {
                let description = self.field_text(Language::English);
                vec![Violation { field: field.clone(), description }]
            }
            Self::NotFound { .. }
            | Self::JobElsewhere { .. }
            | Self::AlreadyExists { .. }
            | Self::Conflict { .. }
            | Self::InUse { .. }
            | Self::TokenReused
            | Self::PoolClaimed { .. }
            | Self::PoolServed { .. }
            | Self::StaleEpoch { .. }
            | Self::StaleTerm(_)
            | Self::LimitReached { .. }
            | Self::UnknownAttempt { .. }
            | Self::Outdated { .. }
            | Self::TokenExpired { .. }
            | Self::ReadOnly { .. } => Vec::new(),
        }
    }

    /// A single field's violation.
    pub fn invalid(field: &str, description: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation { field: field.to_owned(), description: description.into() }])
    }
}
