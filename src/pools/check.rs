//! Requirements of a pool, and whether they are met: the rows of `weir agent check`.

/// The result of checking one requirement of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The requirement, in one or two words.
    pub what: String,
    pub verdict: Verdict,
    /// What was found, or the exact reason why it does not work.
    pub detail: String,
}

/// How far a requirement is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Works,
    /// The pool works, but some jobs get less than they may expect.
    Limited,
    Fails,
}

impl Verdict {
    /// Returns the word that the command prints.
    pub fn word(self) -> &'static str {
        match self {
            Self::Works => "ok",
            Self::Limited => "limited",
            Self::Fails => "FAILS",
        }
    }
}

impl Finding {
    /// Makes a finding of what was found, or of the reason why the requirement is not met.
    pub fn of(what: &str, found: Result<String, String>) -> Self {
        let verdict = if found.is_ok() { Verdict::Works } else { Verdict::Fails };
        let detail = match found {
            Ok(detail) | Err(detail) => detail,
        };
        Self { what: what.to_owned(), verdict, detail }
    }

    /// Makes a finding of something that gives jobs less than they may expect.
    pub fn limited(what: &str, detail: String) -> Self {
        Self { what: what.to_owned(), verdict: Verdict::Limited, detail }
    }
}
