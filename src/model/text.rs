//! Rules for text from outside: names, labels, and characters that may be printed.

use super::limit::{LABEL_LEN_MAX, NAME_LEN_MAX};

/// Tells whether `c` can change how a line looks without being seen: controls, bidirectional
/// overrides, zero-width and other format characters.
pub fn is_control_or_bidi(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00ad}' | '\u{061c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// Writes `text` with deceptive characters as `\u{…}`, so that it prints as one honest line.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_control_or_bidi(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// Cuts `text` to at most `len_max` bytes at a character's border.
pub fn truncate(text: &mut String, len_max: usize) {
    if text.len() > len_max {
        let end = (0..=len_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
}

/// Tells whether `text` is a DNS label: lower-case letters, digits and inner hyphens, 1 to 63.
pub fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.len() <= NAME_LEN_MAX
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|b| edge(b) || *b == b'-')
}

/// Tells whether `text` names a node: DNS labels joined by dots, at most 253 characters.
pub fn is_host_name(text: &str) -> bool {
    text.len() <= LABEL_LEN_MAX && text.split('.').all(is_name)
}

/// Tells whether `text` may be a label's key or value: visible ASCII letters, digits and `-_./`.
pub fn is_label(text: &str) -> bool {
    text.len() <= LABEL_LEN_MAX && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:".contains(&b))
}

/// Tells whether `text` may name an environment variable.
pub fn is_env_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= LABEL_LEN_MAX
        && bytes.first().is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_')
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
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
    fn escaped_text_has_no_deceptive_character() {
        let escaped = escape("a\u{202e}b\u{0}c\u{200b}\n");
        assert_eq!(escaped, "a\\u{202e}b\\u{0}c\\u{200b}\\u{a}");
    }
}
