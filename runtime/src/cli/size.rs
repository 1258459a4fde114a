//! Amounts of memory as Docker's tools read them: units are powers of 1024.

/// `64M`, `1.5g`, `2GiB`, `512 kb`, or plain bytes.
pub(super) fn parse(text: &str) -> Option<i64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let power = match unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(&unit)
    {
        "" if !unit.starts_with('i') => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let factor = 1_i64 << (10 * power);
    if let Ok(number) = number.parse::<i64>() {
        return number.checked_mul(factor);
    }
    let bytes = number.parse::<f64>().ok()? * factor as f64;
    (bytes < i64::MAX as f64).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn units_are_powers_of_1024_in_any_spelling() {
        let table = [
            ("42", Some(42)),
            ("64M", Some(64 << 20)),
            ("64mb", Some(64 << 20)),
            ("1GiB", Some(1 << 30)),
            ("1.5k", Some(1536)),
            ("512 kB", Some(512 << 10)),
            ("7b", Some(7)),
            ("", None),
            ("M", None),
            ("-5", None),
            ("5x", None),
            ("5ib", None),
            ("1..5k", None),
            ("9999999999P", None),
        ];
        for (text, bytes) in table {
            assert_eq!(parse(text), bytes, "{text}");
        }
    }
}
