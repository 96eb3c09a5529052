//! The journal of a simulated pool: one line per start, end and removal. It is rewritten when most lines
//! are obsolete. It is not synced: it must survive the agent, not the machine.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Task;
use crate::files;
use crate::model::attempt::OutcomeKind;
use crate::model::id::{AttemptId, Revision};
use crate::model::time::Timestamp;

/// Obsolete lines before the file is rewritten.
const STALE_MAX: usize = 4_096;

/// The journal's file; a journal without a file stores nothing.
pub(super) struct Journal {
    file: Option<(PathBuf, File)>,
    stale: usize,
    /// The last line is incomplete: its write failed.
    torn: bool,
}

/// One line of the journal: an attempt as it was at that time.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Line {
    attempt: String,
    revision: u64,
    #[serde(default)]
    high_water: String,
    start_by: u64,
    #[serde(default)]
    lease_ms: Option<u64>,
    started_at: u64,
    duration_ms: u64,
    timed_out: bool,
    exit_code: u8,
    ended: Option<(u64, String)>,
    forgotten: bool,
}

impl Line {
    pub(super) fn started(attempt: AttemptId, task: &Task) -> Self {
        Self {
            attempt: attempt.to_string(),
            revision: task.revision.0,
            high_water: task.high_water.map_or_else(String::new, |high_water| high_water.to_string()),
            start_by: task.start_by.0,
            lease_ms: task.lease_ms,
            started_at: task.started_at.0,
            duration_ms: task.duration_ms,
            timed_out: task.timed_out,
            exit_code: task.exit_code,
            ended: task.ended.map(|(at, kind)| (at.0, kind.code().to_owned())),
            forgotten: false,
        }
    }

    pub(super) fn ended(attempt: AttemptId, task: &Task) -> Self {
        Self::started(attempt, task)
    }

    fn read(self) -> Option<(AttemptId, Option<Task>)> {
        let attempt = self.attempt.parse().ok()?;
        if self.forgotten {
            return Some((attempt, None));
        }
        let kind = |code: &str| OutcomeKind::ALL.into_iter().find(|kind| kind.code() == code);
        let ended = match self.ended {
            Some((at, code)) => Some((Timestamp(at), kind(&code)?)),
            None => None,
        };
        let task = Task {
            revision: Revision(self.revision),
            high_water: self.high_water.parse().ok(),
            start_by: Timestamp(self.start_by),
            lease_ms: self.lease_ms,
            started_at: Timestamp(self.started_at),
            duration_ms: self.duration_ms,
            timed_out: self.timed_out,
            exit_code: self.exit_code,
            ended,
        };
        Some((attempt, Some(task)))
    }
}

impl Journal {
    /// Opens the file in `state` and reads its attempts. Lines that can't be decoded are skipped.
    ///
    /// The caller holds the [`Lock`](crate::lock::Lock) of the folder, or of one above it.
    ///
    /// # Errors
    /// Any I/O error.
    pub(super) fn open(state: Option<&Path>) -> std::io::Result<(Self, BTreeMap<AttemptId, Task>)> {
        let mut tasks = BTreeMap::new();
        let Some(state) = state else { return Ok((Self { file: None, stale: 0, torn: false }, tasks)) };
        std::fs::create_dir_all(state)?;
        let path = state.join("attempts.jsonl");
        let file = OpenOptions::new().create(true).append(true).read(true).open(&path)?;
        for line in BufReader::new(&file).lines() {
            let Some((attempt, task)) = serde_json::from_str::<Line>(&line?).ok().and_then(Line::read) else {
                continue;
            };
            match task {
                Some(task) => drop(tasks.insert(attempt, task)),
                None => drop(tasks.remove(&attempt)),
            }
        }
        // The rewriting also removes a last line that a crash has left incomplete.
        let mut journal = Self { file: Some((path, file)), stale: usize::MAX, torn: false };
        journal.rewrite_if_stale(&tasks);
        Ok((journal, tasks))
    }

    pub(super) fn write(&mut self, line: &Line) {
        let Some((path, file)) = &mut self.file else { return };
        let Ok(mut text) = serde_json::to_string(line) else { return };
        text.push('\n');
        if self.torn {
            text.insert(0, '\n');
        }
        let written = file.write_all(text.as_bytes());
        self.torn = written.is_err();
        if let Err(error) = written {
            tracing::error!(path = %path.display(), %error, "a simulated pool can't write its journal");
        }
    }

    pub(super) fn forget(&mut self, attempt: AttemptId, tasks: &BTreeMap<AttemptId, Task>) {
        let line = Line {
            attempt: attempt.to_string(),
            revision: 0,
            high_water: String::new(),
            start_by: 0,
            lease_ms: None,
            started_at: 0,
            duration_ms: 0,
            timed_out: false,
            exit_code: 0,
            ended: None,
            forgotten: true,
        };
        self.write(&line);
        self.stale += 2;
        self.rewrite_if_stale(tasks);
    }

    fn rewrite_if_stale(&mut self, tasks: &BTreeMap<AttemptId, Task>) {
        if self.stale < STALE_MAX.max(tasks.len()) {
            return;
        }
        self.stale = 0;
        let Some((path, file)) = &mut self.file else { return };
        let mut text = String::new();
        for (attempt, task) in tasks {
            if let Ok(line) = serde_json::to_string(&Line::started(*attempt, task)) {
                text.push_str(&line);
                text.push('\n');
            }
        }
        match files::replace(path, text.as_bytes()) {
            Ok(fresh) => (*file, self.torn) = (fresh, false),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a simulated pool can't write its journal");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{JobId, JournalId};

    #[test]
    fn an_incomplete_last_line_does_not_spoil_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let task = Task {
            revision: Revision(1),
            high_water: None,
            start_by: Timestamp(1),
            lease_ms: None,
            started_at: Timestamp(1),
            duration_ms: 1,
            timed_out: false,
            exit_code: 0,
            ended: None,
        };
        let attempt = |job: usize| AttemptId {
            journal: JournalId::default(),
            job: JobId(job as u64),
            unit: 0,
            number: 1,
        };
        let count = STALE_MAX + 10;
        {
            let (mut journal, _) = Journal::open(Some(folder.path())).unwrap();
            (0..count).for_each(|job| journal.write(&Line::started(attempt(job + 1), &task)));
            let (_, file) = journal.file.as_mut().unwrap();
            file.write_all(b"{\"attempt\":\"").unwrap();
        }
        let (mut journal, tasks) = Journal::open(Some(folder.path())).unwrap();
        assert_eq!(tasks.len(), count);
        journal.write(&Line::started(attempt(count + 1), &task));
        let (_, tasks) = Journal::open(Some(folder.path())).unwrap();
        assert_eq!(tasks.len(), count + 1);
    }
}
