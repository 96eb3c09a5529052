//! The messages of rejections, in each language.

use super::{InUse, MissingPool, Rejection, UnmetDependency};
use crate::model::language::Language::{self, Chinese, English};
use crate::model::limit::TOKEN_RETENTION_MS;
use crate::model::reason::{self, PoolReason};
use crate::model::suggest::question;
use crate::model::validate::{Violation, quote};
use crate::state::job::JobEnd;

impl Rejection {
    /// The message in a language. What is wrong with a field exists in English only, and so do the names of internal
    /// objects.
    pub fn text(&self, language: Language) -> String {
        match self {
            Self::Invalid(violations) => {
                violations.iter().map(Violation::to_string).collect::<Vec<_>>().join("; ")
            }
            Self::NotFound { kind, name } => {
                let (kind, name) = (kind_text(kind, language), quote(name));
                match language {
                    English => format!("{kind} {name} does not exist"),
                    Chinese => format!("{kind} {name} 不存在"),
                }
            }
            Self::JobElsewhere { name, queues } => {
                let jobs: Vec<String> = queues.iter().map(|queue| format!("job/{queue}/{name}")).collect();
                match language {
                    English => {
                        format!(
                            "job {} does not exist{}",
                            quote(name),
                            question(&jobs.iter().map(String::as_str).collect::<Vec<_>>())
                        )
                    }
                    Chinese => format!("作业 {} 不存在，您是想写 {} 吗？", quote(name), jobs.join("、")),
                }
            }
            Self::AlreadyExists { kind, name } => {
                let (kind, name) = (kind_text(kind, language), quote(name));
                match language {
                    English => format!("{kind} {name} exists already"),
                    Chinese => format!("{kind} {name} 已存在"),
                }
            }
            Self::Conflict { kind, name, current, based_on } => {
                let (kind, name) = (kind_text(kind, language), quote(name));
                match language {
                    English => format!("{kind} {name} is at revision {current}, not {based_on}"),
                    Chinese => format!("{kind} {name} 的版本是 {current}，不是 {based_on}"),
                }
            }
            Self::InUse { kind, name, by } => {
                let (kind, name, by) = (kind_text(kind, language), quote(name), by.text(language));
                match language {
                    English => format!("{kind} {name} is in use: {by}"),
                    Chinese => format!("{kind} {name} 仍在使用：{by}"),
                }
            }
            Self::TokenReused => match language {
                English => "this request token was used with another request".to_owned(),
                Chinese => "该请求标识已用于另一个请求".to_owned(),
            },
            Self::TokenExpired { made_at } => match language {
                English => {
                    format!(
                        "this request token was made at {made_at} and is older than {TOKEN_RETENTION_MS} ms"
                    )
                }
                Chinese => format!("该请求标识生成于 {made_at}，已超过 {TOKEN_RETENTION_MS} 毫秒"),
            },
            Self::BadDependency { field, .. } => format!("{field}: {}", self.field_text(language)),
            Self::NeverFits { field, .. } => match language {
                English => format!(
                    "{field}: {}; allow_pending lets it wait for a pool that can",
                    self.field_text(language)
                ),
                Chinese => {
                    format!("{field}: {}；allow_pending 让它等待能运行它的算力池", self.field_text(language))
                }
            },
            Self::PoolClaimed { pool } => match language {
                English => format!("pool {} belongs to another agent", quote(pool)),
                Chinese => format!("算力池 {} 属于另一个代理", quote(pool)),
            },
            Self::PoolServed { pool, served, last } => match language {
                English => format!(
                    "pool {} has been served in session {served} from another copy of this agent's state folder, which \
                     knows of session {last} only; on another machine, give the pool a name and an empty state folder of \
                     its own; if this is the pool's only agent, remove the file epoch from the folder",
                    quote(pool)
                ),
                Chinese => format!(
                    "算力池 {} 已由该代理状态目录的另一份副本在会话 {served} 中服务过，而本目录只记录到会话 {last}；\
                     如在另一台机器上，请为算力池另起名称并使用空的状态目录；如果这是该算力池唯一的代理，请删除目录中的 epoch 文件",
                    quote(pool)
                ),
            },
            Self::StaleEpoch { pool, current, epoch } => match language {
                English => format!("pool {} is spoken for in epoch {current}, not {epoch}", quote(pool)),
                Chinese => format!("算力池 {} 的当前会话是 {current}，不是 {epoch}", quote(pool)),
            },
            Self::StaleTerm(term) => match language {
                English => format!("term {term} is not above the current one"),
                Chinese => format!("任期 {term} 不高于当前任期"),
            },
            Self::LimitReached { what, max } => match language {
                English => format!("at most {max} {what} are allowed"),
                Chinese => format!("最多允许 {max} 个（{what}）"),
            },
            Self::UnknownAttempt { attempt } => match language {
                English => format!("attempt {attempt} is not live in this pool"),
                Chinese => format!("尝试 {attempt} 没有在该算力池中运行"),
            },
            Self::Outdated { what } => match language {
                English => format!("{what} is no longer as the command assumes"),
                Chinese => format!("状态已改变（{what}）"),
            },
            Self::ReadOnly { seen, at } => match language {
                English => format!(
                    "the broker is read-only: an agent runs work of revision {seen}, the journal ends at {at}; restore the \
                     newer journal"
                ),
                Chinese => format!(
                    "调度服务只读：某个代理正在运行版本 {seen} 的任务，而日志只到 {at}；请恢复较新的日志"
                ),
            },
        }
    }

