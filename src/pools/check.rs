//! What a pool needs, and whether it works.

/// One thing that a pool needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is needed, in a word or two.
    pub what: String,
    pub verdict: Verdict,
    /// What was found, or exactly why it does not work.
    pub detail: String,
}

/// How a need is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Works,
    /// Some jobs will find less than they may think.
    Limited,
    Fails,
}

impl Verdict {
    /// The word that is printed.
    pub fn word(self) -> &'static str {
        match self {
            Self::Works => "ok",
            Self::Limited => "limited",
            Self::Fails => "FAILS",
        }
    }
}

impl Finding {
    /// What was found of a need, or why it isn't met.
    pub fn of(what: &str, found: Result<String, String>) -> Self {
        let verdict = if found.is_ok() { Verdict::Works } else { Verdict::Fails };
        let detail = match found {
            Ok(detail) | Err(detail) => detail,
        };
        Self { what: what.to_owned(), verdict, detail }
    }

    /// Something that is less than a job may think.
    pub fn limited(what: &str, detail: String) -> Self {
        Self { what: what.to_owned(), verdict: Verdict::Limited, detail }
    }
}
