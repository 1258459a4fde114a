//! Extended attributes, all of them right behind their inode.

use super::disk::Cursor;
use crate::formats::Flaw;

/// Bytes before the first attribute.
const HEADER: usize = 12;
/// Bytes of an attribute before its name.
const ENTRY: usize = 4;
/// Longest attributes of one inode together: their length is counted in 16 bits of 4 bytes.
const MAX_LEN: usize = HEADER + (u16::MAX as usize - 1) * 4;

/// What names begin with, and the number that stands for it.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// The number of the name's prefix and the rest; `None` for names that EROFS cannot hold.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES
        .iter()
        .find_map(|(prefix, index)| Some((*index, name.strip_prefix(*prefix)?)))
}

type Pair<'a> = (&'a [u8], &'a [u8]);

fn entry_len((name, value): Pair<'_>) -> Option<usize> {
    let (_, rest) = split(name)?;
    Some((ENTRY + rest.len() + value.len()).next_multiple_of(4))
}

/// Bytes that the attributes take; none at all if there are none.
pub(super) fn len<'a>(xattrs: impl Iterator<Item = Pair<'a>>) -> Result<usize, Flaw> {
    let mut sum = 0;
    for pair in xattrs {
        let name = || String::from_utf8_lossy(pair.0).into_owned();
        let Some(len) = entry_len(pair) else {
            return Err(Flaw::new(format!(
                "attribute {:?} is not for EROFS",
                name()
            )));
        };
        if pair.1.len() > usize::from(u16::MAX) {
            let len = pair.1.len();
            return Err(Flaw::new(format!("attribute {:?} of {len} bytes", name())));
        }
        sum += len;
    }
    match sum {
        0 => Ok(0),
        sum if HEADER + sum > MAX_LEN => {
            Err(Flaw::new(format!("attributes of {sum} bytes at one file")))
        }
        sum => Ok(HEADER + sum),
    }
}

/// The count by which an inode tells the length of its attributes.
pub(super) fn count(len: usize) -> u16 {
    match len {
        0 => 0,
        len => ((len - HEADER) / 4 + 1) as u16,
    }
}

/// Writes attributes whose length was found out by [`len`].
pub(super) fn put<'a>(xattrs: impl Iterator<Item = Pair<'a>>, out: &mut [u8]) {
    let mut at = HEADER;
    for pair in xattrs {
        let (Some((prefix, rest)), Some(len)) = (split(pair.0), entry_len(pair)) else {
            continue;
        };
        let mut entry = Cursor::new(&mut out[at..at + len]);
        entry.u8(rest.len() as u8);
        entry.u8(prefix);
        entry.u16(pair.1.len() as u16);
        entry.bytes(rest);
        entry.bytes(pair.1);
        at += len;
    }
}