    /// What is wrong with the field that is to be corrected, without its name; empty if it is about no single field.
    pub fn field_text(&self, language: Language) -> String {
        match self {
            Self::BadDependency { why, .. } => why.text(language),
            Self::NeverFits { missing, pools, more, simulated, .. } => {
                let separator = if language == English { "; " } else { "；" };
                let mut why: Vec<String> = missing.iter().map(|missing| missing.text(language)).collect();
                let of_pool = |(pool, reason): &(String, PoolReason)| {
                    format!("{pool}: {}", reason_text(reason, language))
                };
                why.extend(pools.iter().map(of_pool));
                let count = |count: &usize, english: String, chinese: String| {
                    (*count > 0).then_some(if language == English { english } else { chinese })
                };
                why.extend(count(more, format!("and {more} more pools"), format!("另有 {more} 个算力池")));
                let only = if *simulated == 1 { "1 pool only simulates" } else { "pools only simulate" };
                let only = if *simulated == 1 { only.to_owned() } else { format!("{simulated} {only}") };
                why.extend(count(
                    simulated,
                    format!("{only} tasks"),
                    format!("{simulated} 个算力池只模拟任务"),
                ));
                match language {
                    English => format!("no pool can ever run it: {}", why.join(separator)),
                    Chinese => format!("没有算力池能运行它：{}", why.join(separator)),
                }
            }
            _ => String::new(),
        }
    }
}

impl MissingPool {
    fn text(&self, language: Language) -> String {
        let (name, similar) = (quote(&self.name), &self.similar);
        let similar: Vec<&str> = similar.iter().map(String::as_str).collect();
        match language {
            English => format!("pool {name} does not exist{}", question(&similar)),
            Chinese if similar.is_empty() => format!("算力池 {name} 不存在"),
            Chinese => format!("算力池 {name} 不存在，您是想写 {} 吗", similar.join("、")),
        }
    }
}

impl InUse {
    fn text(&self, language: Language) -> String {
        let chinese = language == Chinese;
        match self {
            Self::Agent { wait_s } if chinese => format!("它的代理已连接；请停止代理，再等 {wait_s} 秒"),
            Self::Agent { wait_s } => format!("its agent is connected; stop the agent, then wait {wait_s} s"),
            Self::RunningAttempts { count, wait_s } if chinese => {
                format!("有 {count} 个尝试正在运行；请先排空算力池，然后停止它的代理，再等 {wait_s} 秒")
            }
            Self::RunningAttempts { count, wait_s } => {
                let attempts = counted(*count, "attempt runs", "attempts run");
                format!(
                    "{attempts} there; drain the pool, and when it is empty stop its agent and wait {wait_s} s"
                )
            }
            Self::RecentAgent { wait_s } if chinese => {
                format!("不到 {wait_s} 秒之前它的代理还处于连接状态；如果代理已停止，请稍候")
            }
            Self::RecentAgent { wait_s } => {
                format!("its agent was connected less than {wait_s} s ago; wait, if it is stopped")
            }
            Self::UnknownAttempts { count, first } if chinese => format!(
                "有 {count} 个尝试可能仍在运行，例如 {first}；请在代理运行时排空算力池，或用 `weir admin abandon` 逐个放弃"
            ),
            Self::UnknownAttempts { count, first } => {
                let attempts = counted(*count, "attempt", "attempts");
                format!(
                    "{attempts} may still run there, such as {first}; drain the pool while its agent runs, or give each \
                     up with `weir admin abandon`"
                )
            }
            Self::Child { name } if chinese => format!("{} 在它之下；请先删除该队列", quote(name)),
            Self::Child { name } => format!("{} is below it; delete that first", quote(name)),
            Self::Jobs { count } if chinese => {
                format!("它有 {count} 个作业尚未结束；请取消这些作业，或等待它们结束")
            }
            Self::Jobs { count } => {
                let jobs = counted(*count, "job that has", "jobs that have");
                format!("it has {jobs} not ended; cancel them, or wait")
            }
        }
    }
}

