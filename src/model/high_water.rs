//! High-water marks: proofs, stored by agents, of how far a journal had been written.
//!
//! A broker restored from an older copy of its journal can't detect by itself that newer events are missing.
//! Its agents can prove it: they return the newest high-water mark that any broker sent them. A mark can't be
//! made without the journal's key, so no agent can invent a revision that was never written.

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::id::{JournalId, ParseIdError, Revision};

/// A journal's secret, drawn when the journal is created. It never leaves the broker.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct JournalKey(pub [u8; 16]);

impl fmt::Debug for JournalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JournalKey(secret)")
    }
}

/// A broker's proof that in its writer session the journal had reached `revision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HighWaterMark {
    pub revision: Revision,
    pub journal: JournalId,
    /// Random number of the writer session. The term would not do: two copies of a journal may both be
    /// written in sessions of the same term.
    pub writer_session: u64,
    /// Message authentication code over the other fields, made with the journal's key.
    pub proof: [u8; 16],
}

impl JournalKey {
    /// Makes a key from random bits. Use the bits for nothing else: a published value derived from them would
    /// reveal the key.
    pub fn from_random(random: u128) -> Self {
        Self(random.to_be_bytes())
    }

    /// Makes the high-water mark of a revision.
    pub fn high_water(&self, journal: JournalId, writer_session: u64, revision: Revision) -> HighWaterMark {
        HighWaterMark {
            journal,
            writer_session,
            revision,
            proof: self.proof(journal, writer_session, revision),
        }
    }

    /// True if the mark was made with this key. The comparison takes constant time.
    pub fn verifies(&self, high_water: &HighWaterMark) -> bool {
        let mac = self.mac(high_water.journal, high_water.writer_session, high_water.revision);
        mac.verify_truncated_left(&high_water.proof).is_ok()
    }

    /// HMAC-SHA-256 of the proved fields, all of fixed lengths.
    fn mac(&self, journal: JournalId, writer_session: u64, revision: Revision) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.chain_update(journal.get().to_be_bytes())
            .chain_update(writer_session.to_be_bytes())
            .chain_update(revision.0.to_be_bytes())
    }

    /// The first 128 bits of the authentication code.
    fn proof(&self, journal: JournalId, writer_session: u64, revision: Revision) -> [u8; 16] {
        let code = self.mac(journal, writer_session, revision).finalize().into_bytes();
        std::array::from_fn(|at| code[at])
    }
}

/// `REVISION.JOURNAL.SESSION.PROOF`, the last two as 16 and 32 hexadecimal digits.
impl fmt::Display for HighWaterMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proof = u128::from_be_bytes(self.proof);
        write!(f, "{}.{}.{:016x}.{proof:032x}", self.revision, self.journal, self.writer_session)
    }
}

impl FromStr for HighWaterMark {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let err = || ParseIdError {
            text: text.to_owned(),
            expected: "a high-water mark (REVISION.JOURNAL.SESSION.PROOF)",
        };
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
    fn high_water_mark_verifies_only_with_its_key_and_unaltered() {
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
