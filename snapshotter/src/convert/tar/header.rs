//! One 512-byte header block.

use crate::formats::estargz::toc::EntryType;

/// Length of a block; everything in an archive is padded to it.
pub(crate) const BLOCK: u64 = 512;

/// A header block, by the fields of POSIX ustar.
pub(super) struct Header<'a>(pub(super) &'a [u8; BLOCK as usize]);

/// What a header block introduces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file system object.
    Object(EntryType),
    /// PAX records for the next entry.
    Pax,
    /// PAX records for all further entries.
    PaxGlobal,
    /// GNU: the next entry's name.
    GnuName,
    /// GNU: the next entry's link target.
    GnuLink,
}

impl Header<'_> {
    /// Whether the block is all zeros: the archive's end mark.
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Whether the checksum fits, summed over unsigned or (old tars) signed bytes.
    pub(super) fn checksum_fits(&self) -> bool {
        let blank = |(at, byte): (usize, &u8)| {
            if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            }
        };
        let bytes = || self.0.iter().enumerate().map(blank);
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
        self.number(148, 8)
            .is_some_and(|sum| sum == unsigned || sum == signed)
    }

    /// Type of the entry, or the type flag that is not supported.
    pub(super) fn kind(&self) -> Result<Kind, char> {
        Ok(match self.0[156] {
            // An old tar marks a directory by its name only.
            0 | b'0' | b'7'
                if self.0[..100]
                    .split(|b| *b == 0)
                    .next()
                    .unwrap_or_default()
                    .ends_with(b"/") =>
            {
                Kind::Object(EntryType::Dir)
            }
            0 | b'0' | b'7' => Kind::Object(EntryType::Reg),
            b'1' => Kind::Object(EntryType::Hardlink),
            b'2' => Kind::Object(EntryType::Symlink),
            b'3' => Kind::Object(EntryType::Char),
            b'4' => Kind::Object(EntryType::Block),
            b'5' => Kind::Object(EntryType::Dir),
            b'6' => Kind::Object(EntryType::Fifo),
            b'x' => Kind::Pax,
            b'g' => Kind::PaxGlobal,
            b'L' => Kind::GnuName,
            b'K' => Kind::GnuLink,
            other => return Err(char::from(other)),
        })
    }

    /// The name, joined with the ustar prefix.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix = if self.is_posix() {
            self.text(345, 155)
        } else {
            b""
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        self.text(157, 100).to_vec()
    }

    pub(super) fn user_name(&self) -> &[u8] {
        self.text(265, 32)
    }

    pub(super) fn group_name(&self) -> &[u8] {
        self.text(297, 32)
    }

    /// A numeric field: `mode`, `uid`, `gid`, `size`, `mtime`, `devmajor`, `devminor`.
    pub(super) fn field(&self, name: &str) -> Option<i64> {
        match name {
            "mode" => self.number(100, 8),
            "uid" => self.number(108, 8),
            "gid" => self.number(116, 8),
            "size" => self.number(124, 12),
            "mtime" => self.number(136, 12),
            "devmajor" if self.has_devices() => self.number(329, 8),
            "devminor" if self.has_devices() => self.number(337, 8),
            _ => Some(0),
        }
    }

    /// Access and change time as GNU tar keeps them in the header itself; none when they are unset.
    pub(super) fn gnu_times(&self) -> [Option<i64>; 2] {
        let is_gnu = &self.0[257..265] == b"ustar  \0";
        [345, 357].map(|at| {
            let is_set = is_gnu && self.0[at] != 0;
            is_set.then(|| self.number(at, 12)).flatten()
        })
    }

    fn is_posix(&self) -> bool {
        &self.0[257..263] == b"ustar\0"
    }

    fn has_devices(&self) -> bool {
        &self.0[257..262] == b"ustar"
    }

    /// Bytes up to the first NUL.
    fn text(&self, at: usize, length: usize) -> &[u8] {
        let field = &self.0[at..at + length];
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(length);
        &field[..end]
    }

    /// Octal digits, or GNU's big-endian two's complement when the first bit is set.
    fn number(&self, at: usize, length: usize) -> Option<i64> {
        let field = &self.0[at..at + length];
        if field[0] & 0x80 != 0 {
            return binary(field);
        }
        let text = std::str::from_utf8(field).ok()?;
        let digits = text.trim_matches(|c| c == ' ' || c == '\0');
        if digits.is_empty() {
            return Some(0);
        }
        // A NUL ends the number; what follows it is not part of it.
        let digits = digits.split(['\0', ' ']).next()?;
        i64::from_str_radix(digits, 8)
            .ok()
            .filter(|_| !digits.starts_with(['+', '-']))
    }
}

fn binary(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative {
        i128::from(field[0] | 0x80) - 256
    } else {
        i128::from(field[0] & 0x7f)
    };
    let value = field[1..]
        .iter()
        .fold(first, |value, byte| (value << 8) | i128::from(*byte));
    value.try_into().ok()
}

/// Bytes of padding after `size` bytes of content.
pub(crate) fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

/// A ustar header for a regular file of root's with no permissions, as the files that eStargz adds
/// have them. `name` has at most 100 bytes and `size` is below 8 GiB.
pub(crate) fn encode_regular(name: &str, size: u64) -> [u8; BLOCK as usize] {
    let mut block = [0; BLOCK as usize];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    for at in [100, 108, 116, 329, 337] {
        put(at, b"0000000\0");
    }
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoded_header_reads_back() {
        let block = encode_regular("stargz.index.json", 0o1_234_567);
        let header = Header(&block);
        assert!(header.checksum_fits() && !header.is_zero());
        assert_eq!(header.name(), b"stargz.index.json");
        assert_eq!(header.field("size"), Some(0o1_234_567));
        assert_eq!(header.field("mode"), Some(0));
        assert_eq!(header.kind(), Ok(Kind::Object(EntryType::Reg)));
    }

    #[test]
    fn numbers_are_octal_or_binary() {
        let cases: [(&[u8], Option<i64>); 8] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"644\0junk", Some(0o644)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"0000689\0", None),
            (b"-000644\0", None),
        ];
        for (field, value) in cases {
            let mut block = [0; 512];
            block[100..108].copy_from_slice(field);
            assert_eq!(Header(&block).field("mode"), value, "{field:?}");
        }
    }

    #[test]
    fn a_damaged_header_does_not_fit_its_checksum() {
        let mut block = encode_regular("a", 1);
        block[0] = b'b';
        assert!(!Header(&block).checksum_fits());
    }

    #[test]
    fn padding_fills_the_last_block() {
        assert_eq!([0, 1, 511, 512, 513].map(padding), [0, 511, 1, 0, 511]);
    }
}
