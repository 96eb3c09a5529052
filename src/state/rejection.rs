//! Rejections: why a command changes nothing. Each has a stable code.

use std::fmt;

use crate::model::id::{Epoch, JobId, Revision};
use crate::model::limit::TOKEN_RETENTION_MS;
use crate::model::time::Timestamp;
use crate::model::validate::{Violation, quote};

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr)]
pub enum Rejection {
    #[error("{}", Violations(.0))]
    Invalid(Vec<Violation>),
    #[error("{kind} {} does not exist", quote(name))]
    NotFound { kind: &'static str, name: String },
    #[error("{kind} {} exists already", quote(name))]
    AlreadyExists { kind: &'static str, name: String },
    #[error("{kind} {} is at revision {current}, not {based_on}", quote(name))]
    Conflict { kind: &'static str, name: String, current: Revision, based_on: Revision },
    #[error("this request token was used with another request")]
    TokenReused,
    #[error("this request token was made at {made_at} and is older than {TOKEN_RETENTION_MS} ms")]
    TokenExpired { made_at: Timestamp },
    #[error("{field}: job {job} {}", Self::DEPENDENCY_RULE)]
    BadDependency { field: String, job: JobId },
    #[error("{field}: {}: {why}; {}", Self::NEVER_FITS, Self::NEVER_FITS_HINT)]
    NeverFits { field: String, why: String },
    #[error("pool {} belongs to another agent", quote(pool))]
    PoolClaimed { pool: String },
    #[error(
        "pool {} has been served in session {served} from another copy of this agent's state folder, which knows of \
         session {last} only; {}",
        quote(pool),
        Self::COPIED_HINT
    )]
    PoolServed { pool: String, served: Epoch, last: Epoch },
    #[error("pool {} is spoken for in epoch {current}, not {epoch}", quote(pool))]
    StaleEpoch { pool: String, current: Epoch, epoch: Epoch },
    #[error("term {0} is not above the current one")]
    StaleTerm(u64),
    #[error("at most {max} {what} are allowed")]
    LimitReached { what: &'static str, max: usize },
    #[error("attempt {attempt} is not live in this pool")]
    UnknownAttempt { attempt: String },
    #[error("{what} is no longer as the command assumes")]
    Outdated { what: &'static str },
    #[error(
        "the broker is read-only: an agent runs work of revision {seen}, the journal ends at {at}; restore the newer journal"
    )]
    ReadOnly { seen: Revision, at: Revision },
}

struct Violations<'a>(&'a [Violation]);

impl fmt::Display for Violations<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            violation.fmt(f)?;
        }
        Ok(())
    }
}

impl Rejection {
    /// What is wrong with a dependency that can't be waited for.
    const DEPENDENCY_RULE: &'static str = "does not exist, or has ended otherwise than the condition asks";

    const NEVER_FITS: &'static str = "no pool can ever run it";
    const NEVER_FITS_HINT: &'static str = "allow_pending lets it wait for a pool that can";

    const COPIED_HINT: &'static str = "on another machine, give the pool a name and an empty state folder of its own; \
                                       if this is the pool's only agent, remove the file epoch from the folder";

    /// Stable codes with what each means and what helps, for the manual.
    pub const MANUAL: [(&'static str, &'static str, &'static str); 16] = [
        ("Invalid", "a field's value is not allowed; the error names it", "correct the field"),
        ("NotFound", "the named object does not exist", "check the name"),
        ("AlreadyExists", "the name is taken", "choose another name"),
        ("Conflict", "the object has changed since you read it", "read it again and repeat"),
        ("TokenReused", "the request token belongs to another request", "use a fresh token"),
        ("BadDependency", "the job depends on a job that can't be waited for", "name a job that exists"),
        (
            "NeverFits",
            "no pool could run the job, even if it were empty and open; the error has each pool's reason",
            "correct the job, or submit it with `--allow-pending` to wait for a pool that can",
        ),
        (
            "PoolClaimed",
            "the pool's name is bound to another agent",
            "use that agent's state folder, or another name",
        ),
        (
            "PoolServed",
            "the agent's state folder is a copy, made before the original served the pool again",
            "give the copy a pool name and an empty state folder of its own",
        ),
        ("StaleEpoch", "a newer session of the pool is active", "nothing: the newer session continues"),
        ("StaleTerm", "a newer broker writes the journal", "nothing: the newer one goes on"),
        ("LimitReached", "the broker holds as many of these as it may", "remove some"),
        ("UnknownAttempt", "the attempt is not live in the reporting pool", "nothing"),
        ("Outdated", "the state changed after the command was computed", "nothing: it is computed again"),
        ("ReadOnly", "the journal is older than what agents run", "restore the newer journal"),
        (
            "TokenExpired",
            "the request token is so old that what it did may be forgotten",
            "look whether it was done, then use a fresh token",
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
            Self::BadDependency { field, job } => {
                let description = format!("job {job} {}", Self::DEPENDENCY_RULE);
                vec![Violation { field: field.clone(), description }]
            }
            Self::NeverFits { field, why } => {
                let description = format!("{}: {why}; {}", Self::NEVER_FITS, Self::NEVER_FITS_HINT);
                vec![Violation { field: field.clone(), description }]
            }
            Self::NotFound { .. }
            | Self::AlreadyExists { .. }
            | Self::Conflict { .. }
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
