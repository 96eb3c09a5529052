//! Stamps: what a broker gives its agents to show, later on, how far its journal went.
//!
//! A broker that comes back on an older copy of its journal can't know by itself what is missing.
//! Its agents do: they bring back the newest stamp that they were given. A stamp can't be made
//! without the journal's key, so no agent can claim a journal that never was.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::id::{JournalId, ParseIdError, Revision};

/// A secret that a journal is born with, shown to nobody.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct JournalKey(pub [u8; 16]);

impl fmt::Debug for JournalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JournalKey(secret)")
    }
}

/// A broker's word that in its turn the journal had come to `revision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HighWaterMark {
    pub revision: Revision,
    pub journal: JournalId,
    /// A random number of the writer's turn: two copies of a journal may be written in turns of
    /// the same term.
    pub writer_session: u64,
    /// What only who has the journal's key can make.
    pub proof: [u8; 16],
}

impl JournalKey {
    /// Makes a key out of random bits that are used for nothing else: what is derived from them and
    /// shown would give the key away.
    pub fn from_random(random: u128) -> Self {
        Self(random.to_be_bytes())
    }

    /// Stamps a revision.
    pub fn high_water(&self, journal: JournalId, writer_session: u64, revision: Revision) -> HighWaterMark {
        HighWaterMark {
            journal,
            writer_session,
            revision,
            proof: self.proof(journal, writer_session, revision),
        }
    }

    /// Tells whether the stamp was made with this key.
    pub fn verifies(&self, high_water: &HighWaterMark) -> bool {
        let proof = self.proof(high_water.journal, high_water.writer_session, high_water.revision);
        proof.iter().zip(high_water.proof).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
    }

    /// SHA-256 over the key and what is proved, cut to 128 bits. All parts have fixed lengths, and
    /// half of the digest is kept back, so nothing can be appended to a known one.
    fn proof(&self, journal: JournalId, writer_session: u64, revision: Revision) -> [u8; 16] {
        let hash = Sha256::new().chain_update(self.0).chain_update(journal.get().to_be_bytes());
        cut(hash.chain_update(writer_session.to_be_bytes()).chain_update(revision.0.to_be_bytes()))
    }
}

fn cut(hash: Sha256) -> [u8; 16] {
    let mut first = [0; 16];
    first.copy_from_slice(&hash.finalize()[..16]);
    first
}

/// `REVISION.JOURNAL.TURN.PROOF`, the last two in hexadecimal digits.
impl fmt::Display for HighWaterMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proof = u128::from_be_bytes(self.proof);
        write!(f, "{}.{}.{:016x}.{proof:032x}", self.revision, self.journal, self.writer_session)
    }
}

impl FromStr for HighWaterMark {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let err = || ParseIdError { text: text.to_owned(), expected: "a stamp" };
        let parts: Vec<&str> = text.split('.').collect();
        let [revision, journal, writer_session, proof] = parts[..] else { return Err(err()) };
        Ok(Self {
            revision: Revision(revision.parse().map_err(|_| err())?),
            journal: journal.parse()?,
            writer_session: u64::from_str_radix(writer_session, 16).map_err(|_| err())?,
            proof: u128::from_str_radix(proof, 16).map_err(|_| err())?.to_be_bytes(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_is_verified_by_the_key_that_made_it_and_only_as_it_is() {
        let (key, other) = (JournalKey::from_random(1), JournalKey::from_random(2));
        let high_water = key.high_water(JournalId::from_random(3), 4, Revision(5));
        assert!(key.verifies(&high_water) && !other.verifies(&high_water));
        assert!(!key.verifies(&HighWaterMark { revision: Revision(6), ..high_water }));
        assert!(!key.verifies(&HighWaterMark { writer_session: 5, ..high_water }));
        assert!(!key.verifies(&HighWaterMark { journal: JournalId::from_random(4), ..high_water }));
        assert_eq!(high_water.to_string().parse(), Ok(high_water));
        assert!("5.x.4.7".parse::<HighWaterMark>().is_err());
    }
}
