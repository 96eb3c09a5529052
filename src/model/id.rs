//! Identities: of journals, jobs, units, attempts, pools, nodes, queues and specs.

use std::fmt;
use std::str::FromStr;

/// Declares a newtype over an integer that orders, hashes and prints like it.
macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id!(
    /// Position of an event in the journal; the first event has revision 1.
    Revision(u64)
);
number_id!(
    /// Number of a broker's period as writer of the journal. A higher term fences every lower one.
    Term(u64)
);
number_id!(
    /// Number of an agent's period as active agent of its pool. A higher epoch fences every lower one.
    Epoch(u64)
);
number_id!(
    /// A job's number in its journal; never reused.
    JobId(u64)
);
number_id!(
    /// A pool's number in its journal; never reused.
    PoolId(u32)
);
number_id!(
    /// A node's number within its pool; never reused.
    NodeId(u32)
);
number_id!(
    /// A queue's number in its journal; never reused.
    QueueId(u32)
);

number_id!(
    /// A reservation's number in its journal; never reused.
    ReservationId(u64)
);

impl Revision {
    /// Returns the revision after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A node of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeRef {
    pub pool: PoolId,
    pub node: NodeId,
}

/// The tasks that start and end together: one task of an independent group, all of a gang, or a whole job.
///
/// Units are numbered from 0 through all groups of the job: an independent group of `n` tasks takes `n`
/// numbers, a gang takes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId {
    pub job: JobId,
    pub unit: u32,
}

/// Digits of a journal id as text: RFC 4648 base 32 in lower case.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Characters of a journal id: 50 bits make a collision on one backend negligible.
const JOURNAL_CHARS: usize = 10;

/// Random identity of a journal of 50 bits, drawn when the journal is created. As text, 10 characters of base
/// 32.
///
/// It is part of every attempt id, so that the objects of two brokers on one backend are never confused. The
/// default value, 0, stands for no journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JournalId(u64);

impl JournalId {
    /// Makes an id from the low 50 bits of `random`.
    pub fn from_random(random: u64) -> Self {
        Self(random & ((1 << (5 * JOURNAL_CHARS)) - 1))
    }

    /// Returns the 50 bits as a number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; JOURNAL_CHARS];
        for (place, byte) in text.iter_mut().enumerate() {
            let shift = 5 * (JOURNAL_CHARS - 1 - place);
            *byte = BASE32[(self.0 >> shift) as usize & 31];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

/// The text could not be parsed as an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseIdError {
    pub text: String,
    /// What the text should have been, with an article: `a journal id`.
    pub expected: &'static str,
}

impl FromStr for JournalId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let err = || ParseIdError { text: text.to_owned(), expected: "a journal id" };
        if text.len() != JOURNAL_CHARS {
            return Err(err());
        }
        let mut value = 0u64;
        for byte in text.bytes() {
            let digit = BASE32.iter().position(|b| *b == byte).ok_or_else(err)?;
            value = value << 5 | digit as u64;
        }
        Ok(Self(value))
    }
}

/// Identity of one attempt at one unit. As text, `JOURNAL-JOB-UNIT-NUMBER`: at most 53 characters, 40 up to
/// 10^12 jobs, valid as a Kubernetes name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    pub journal: JournalId,
    pub job: JobId,
    pub unit: u32,
    /// Numbers the unit's attempts from 1.
    pub number: u32,
}

impl AttemptId {
    /// Returns the attempted unit.
    pub fn unit_id(self) -> UnitId {
        UnitId { job: self.job, unit: self.unit }
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}-{}", self.journal, self.job, self.unit, self.number)
    }
}

impl FromStr for AttemptId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let err =
            || ParseIdError { text: text.to_owned(), expected: "an attempt id (JOURNAL-JOB-UNIT-NUMBER)" };
        let mut parts = text.split('-');
        let mut part = || parts.next().ok_or_else(err);
        let id = Self {
            journal: part()?.parse()?,
            job: JobId(part()?.parse().map_err(|_| err())?),
            unit: part()?.parse().map_err(|_| err())?,
            number: part()?.parse().map_err(|_| err())?,
        };
        // Each id has one spelling: "+1" and "01" parse as numbers, but `Display` never writes them.
        if id.to_string() == text { Ok(id) } else { Err(err()) }
    }
}

/// Identity of a job spec: the first 128 bits of the SHA-256 of its record. Equal specs have equal ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpecId(pub [u8; 16]);

impl fmt::Display for SpecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Random identity of an agent's installation, stored in the agent's state folder. As text, 32 hexadecimal
/// digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub u128);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for InstanceId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        u128::from_str_radix(text, 16).map(Self).map_err(|_| ParseIdError {
            text: text.to_owned(),
            expected: "an agent instance id (32 hexadecimal digits)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempt_id_survives_text_and_stays_within_40_characters() {
        let id = AttemptId {
            journal: JournalId::from_random(u64::MAX),
            job: JobId(999_999_999_999),
            unit: 16_000_000,
            number: 99_999,
        };
        let text = id.to_string();
        assert!(text.len() <= 40, "{text}");
        assert_eq!(text.parse(), Ok(id));
    }

    #[test]
    fn attempt_id_has_one_spelling() {
        for text in ["", "a-1-1-1", "aaaaaaaaaa-01-0-1", "aaaaaaaaaa-1-0-1-1", "aaaaaaaaaa-+1-0-1"] {
            assert!(text.parse::<AttemptId>().is_err(), "{text}");
        }
    }
}
