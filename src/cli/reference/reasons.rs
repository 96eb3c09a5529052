//! The stable codes of reasons, errors and outcomes, each with its meaning and what helps.

use crate::api::error;
use crate::model::attempt::OutcomeKind;
use crate::model::exchange::RefusedCode;
use crate::model::language::{Entry, Text};
use crate::model::reason::table;
use crate::state::rejection::Rejection;

/// What a table of codes is about, its last column, and its rows.
pub(super) struct Table {
    pub(super) title: &'static str,
    pub(super) column: Text,
    pub(super) rows: Vec<Entry>,
}

const REMEDY: Text = Text::new("remedy", "处理办法");
const RETRIED: Text = Text::new("retried", "是否重试");

pub(super) fn tables() -> Vec<Table> {
    let of = |title, column, rows| Table { title, column, rows };
    let reasons = |rows: &[table::Row]| rows.iter().map(|row| row.entry).collect();
    let outcome = |kind: &OutcomeKind| Entry::new(kind.code(), kind.meaning(), retried(*kind));
    let agent = |(code, meaning, remedy): &(RefusedCode, _, _)| Entry::new(code.code(), *meaning, *remedy);
    vec![
        of("Why a pool does not take a job", REMEDY, reasons(table::POOLS)),
        of("Why a job waits, independent of pools", REMEDY, reasons(table::JOBS)),
        of("Why a request is rejected", REMEDY, Rejection::MANUAL.into_iter().chain(error::MANUAL).collect()),
        of("How an attempt ends", RETRIED, OutcomeKind::ALL.iter().map(outcome).collect()),
        of("Why an agent is rejected", REMEDY, AGENTS.iter().map(agent).collect()),
    ]
}

fn retried(kind: OutcomeKind) -> Text {
    if kind.is_eviction() || kind == OutcomeKind::LeaseEnded {
        Text::new("always, without counting as an attempt", "总是重试，不计入尝试次数")
    } else if matches!(kind, OutcomeKind::Succeeded | OutcomeKind::Cancelled) {
        Text::new("no", "不重试")
    } else {
        Text::new("if `retry` allows it", "取决于 `retry`")
    }
}

/// The entry of a code, in any case, after the name of its last column.
pub(in crate::cli) fn find(code: &str) -> Option<(Text, Entry)> {
    let of = |table: Table| {
        let entry = table.rows.into_iter().find(|entry| entry.code.eq_ignore_ascii_case(code));
        entry.map(|entry| (table.column, entry))
    };
    tables().into_iter().find_map(of)
}

/// Why the broker refuses an agent.
const AGENTS: [(RefusedCode, Text, Text); 6] = [
    (
        RefusedCode::PoolClaimed,
        Text::new(
            "the pool's name is bound to another agent, or served from another copy of this one's state folder",
            "该算力池的名称已属于另一个代理，或由该代理状态目录的另一份副本在服务",
        ),
        Text::new("use that agent's state folder, or another name", "使用那个代理的状态目录，或换一个名称"),
    ),
    (
        RefusedCode::InvalidPool,
        Text::new(
            "the hello message, or the pool that it declares, is invalid",
            "代理的注册消息（Hello）或其中的算力池定义无效",
        ),
        Text::new("correct the agent's file", "改正代理的配置文件"),
    ),
    (
        RefusedCode::Superseded,
        Text::new("a newer session is the active session of the pool", "该算力池已有更新的会话"),
        Text::new("nothing: the newer session continues", "无需处理：较新的会话会继续"),
    ),
    (
        RefusedCode::UnknownWork,
        Text::new(
            "the pool runs attempts that this journal never ordered",
            "该算力池正在运行这份日志从未下达的尝试",
        ),
        Text::new(
            "restore the newer journal, if this one is an older copy",
            "如果这份日志是旧副本，请恢复较新的日志",
        ),
    ),
    (
        RefusedCode::ProtocolError,
        Text::new("a frame was lost or is invalid", "有消息丢失或无效"),
        Text::new("nothing: the agent connects again", "无需处理：代理会重新连接"),
    ),
    (
        RefusedCode::Unavailable,
        Text::new("the broker can't write its journal now", "调度服务现在无法写日志"),
        Text::new("see the broker's log", "查看调度服务的日志"),
    ),
];

#[cfg(test)]
mod tests {
    #[test]
    fn every_code_is_explained_in_both_languages() {
        for entry in super::tables().into_iter().flat_map(|table| table.rows) {
            for text in [entry.meaning, entry.remedy] {
                assert!(!text.english.is_empty() && !text.chinese.is_ascii(), "{}", entry.code);
            }
        }
    }
}
