//! Rules for text from outside: names, labels, and characters that may be printed.

use super::limit::{LABEL_LEN_MAX, NAME_LEN_MAX};

/// True if `c` is invisible but can change how a line looks: controls, bidirectional overrides, zero-width
/// and other format characters.
pub fn is_control_or_bidi(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00ad}' | '\u{061c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// Returns `text` as one sanitised line: characters for which [`is_control_or_bidi`] holds are written as
/// `\u{…}`.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_control_or_bidi(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// Cuts `text` to at most `len_max` bytes, at a character boundary.
pub fn truncate(text: &mut String, len_max: usize) {
    if text.len() > len_max {
        let end = (0..=len_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
}

/// True if `text` is a DNS label: 1 to 63 lower-case letters, digits and inner hyphens.
pub fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.len() <= NAME_LEN_MAX
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|b| edge(b) || *b == b'-')
}

/// True if `text` is a host name: DNS labels joined by dots, at most 253 characters.
pub fn is_host_name(text: &str) -> bool {
    text.len() <= LABEL_LEN_MAX && text.split('.').all(is_name)
}

/// True if `text` may be a label's key or value: at most 253 ASCII letters, digits and `-_./:`. Empty text is
/// accepted: a value may be empty, and callers reject an empty key.
pub fn is_label(text: &str) -> bool {
    text.len() <= LABEL_LEN_MAX && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:".contains(&b))
}

/// True if `text` may name an environment variable: 1 to 253 ASCII letters, digits and underscores, not
/// beginning with a digit.
pub fn is_env_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= LABEL_LEN_MAX
        && bytes.first().is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_')
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
}

/// Characters of an invalid value that an error quotes.
const QUOTED_MAX: usize = 64;

/// Returns `value` for use in an error: cut to 64 characters, sanitised, and in quotation marks.
pub fn quote(value: &str) -> String {
    let mut short: String = value.chars().take(QUOTED_MAX).collect();
    if short.len() < value.len() {
        short.push('…');
    }
    format!("\"{}\"", escape(&short))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "job-1", "0x", &"a".repeat(63)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "é", &"a".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn escaped_text_has_no_control_or_bidi_character() {
        let escaped = escape("a\u{202e}b\u{0}c\u{200b}\n");
        assert_eq!(escaped, "a\\u{202e}b\\u{0}c\\u{200b}\\u{a}");
    }
}
