//! The headers of HTTP range requests (RFC 9110, section 14).

use super::failure::Failure;

/// How far into a blob something may end for a server that ignores ranges: all that comes before it
/// is downloaded and thrown away.
const MAX_SKIPPED: u64 = 16 << 20;

/// Value of the `Range` header for `len` bytes at `offset`; `len` is at least 1.
pub(super) fn request(offset: u64, len: u64) -> String {
    format!("bytes={offset}-{}", offset + len - 1)
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
    let Some((first, last, total)) = parse(header) else {
        return refuse(format!("malformed Content-Range {header:?}"));
    };
    if (first, last) != (offset, offset + len - 1) {
        return refuse(format!(
            "asked for bytes {offset}-{}, got {first}-{last}",
            offset + len - 1
        ));
    }
    match total {
        Some(total) if total != size => refuse(format!(
            "the server's blob has {total} bytes, the manifest says {size}"
        )),
        _ => Ok(()),
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
