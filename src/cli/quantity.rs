//! Parsers of the quantities that users write: `500m`, `1.5`, `2Gi`, `90s`, `A100-80G:2`.

use crate::model::validate::quote;

/// Parses CPUs into millicores: `2`, `1.5`, `500m`.
///
/// # Errors
/// A message, if `text` is not such an amount, or not a whole number of millicores.
pub fn cpus(text: &str) -> Result<u64, String> {
    let error = || format!("{} is not an amount of CPUs: write 2, 1.5 or 500m", quote(text));
    let (number, unit) = text.strip_suffix('m').map_or((text, 1_000), |millis| (millis, 1));
    match decimal(number, unit) {
        Some(Amount { value, exact: true }) => Ok(value),
        Some(_) => Err(format!("{} is finer than a thousandth of a CPU", quote(text))),
        None => Err(error()),
    }
}

/// Parses bytes: `512Mi`, `2Gi`, `1.5G`, or a plain number. Fractions of a unit are rounded down to bytes.
///
/// # Errors
/// A message, if `text` is not such an amount.
pub fn bytes(text: &str) -> Result<u64, String> {
    let error =
        || format!("{} is not an amount of memory: write 512Mi, 2Gi or a number of bytes", quote(text));
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let unit = match &text[split..] {
        "" | "B" => 1,
        "Ki" | "KiB" => 1 << 10,
        "Mi" | "MiB" => 1 << 20,
        "Gi" | "GiB" => 1 << 30,
        "Ti" | "TiB" => 1 << 40,
        "K" | "k" | "KB" => 1_000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        "T" | "TB" => 1_000_000_000_000,
        _ => return Err(error()),
    };
    match decimal(&text[..split], unit) {
        // 1.3Gi is not a whole number of bytes, and is rounded down; 1.3 bytes is a typing error.
        Some(Amount { value, exact }) if exact || unit > 1 => Ok(value),
        _ => Err(error()),
    }
}

/// The least memory that a task may ask for, in bytes: with less no program starts.
const MEMORY_MIN: u64 = 1 << 20;

/// The memory of a task whose author asks for none, in bytes: enough for a shell and small programs.
pub const MEMORY_DEFAULT: u64 = 128 << 20;

/// Parses the memory of a task: as [`bytes`], but not less than a program needs. 0 asks for none.
///
/// # Errors
/// A message, if `text` is not such an amount.
pub fn memory(text: &str) -> Result<u64, String> {
    let found = bytes(text)?;
    if found == 0 || found >= MEMORY_MIN {
        return Ok(found);
    }
    let without_unit = text.parse::<u64>().is_ok();
    let hint = if without_unit { format!(": did you mean {text}Mi?") } else { String::new() };
    Err(format!("{} is {found} bytes, and a task needs at least 1Mi{hint}", quote(text)))
}

/// Parses a number of devices of any model into thousandths: `8`, `0.5`.
///
/// # Errors
/// A message, if `text` is not such an amount.
pub fn device_count(text: &str) -> Result<u64, String> {
    cpus(text).map_err(|_| format!("{} is not an amount of devices: write 8 or 0.5", quote(text)))
}

/// Parses a duration into milliseconds: `90s`, `5m`, `1h30m`, `2d`.
///
/// # Errors
/// A message, if `text` is not a duration.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let parsed = humantime::parse_duration(text)
        .map_err(|error| format!("{} is not a duration: {error}; write 90s, 5m or 1h30m", quote(text)))?;
    u64::try_from(parsed.as_millis()).map_err(|_| format!("{} is too long", quote(text)))
}

/// Parses the maximum run time of an attempt into milliseconds: as [`duration_ms`], but not nothing.
///
/// # Errors
/// A message, if `text` is not a duration, or is none.
pub fn run_time_ms(text: &str) -> Result<u64, String> {
    match duration_ms(text)? {
        0 => Err(format!("{} is no time to run: leave it out for the queue's default", quote(text))),
        ms => Ok(ms),
    }
}

/// Parses a device request: `A100-80G:2`, `A100-80G|A800-80G:1`, `any:1`, `T4:0.5`. The count is 1 if absent.
///
/// # Errors
/// A message, if `text` is not such a request, or asks for a fraction above one device.
pub fn devices(text: &str) -> Result<crate::api::proto::v1::DeviceRequest, String> {
    use crate::api::proto::v1;
    let error = || {
        format!(
            "{} is not a device request: write MODEL:COUNT, A|B:COUNT, any:COUNT or MODEL:0.5",
            quote(text)
        )
    };
    if decimal(text, 1_000).is_some() {
        return Err(format!("{} has no model: write any:{text} for any, or MODEL:{text}", quote(text)));
    }
    let (models, amount) = text.rsplit_once(':').unwrap_or((text, "1"));
    if models.is_empty() {
        return Err(error());
    }
    let models = if models == "any" { Vec::new() } else { models.split('|').map(str::to_owned).collect() };
    let millis = match decimal(amount, 1_000) {
        Some(Amount { value, exact: true }) if value > 0 => value,
        _ => return Err(error()),
    };
    let amount = if millis >= 1_000 && millis.is_multiple_of(1_000) {
        v1::device_request::Amount::Count(u32::try_from(millis / 1_000).map_err(|_| error())?)
    } else if millis < 1_000 {
        v1::device_request::Amount::Millis(millis as u32)
    } else {
        return Err(format!("{}: amounts above one device must be whole numbers", quote(text)));
    };
    Ok(v1::DeviceRequest { models, amount: Some(amount) })
}

/// A decimal number in whole units, and whether the conversion was exact.
struct Amount {
    value: u64,
    exact: bool,
}

/// Parses a decimal number and multiplies it by `unit`, rounded down. `None` if the text is not a decimal
/// number or the result overflows.
fn decimal(text: &str, unit: u64) -> Option<Amount> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() || fraction.len() > 9 || !text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    let scale = 10u64.pow(fraction.len() as u32);
    let fraction: u64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    let (part, scale) = (u128::from(fraction) * u128::from(unit), u128::from(scale));
    let value = whole.checked_add(u64::try_from(part / scale).ok()?)?;
    Some(Amount { value, exact: part.is_multiple_of(scale) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_parsed_exactly_or_rejected() {
        assert_eq!(cpus("1.5"), Ok(1_500));
        assert_eq!(cpus("250m"), Ok(250));
        assert_eq!(bytes("2Gi"), Ok(2 << 30));
        assert_eq!(bytes("1.5G"), Ok(1_500_000_000));
        assert_eq!(duration_ms("1h30m"), Ok(5_400_000));
        assert_eq!(bytes("1.3Gi"), Ok(1_395_864_371));
        assert!(cpus("0.0001").is_err() && cpus("0.5m").is_err() && bytes("1.5").is_err());
        assert!(devices("T4:0").is_err() && devices("T4:0.0005").is_err());
        for text in ["", "-1", "+1", "1e3", "1.2.3", "x", "NaN", "1 Gi", "１", "99999999999999999999"] {
            assert!(cpus(text).is_err() && bytes(text).is_err(), "{text}");
        }
        assert!(devices("T4:1.5").is_err());
        assert!(devices(":2").is_err());
    }
}
