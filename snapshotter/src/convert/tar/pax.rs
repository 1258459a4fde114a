//! PAX extended header records: `LENGTH KEY=VALUE\n`, length in decimal and of the whole record.

use std::collections::BTreeMap;

/// Key of an extended attribute, before its name.
pub(super) const XATTR: &str = "SCHILY.xattr.";

/// Records by key; an empty value deletes, except that an attribute can be empty.
pub(super) type Records = BTreeMap<String, Vec<u8>>;

/// Adds the records of `data`; none when it is malformed.
pub(super) fn parse_into(records: &mut Records, mut data: &[u8]) -> Option<()> {
    while !data.is_empty() {
        let blank = data.iter().position(|byte| *byte == b' ')?;
        let digits = std::str::from_utf8(&data[..blank]).ok()?;
        let length: usize = digits.parse().ok().filter(|_| !digits.starts_with('+'))?;
        let record = data.get(blank + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let key = std::str::from_utf8(&record[..equals]).ok()?;
        let value = &record[equals + 1..];
        if value.is_empty() && !key.starts_with(XATTR) {
            records.remove(key);
        } else {
            records.insert(key.to_owned(), value.to_vec());
        }
        data = &data[length..];
    }
    Some(())
}

/// Seconds and nanoseconds of a decimal time such as `1700000000.25` or `-1.5`.
pub(super) fn parse_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &[u8]) -> Option<Records> {
        let mut records = Records::new();
        parse_into(&mut records, data).map(|()| records)
    }

    #[test]
    fn records_may_hold_any_bytes_and_later_ones_win() {
        let records = parse(b"9 path=a\n9 path=b\n25 SCHILY.xattr.u.x=\0\n=\n\n").unwrap();
        assert_eq!(records["path"], b"b");
        assert_eq!(records["SCHILY.xattr.u.x"], b"\0\n=\n");
    }

    #[test]
    fn an_empty_value_deletes() {
        assert!(parse(b"9 path=a\n8 path=\n").unwrap().is_empty());
        let records = parse(b"24 SCHILY.xattr.user.a=\n").unwrap();
        assert_eq!(records["SCHILY.xattr.user.a"], b"");
    }

    #[test]
    fn malformed_records_are_refused() {
        let cases: [&[u8]; 8] = [
            b"x path=a\n",
            b"9 path=a",
            b"11 path=a\n",
            b"8 path=a\n",
            b"0 path=a\n",
            b"99999999999999999999999 path=a\n",
            b"8 patha\n",
            b"+9 path=\n",
        ];
        for data in cases {
            assert_eq!(parse(data), None, "{}", String::from_utf8_lossy(data));
        }
    }

    #[test]
    fn times_are_floored_with_positive_nanoseconds() {
        assert_eq!(parse_time(b"1700000000"), Some((1_700_000_000, 0)));
        assert_eq!(parse_time(b"1.25"), Some((1, 250_000_000)));
        assert_eq!(parse_time(b"1.1234567891"), Some((1, 123_456_789)));
        assert_eq!(parse_time(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(parse_time(b"-1"), Some((-1, 0)));
        assert_eq!(parse_time(b"1.x"), None);
        assert_eq!(parse_time(b""), None);
    }
}
