//! Regions: places named by ISO 3166-2 codes, with their GB/T 2260 digits.

use std::fmt;

/// The built-in catalogue, from which a broker's own starts.
const TABLE: &str = include_str!("regions.csv");

/// An ISO 3166-2 code such as `CN-CQ`: a country of two letters, a hyphen, a place of one to three
/// characters.
///
/// The default value is empty and names no region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionCode([u8; 6]);

/// The text is not a region code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a region: use an ISO 3166-2 code such as CN-CQ, or GB/T 2260 digits such as 500000")]
pub struct ParseRegionError {
    pub text: String,
}

impl RegionCode {
    /// Parses letters (`CN-CQ`) or the six digits of GB/T 2260 (`500000`).
    ///
    /// Letters need only have the form of a code: whether the place exists is checked against the broker's
    /// catalogue. Digits must be in the built-in catalogue.
    ///
    /// # Errors
    /// [`ParseRegionError`] if the text has neither form, or the digits name no built-in region.
    pub fn parse(text: &str) -> Result<Self, ParseRegionError> {
        if text.len() == 6
            && text.bytes().all(|b| b.is_ascii_digit())
            && let Some(region) = built_in().find(|region| region.gbt2260 == text)
        {
            return Ok(region.code);
        }
        Self::from_letters(text).ok_or_else(|| ParseRegionError { text: text.to_owned() })
    }

    /// Returns the code as text, 4 to 6 ASCII characters; empty for the default value.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        // `from_letters` alone writes the bytes, and only ASCII.
        std::str::from_utf8(&self.0[..len]).unwrap_or_default()
    }

    fn from_letters(text: &str) -> Option<Self> {
        let (country, place) = text.split_once('-')?;
        let upper = |b: u8| b.is_ascii_uppercase();
        let well_formed = country.len() == 2
            && country.bytes().all(upper)
            && (1..=3).contains(&place.len())
            && place.bytes().all(|b| upper(b) || b.is_ascii_digit());
        let mut bytes = [0; 6];
        well_formed.then(|| {
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            Self(bytes)
        })
    }
}

impl fmt::Display for RegionCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One row of the region catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    pub code: RegionCode,
    /// Six digits of GB/T 2260; empty outside China.
    pub gbt2260: String,
    /// Display name, in English.
    pub name: String,
}

/// Returns the built-in regions: the provinces of China.
pub fn built_in() -> impl Iterator<Item = Region> {
    TABLE.lines().skip(1).filter_map(|line| {
        let mut cells = line.split(',');
        let code = RegionCode::from_letters(cells.next()?)?;
        Some(Region { code, gbt2260: cells.next()?.to_owned(), name: cells.next()?.to_owned() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_parsed_and_letters_printed() {
        assert_eq!(RegionCode::parse("500000").map(|code| code.to_string()), Ok("CN-CQ".into()));
        assert_eq!(RegionCode::parse("CN-XJ").map(|code| code.to_string()), Ok("CN-XJ".into()));
        assert_eq!(built_in().count(), 34);
    }

    #[test]
    fn other_texts_are_rejected() {
        for text in ["", "CN", "cn-cq", "CN-", "CN-ABCD", "999999", "CN-C\u{202e}"] {
            assert!(RegionCode::parse(text).is_err(), "{text}");
        }
    }
}
