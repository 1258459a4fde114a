//! The last bytes of an eStargz blob: an empty gzip member whose extra field tells where the TOC is.

use crate::formats::Flaw;

/// Length of the footer that every eStargz writer of today appends.
pub const FOOTER_LEN: usize = 51;
/// Length of the footer of the older stargz format, without subfield header.
pub const LEGACY_FOOTER_LEN: usize = 47;

/// Length of the footer of a blob whose TOC lies elsewhere.
pub const EXTERNAL_FOOTER_LEN: usize = 46;
const EXTERNAL_MAGIC: &[u8] = b"STARGZEXTERNALTOC";

/// gzip header: magic, deflate, FEXTRA, no time, no level hint, unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
/// One empty, final, stored deflate block; then CRC-32 and length of nothing.
const EMPTY_BODY: [u8; 13] = [1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
/// 16 hex digits of offset and the magic word.
const FIELD_LEN: usize = 22;
const MAGIC: &[u8] = b"STARGZ";

/// The footer for a TOC whose gzip member begins at `toc_offset`.
pub fn encode(toc_offset: u64) -> [u8; FOOTER_LEN] {
    let mut footer = Vec::with_capacity(FOOTER_LEN);
    footer.extend_from_slice(&HEADER);
    footer.extend_from_slice(&(FIELD_LEN as u16 + 4).to_le_bytes());
    footer.extend_from_slice(b"SG");
    footer.extend_from_slice(&(FIELD_LEN as u16).to_le_bytes());
    footer.extend_from_slice(format!("{toc_offset:016x}").as_bytes());
    footer.extend_from_slice(MAGIC);
    footer.extend_from_slice(&EMPTY_BODY);
    let mut bytes = [0; FOOTER_LEN];
    bytes.copy_from_slice(&footer);
    bytes
}

/// Where the TOC member begins and how long the footer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Offset of the TOC's gzip member in the blob.
    pub toc_offset: u64,
    /// 51 or 47.
    pub len: u64,
}

/// Finds a footer at the end of `tail`, the last bytes of a blob of `blob_size` bytes.
///
/// `Ok(None)` means that this is no eStargz blob at all, which is no error.
pub fn parse(tail: &[u8], blob_size: u64) -> Result<Option<Footer>, Flaw> {
    let modern = last(tail, FOOTER_LEN).and_then(|bytes| field(bytes, 16));
    let legacy = || last(tail, LEGACY_FOOTER_LEN).and_then(|bytes| field(bytes, 12));
    let (field, len) = match modern {
        Some(field) => (field, FOOTER_LEN as u64),
        None => match legacy() {
            Some(field) => (field, LEGACY_FOOTER_LEN as u64),
            None => return Ok(None),
        },
    };
    let toc_offset = std::str::from_utf8(field)
        .ok()
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| Flaw::new("footer: TOC offset is not 16 hex digits"))?;
    if toc_offset >= blob_size.saturating_sub(len) {
        return Err(Flaw::new(format!(
            "footer: TOC offset {toc_offset} lies outside the blob of {blob_size} bytes"
        )));
    }
    Ok(Some(Footer { toc_offset, len }))
}

/// Whether `tail`, the last bytes of a blob, says that its TOC lies in an image beside it.
pub fn is_external(tail: &[u8]) -> bool {
    let len = EXTERNAL_MAGIC.len() as u8;
    last(tail, EXTERNAL_FOOTER_LEN).is_some_and(|bytes| {
        bytes[..4] == HEADER[..4]
            && bytes[10..16] == [len + 4, 0, b'S', b'G', len, 0]
            && bytes[16..].starts_with(EXTERNAL_MAGIC)
    })
}

fn last(tail: &[u8], len: usize) -> Option<&[u8]> {
    tail.len().checked_sub(len).map(|start| &tail[start..])
}

/// The hex digits, if `bytes` is a footer whose digits begin at `at`.
fn field(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let extra_len = (FIELD_LEN + at - 12) as u16;
    let matches = bytes[..4] == HEADER[..4]
        && bytes[10..12] == extra_len.to_le_bytes()
        && (at == 12 || bytes[12..16] == [b'S', b'G', FIELD_LEN as u8, 0])
        && &bytes[at + 16..at + FIELD_LEN] == MAGIC;
    matches.then(|| &bytes[at..at + 16])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn legacy(toc_offset: u64) -> Vec<u8> {
        let modern = encode(toc_offset);
        [&modern[..10], &[FIELD_LEN as u8, 0], &modern[16..]].concat()
    }

    #[test]
    fn both_footers_are_read_and_are_valid_gzip() {
        for (bytes, len) in [
            (encode(0x1234).to_vec(), FOOTER_LEN),
            (legacy(0x1234), LEGACY_FOOTER_LEN),
        ] {
            assert_eq!(bytes.len(), len);
            let mut nothing = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut nothing)
                .unwrap();
            assert!(nothing.is_empty());
            let tail = [b"whatever comes before".as_slice(), &bytes].concat();
            let footer = parse(&tail, 0x2000).unwrap().unwrap();
            assert_eq!(footer.toc_offset, 0x1234);
            assert_eq!(footer.len, len as u64);
        }
    }

    #[test]
    fn a_footer_without_offset_says_that_the_toc_is_elsewhere() {
        let extra = [&[21, 0, b'S', b'G', 17, 0][..], b"STARGZEXTERNALTOC"].concat();
        let footer = [&HEADER[..], &extra, &EMPTY_BODY].concat();
        assert_eq!(footer.len(), EXTERNAL_FOOTER_LEN);
        assert!(is_external(&[b"before".as_slice(), &footer].concat()));
        assert_eq!(parse(&footer, 1000).unwrap(), None);
        assert!(!is_external(&footer[1..]));
        assert!(!is_external(&encode(7)));
    }

    #[test]
    fn an_ordinary_blob_has_no_footer() {
        assert_eq!(parse(b"", 0).unwrap(), None);
        assert_eq!(parse(&[0; 51], 51).unwrap(), None);
        assert_eq!(parse(&encode(1)[..50], 50).unwrap(), None);
    }

    #[test]
    fn an_offset_outside_the_blob_is_refused() {
        for offset in [949, 1000, u64::MAX] {
            let error = parse(&encode(offset), 1000).unwrap_err().to_string();
            assert!(error.contains("outside the blob"), "{error}");
        }
    }

    #[test]
    fn an_offset_that_is_no_number_is_refused() {
        let mut footer = encode(5);
        footer[20] = b'+';
        assert!(parse(&footer, 1000).is_err());
    }
}
