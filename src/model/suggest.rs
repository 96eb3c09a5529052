//! Suggestions for a name that is not known: what its author may have meant.

use strsim::damerau_levenshtein;

/// Bytes of an unknown name up to which suggestions are looked for: comparing takes time by the product of both lengths,
/// and no user misspells a name of this length.
const LEN_MAX: usize = 64;
/// Names that a suggestion is chosen from: a catalogue may have tens of thousands.
const COMPARED_MAX: usize = 2_048;
/// Names in one suggestion.
const SUGGESTED_MAX: usize = 3;
/// Bytes of a name's part from which on another name that contains it is suggested.
const PART_LEN_MIN: usize = 2;

/// How a candidate matches, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    /// But for case and separators.
    Same,
    /// The candidate begins with the name: `V100` of `V100M32`.
    Prefix,
    /// The candidate contains the name: `910B` of `Ascend910B3`.
    Part,
    /// With so many typing errors.
    Misspelt(usize),
}

/// The candidates that `text` may stand for, best first: all that match equally well, three at most.
///
/// A number is not misspelt: `A800` is not `A100`, so only candidates with the same digits are near.
pub fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    if text.len() > LEN_MAX {
        return Vec::new();
    }
    let wanted = plain(text);
    let compared = candidates.into_iter().take(COMPARED_MAX);
    let mut found: Vec<(Match, &str)> =
        compared.filter_map(|candidate| Some((matches(text, &wanted, candidate)?, candidate))).collect();
    found.sort_unstable();
    found.dedup();
    let best = found.first().map(|(how, _)| *how);
    let best = found.into_iter().take_while(|(how, _)| Some(*how) == best);
    best.take(SUGGESTED_MAX).map(|(_, candidate)| candidate).collect()
}

fn matches(text: &str, wanted: &str, candidate: &str) -> Option<Match> {
    let known = plain(candidate);
    if known == wanted {
        return Some(Match::Same);
    }
    if wanted.len() >= PART_LEN_MIN {
        if known.starts_with(wanted) {
            return Some(Match::Prefix);
        }
        if known.contains(wanted) {
            return Some(Match::Part);
        }
    }
    let allowed = 1 + candidate.len() / 4;
    let comparable = digits(text) == digits(candidate)
        && text.len().abs_diff(candidate.len()) <= allowed
        && is_one_product(wanted, &known);
    let errors = comparable.then(|| damerau_levenshtein(text, candidate))?;
    (errors <= allowed).then_some(Match::Misspelt(errors))
}

/// A name without its case, its separators and the words by which vendors begin the names of their models.
fn plain(name: &str) -> String {
    let plain: String = name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    VENDOR_WORDS
        .iter()
        .fold(plain, |plain, word| plain.strip_prefix(word).map(str::to_owned).unwrap_or(plain))
}

/// In the order in which they stand in names, such as `NVIDIA GeForce RTX 4090`.
const VENDOR_WORDS: [&str; 9] =
    ["nvidia", "tesla", "geforce", "huawei", "amd", "instinct", "hygon", "cambricon", "gpu"];

/// Two names with numbers may be spellings of one: what is before the first digit, and what is after the last, is the same,
/// or too long to be another product's letter. `B100` is not `P100`, and `910C` is not `910A`.
fn is_one_product(left: &str, right: &str) -> bool {
    let head = |name: &str| name.find(|c: char| c.is_ascii_digit()).map(|at| name[..at].to_owned());
    let tail = |name: &str| name.rfind(|c: char| c.is_ascii_digit()).map(|at| name[at + 1..].to_owned());
    let same =
        |left: String, right: String, short: usize| left == right || left.len().min(right.len()) >= short;
    let (Some(left_head), Some(right_head)) = (head(left), head(right)) else { return true };
    let (left_tail, right_tail) = (tail(left).unwrap_or_default(), tail(right).unwrap_or_default());
    same(left_head, right_head, 3) && same(left_tail, right_tail, 3)
}

fn digits(name: &str) -> impl PartialEq {
    name.chars().filter(char::is_ascii_digit).collect::<String>()
}

/// `, did you mean "a" or "b"?` for suggestions; empty without any.
pub fn question(suggested: &[&str]) -> String {
    if suggested.is_empty() {
        return String::new();
    }
    let quoted: Vec<String> = suggested.iter().map(|name| format!("\"{name}\"")).collect();
    format!(", did you mean {}?", quoted.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::device::built_in;

    fn of(text: &str) -> String {
        let models: Vec<_> = built_in().map(|model| model.name).collect();
        nearest(text, models.iter().map(String::as_str)).join(" ")
    }

    #[test]
    fn part_of_a_models_name_leads_to_its_family_and_never_to_another_number() {
        assert_eq!(of("A800"), "A800-80G");
        assert_eq!(of("H800"), "H800-80G");
        assert_eq!(of("H100"), "H100-80G");
        assert_eq!(of("V100"), "V100M16 V100M32");
        assert_eq!(of("A100"), "A100-40G A100-80G");
        assert_eq!(of("910B"), "Ascend910B1 Ascend910B2 Ascend910B3");
        assert_eq!(of("a100-80g"), "A100-80G");
        assert_eq!(of("nvidia-l40s"), "L40S");
        assert_eq!(of("NVIDIA GeForce RTX 4090"), "RTX4090");
        assert_eq!(of("4090"), "RTX4090");
        assert_eq!(of("Ascned910B3"), "Ascend910B3");
        assert_eq!(of("A900"), "");
        assert_eq!(of("gpu"), "");
    }

    #[test]
    fn typing_errors_lead_to_the_nearest_name() {
        let names = ["research", "team", "training"];
        assert_eq!(nearest("reserch", names), ["research"]);
        assert_eq!(nearest("taem", names), ["team"]);
        assert_eq!(nearest(&"x".repeat(65), names), [""; 0]);
        assert_eq!(question(&nearest("trainnig", names)), ", did you mean \"training\"?");
        assert_eq!(question(&["a", "b"]), ", did you mean \"a\" or \"b\"?");
    }
}
