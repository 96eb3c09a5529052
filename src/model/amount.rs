//! Amounts as users write them. Each text is exact: it can be parsed again without a loss.

/// Formats thousandths as a decimal number: 1,500 as `1.5`.
pub fn thousandths(amount: u64) -> String {
    match amount % 1_000 {
        0 => (amount / 1_000).to_string(),
        rest => format!("{}.{}", amount / 1_000, format!("{rest:03}").trim_end_matches('0')),
    }
}

/// Formats millicores with their unit: `1.5 CPUs`.
pub fn cpus(millis: u64) -> String {
    format!("{} CPUs", thousandths(millis))
}

/// Formats bytes in the largest binary unit that divides them: `64Mi`, `1536Mi`, `1000`.
pub fn bytes(amount: u64) -> String {
    let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let unit = units.into_iter().find(|(_, shift)| amount > 0 && amount.is_multiple_of(1 << shift));
    unit.map_or_else(|| amount.to_string(), |(unit, shift)| format!("{}{unit}", amount >> shift))
}

/// Formats milliseconds as a duration: `1h30m`, `366d`, `2s500ms`, `0s`.
pub fn duration(ms: u64) -> String {
    let mut text = String::new();
    let mut rest = ms;
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest >= size {
            text.push_str(&format!("{}{unit}", rest / size));
            rest %= size;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_formatted_exactly() {
        assert_eq!([0, 250, 1_000, 1_500].map(thousandths), ["0", "0.25", "1", "1.5"]);
        assert_eq!([0, 1_000, 1 << 10, 3 << 29, 5 << 40].map(bytes), ["0", "1000", "1Ki", "1536Mi", "5Ti"]);
        assert_eq!([0, 2_500, 5_400_000, 31_622_400_000].map(duration), ["0s", "2s500ms", "1h30m", "366d"]);
    }
}
