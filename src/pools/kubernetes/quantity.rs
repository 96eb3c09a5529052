//! Parses Kubernetes quantities: decimal numbers with a suffix.
//!
//! Grammar: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.

/// Parses a quantity in thousandths, rounded up; `None` if the text is not a quantity, negative, or too large.
pub(super) fn millis(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '+').unwrap_or(text.len());
    let (number, suffix) = text.split_at(at);
    let number = number.strip_prefix('+').unwrap_or(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || number.contains('+') {
        return None;
    }
    // The number is `digits` / 10^scale.
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let mut scale = i32::try_from(fraction.len()).ok()?;
    let factor: u128 = match suffix {
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        _ => {
            scale -= exponent(suffix)?;
            1
        }
    };
    scale -= 3;
    let scaled = digits.checked_mul(factor)?;
    let power = 10_u128.checked_pow(scale.unsigned_abs())?;
    let millis = if scale > 0 { scaled.div_ceil(power) } else { scaled.checked_mul(power)? };
    u64::try_from(millis).ok()
}

/// The power of ten that a decimal suffix stands for.
fn exponent(suffix: &str) -> Option<i32> {
    Some(match suffix {
        "n" => -9,
        "u" => -6,
        "m" => -3,
        "" => 0,
        "k" => 3,
        "M" => 6,
        "G" => 9,
        "T" => 12,
        "P" => 15,
        "E" => 18,
        _ => suffix.strip_prefix(['e', 'E'])?.parse().ok().filter(|power: &i32| power.abs() <= 30)?,
    })
}

/// Parses a quantity in whole units, rounded up; `None` as for [`millis`].
pub(super) fn whole(text: &str) -> Option<u64> {
    millis(text).map(|millis| millis.div_ceil(1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_that_clusters_use_is_parsed() {
        let read = |text: &str, expected: u64| assert_eq!(millis(text), Some(expected), "{text}");
        read("8", 8_000);
        read("250m", 250);
        read("0.5", 500);
        read("1.5Gi", 1_610_612_736_000);
        read("128974848", 128_974_848_000);
        read("129e6", 129_000_000_000);
        read("129M", 129_000_000_000);
        read("12E3", 12_000_000);
        read("100u", 1);
        read("1n", 1);
        read("0", 0);
        assert_eq!(whole("263842148Ki"), Some(263_842_148 << 10));
        assert_eq!(whole("1500m"), Some(2));
    }

    #[test]
    fn other_text_is_not_a_quantity() {
        for text in ["", "-1", "Gi", "1.2.3", "1 Gi", "1e99", "1x", "++1", "99999999999999999999Ei", "."] {
            assert_eq!(millis(text), None, "{text}");
        }
    }
}
