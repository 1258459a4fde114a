//! The headers of HTTP range requests (RFC 9110, section 14).

use std::ops::Range;

use super::failure::Failure;

/// How far into a blob something may end for a server that ignores ranges: all that comes before it
/// is downloaded and thrown away.
const MAX_SKIPPED: u64 = 16 << 20;

/// Value of the `Range` header for `len` bytes at `offset`; `len` is at least 1.
pub(super) fn request(offset: u64, len: u64) -> String {
    format!("bytes={offset}-{}", offset + len - 1)
}

/// The same for several ranges, none of which is empty.
pub(super) fn request_several(ranges: &[Range<u64>]) -> String {
    let ranges = ranges
        .iter()
        .map(|range| format!("{}-{}", range.start, range.end - 1));
    format!("bytes={}", ranges.collect::<Vec<_>>().join(","))
}

/// What is left of `ranges` without their first `skipped` bytes.
pub(super) fn after(ranges: &[Range<u64>], mut skipped: u64) -> Vec<Range<u64>> {
    let cut = |range: &Range<u64>| {
        let here = skipped.min(range.end - range.start);
        skipped -= here;
        range.start + here..range.end
    };
    let left = ranges.iter().map(cut);
    left.filter(|range| !range.is_empty()).collect()
}

/// The first `len` bytes of `ranges`.
pub(super) fn until(ranges: &[Range<u64>], mut len: u64) -> Vec<Range<u64>> {
    let cut = |range: &Range<u64>| {
        let here = len.min(range.end - range.start);
        len -= here;
        range.start..range.start + here
    };
    let taken = ranges.iter().map(cut);
    taken.filter(|range| !range.is_empty()).collect()
}

/// Checks the status and `Content-Range` of the answer to a request for `len` bytes at `offset` of
/// a blob of `size` bytes.
pub(super) fn check(
    status: u16,
    content_range: Option<&str>,
    offset: u64,
    len: u64,
    size: u64,
) -> Result<(), Failure> {
    let refuse = |reason: String| Err(Failure::Protocol(reason));
    match status {
        206 => {}
        200 => return refuse("the server ignores range requests (status 200, not 206)".into()),
        416 => {
            return refuse(format!(
                "the server's blob ends before byte {} of the promised {size}",
                offset + len
            ));
        }
        other => return refuse(format!("status {other} to a range request")),
    }
    let Some(header) = content_range else {
        return refuse("status 206 without Content-Range".into());
    };
    let told = told(header, size).map_err(Failure::Protocol)?;
    if told != (offset..offset + len) {
        return refuse(format!(
            "asked for bytes {offset}-{}, got {}-{}",
            offset + len - 1,
            told.start,
            told.end - 1
        ));
    }
    Ok(())
}

/// The range that a `Content-Range` tells of a blob of `size` bytes: never empty, and within it.
pub(super) fn told(header: &str, size: u64) -> Result<Range<u64>, String> {
    let malformed = || format!("malformed Content-Range {header:?}");
    let (first, last, total) = parse(header).ok_or_else(malformed)?;
    match total {
        Some(total) if total != size => Err(format!(
            "the server's blob has {total} bytes, the manifest says {size}"
        )),
        _ if first <= last && last < size => Ok(first..last + 1),
        _ => Err(malformed()),
    }
}

/// Checks the `Content-Length` of an answer with the whole blob to a request for `len` bytes at
/// `offset` of its `size`; what comes before them is to be skipped, and what follows not read.
pub(super) fn check_whole(
    content_length: Option<u64>,
    offset: u64,
    len: u64,
    size: u64,
) -> Result<(), Failure> {
    if let Some(length) = content_length
        && length != size
    {
        return Err(Failure::Protocol(format!(
            "the server's blob has {length} bytes, the manifest says {size}"
        )));
    }
    if offset > 0 && offset + len > MAX_SKIPPED {
        return Err(Failure::Protocol(format!(
            "the server ignores range requests (status 200, not 206), and byte {} of the blob is \
             too far behind its beginning",
            offset + len
        )));
    }
    Ok(())
}

/// First byte, last byte and, unless it is `*`, total of `bytes FIRST-LAST/TOTAL`.
fn parse(header: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = header
        .trim()
        .strip_prefix("bytes ")?
        .trim()
        .split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = match total {
        "*" => None,
        number => Some(number.parse().ok()?),
    };
    Some((first.parse().ok()?, last.parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_names_the_last_byte_inclusively() {
        assert_eq!(request(0, 1), "bytes=0-0");
        assert_eq!(request(100, 50), "bytes=100-149");
        assert_eq!(request_several(&[0..1, 100..150]), "bytes=0-0,100-149");
    }

    #[test]
    fn ranges_are_cut_where_an_answer_has_ended() {
        let ranges = [10..20, 50..51, 30..40];
        assert_eq!(after(&ranges, 0), ranges);
        assert_eq!(after(&ranges, 4), [14..20, 50..51, 30..40]);
        assert_eq!(after(&ranges, 11), ranges[2..]);
        assert!(after(&ranges, 21).is_empty());
        assert!(until(&ranges, 0).is_empty());
        assert_eq!(until(&ranges, 12), [10..20, 50..51, 30..31]);
        assert_eq!(until(&ranges, 21), ranges);
    }

    #[test]
    fn only_the_exact_range_of_the_right_blob_is_accepted() {
        let cases = [
            (206, Some("bytes 10-19/100"), true),
            (206, Some("bytes 10-19/*"), true),
            (206, Some("bytes 10-18/100"), false),
            (206, Some("bytes 0-19/100"), false),
            (206, Some("bytes 10-19/99"), false),
            (206, Some("bytes */100"), false),
            (206, Some("items 10-19/100"), false),
            (206, Some("bytes 10-19"), false),
            (206, Some("bytes 10-99999999999999999999/100"), false),
            (206, None, false),
            (200, None, false),
            (416, Some("bytes */15"), false),
            (304, None, false),
        ];
        for (status, header, good) in cases {
            let checked = check(status, header, 10, 10, 100);
            assert_eq!(checked.is_ok(), good, "{status} {header:?}: {checked:?}");
        }
    }

    #[test]
    fn a_whole_blob_is_taken_for_a_range_unless_too_much_is_to_be_skipped() {
        let check = |length, offset| check_whole(length, offset, 10, MAX_SKIPPED * 2);
        assert!(check(None, MAX_SKIPPED - 10).is_ok());
        assert!(check(Some(MAX_SKIPPED * 2), 0).is_ok());
        assert!(check(Some(MAX_SKIPPED), 0).is_err(), "another blob");
        assert!(check(None, MAX_SKIPPED - 9).is_err());
        assert!(check_whole(None, 0, MAX_SKIPPED * 2, MAX_SKIPPED * 2).is_ok());
    }

    #[test]
    fn a_server_that_ignores_ranges_is_told_apart() {
        let failure = check(200, None, 10, 10, 100).unwrap_err();
        assert!(
            failure.to_string().contains("ignores range requests"),
            "{failure}"
        );
        assert!(!failure.is_transient());
    }
}
