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
#[error("{text:?} {}", ParseRegionError::RULE)]
pub struct ParseRegionError {
    pub text: String,
}

impl ParseRegionError {
    /// What is allowed.
    pub const RULE: &str = "is not a region: use an ISO 3166-2 code such as CN-CQ, GB/T 2260 digits such as 500000, or a name \
                            such as Chongqing or 重庆";
}

impl RegionCode {
    /// Parses letters (`CN-CQ`), the six digits of GB/T 2260 (`500000`), or a name in English or Chinese (`chongqing`,
    /// `重庆`, `重庆市`).
    ///
    /// Letters need only have the form of a code: whether the place exists is checked against the broker's
    /// catalogue. Digits and names must be in the built-in catalogue, whatever their case.
    ///
    /// # Errors
    /// [`ParseRegionError`] if the text has no such form, or names no built-in region.
    pub fn parse(text: &str) -> Result<Self, ParseRegionError> {
        if text.len() == 6
            && text.bytes().all(|b| b.is_ascii_digit())
            && let Some(region) = built_in().find(|region| region.gbt2260 == text)
        {
            return Ok(region.code);
        }
        let found = Self::from_letters(text).or_else(|| Self::named(text));
        found.ok_or_else(|| ParseRegionError { text: text.to_owned() })
    }

    /// The built-in region with this name, or this code in small letters.
    fn named(text: &str) -> Option<Self> {
        let plain = |name: &str| name.to_lowercase().replace(' ', "");
        let wanted = plain(text);
        let is_chinese = |name: &str| {
            !name.is_empty() && wanted.strip_prefix(name).is_some_and(|rest| CHINESE_ENDINGS.contains(&rest))
        };
        rows().find_map(|[code, _, name, chinese]| {
            let found = [code, name].map(plain).contains(&wanted) || is_chinese(chinese);
            found.then(|| Self::from_letters(code)).flatten()
        })
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

/// What may follow the short Chinese name of a region.
const CHINESE_ENDINGS: [&str; 7] = ["", "市", "省", "自治区", "壮族自治区", "回族自治区", "维吾尔自治区"];

/// The rows of the table: code, digits, English name, Chinese name.
fn rows() -> impl Iterator<Item = [&'static str; 4]> {
    TABLE.lines().skip(1).filter_map(|line| {
        let mut cells = line.split(',');
        Some([cells.next()?, cells.next()?, cells.next()?, cells.next()?])
    })
}

/// Returns the built-in regions: the provinces of China.
pub fn built_in() -> impl Iterator<Item = Region> {
    rows().filter_map(|[code, gbt2260, name, _]| {
        let code = RegionCode::from_letters(code)?;
        Some(Region { code, gbt2260: gbt2260.to_owned(), name: name.to_owned() })
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
    fn names_are_parsed_in_english_and_chinese() {
        for (text, code) in [
            ("cn-cq", "CN-CQ"),
            ("chongqing", "CN-CQ"),
            ("重庆", "CN-CQ"),
            ("重庆市", "CN-CQ"),
            ("贵州省", "CN-GZ"),
            ("新疆维吾尔自治区", "CN-XJ"),
            ("内蒙古", "CN-NM"),
            ("Inner Mongolia", "CN-NM"),
            ("innermongolia", "CN-NM"),
            ("hong kong", "CN-HK"),
        ] {
            assert_eq!(RegionCode::parse(text).map(|code| code.to_string()), Ok(code.into()), "{text}");
        }
    }

    #[test]
    fn other_texts_are_rejected() {
        for text in ["", "CN", "cn-qq", "市", "重", "CN-", "CN-ABCD", "999999", "CN-C\u{202e}"] {
            assert!(RegionCode::parse(text).is_err(), "{text}");
        }
    }
}