impl UnmetDependency {
    fn text(&self, language: Language) -> String {
        match (self, language) {
            (Self::Unknown { job }, English) => {
                format!("job {job} does not exist, or has ended otherwise than the condition asks")
            }
            (Self::Unknown { job }, Chinese) => format!("作业 {job} 不存在，或其结束方式不满足条件"),
            (Self::Missing { job }, English) => format!("job {job} does not exist"),
            (Self::Missing { job }, Chinese) => format!("作业 {job} 不存在"),
            (Self::Ended { queue, name, end }, English) => {
                format!("job/{queue}/{name} has {}, which is not what the condition asks", end.text())
            }
            (Self::Ended { queue, name, end }, Chinese) => {
                let end = match end {
                    JobEnd::Succeeded => "已成功",
                    JobEnd::Failed => "已失败",
                    JobEnd::Cancelled => "已取消",
                };
                format!("job/{queue}/{name} {end}，不满足条件")
            }
        }
    }
}

fn reason_text(reason: &PoolReason, language: Language) -> String {
    let parameters = reason.parameters();
    let find =
        |name: &str| parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
    reason::message(reason.code(), language, find).unwrap_or_default()
}

/// A count with its noun.
fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// What an object is called. Names of kinds that users don't know stay English.
fn kind_text(kind: &'static str, language: Language) -> &'static str {
    if language == English {
        return kind;
    }
    match kind {
        "job" => "作业",
        "pool" => "算力池",
        "queue" => "队列",
        "node" => "节点",
        "attempt" => "尝试",
        "live attempt" => "运行中的尝试",
        "reservation" => "预留",
        "region" => "地域",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::JobId;
    use crate::model::resource::ResourceKind;

    #[test]
    fn each_language_has_the_same_numbers_and_names() {
        let too_large = PoolReason::TaskTooLarge { kind: ResourceKind::Cpu, needed: 3_000, largest: 2_000 };
        let never = Rejection::NeverFits {
            missing: vec![MissingPool { name: "lcal".to_owned(), similar: vec!["local".to_owned()] }],
            field: "groups[0]".to_owned(),
            pools: vec![("local".to_owned(), too_large)],
            more: 7,
            simulated: 5,
        };
        assert_eq!(
            never.text(English),
            "groups[0]: no pool can ever run it: pool \"lcal\" does not exist, did you mean \"local\"?; local: 3 CPUs needed by one task, the largest node has 2 CPUs; and 7 more pools; \
             5 pools only simulate tasks; allow_pending lets it wait for a pool that can"
        );
        let chinese = never.text(Chinese);
        for part in ["groups[0]", "local", "3 核 CPU", "2 核 CPU", "另有 7 个", "5 个算力池只模拟任务"]
        {
            assert!(chinese.contains(part), "{part}: {chinese}");
        }
        let (name, kind) = ("x".to_owned(), "queue");
        let jobs = Rejection::InUse { kind, name: name.clone(), by: InUse::Jobs { count: 1 } };
        assert_eq!(
            jobs.text(English),
            "queue \"x\" is in use: it has 1 job that has not ended; cancel them, or wait"
        );
        assert_eq!(
            jobs.text(Chinese),
            "队列 \"x\" 仍在使用：它有 1 个作业尚未结束；请取消这些作业，或等待它们结束"
        );
        let end = JobEnd::Failed;
        let why = UnmetDependency::Ended { queue: "default".to_owned(), name, end };
        let unmet = Rejection::BadDependency { field: "depends_on[0]".to_owned(), job: JobId(7), why };
        assert_eq!(
            unmet.field_text(English),
            "job/default/x has failed, which is not what the condition asks"
        );
        assert_eq!(unmet.field_text(Chinese), "job/default/x 已失败，不满足条件");
    }
}
