//! A pull parser for TOCs as tools write them, several times as fast as the general one.
//!
//! It knows the documents that every converter writes: objects with the known keys, each once,
//! strings, whole numbers. At anything else it stops with [`Stop::Odd`] without a judgement, and
//! the general parser decides: so what is accepted, and the words of a refusal, are always the
//! general parser's, and only the usual case has to be fast. `tests/fuzz` holds one against the
//! other.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::entry::Entry;
use super::toc::EntryType;
use crate::formats::Flaw;

/// Why the parser did not come to the end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Something that only the general parser can judge.
    Odd,
    /// An entry that the caller refused.
    Refused(Flaw),
}

type Pulled<T> = Result<T, Stop>;

/// Hands each entry of the TOC `text` to `each`. `Ok` means that the document is a TOC of version
/// 1 to its last byte.
pub(super) fn entries<'a>(
    text: &'a str,
    mut each: impl FnMut(&Entry<'a>) -> Result<(), Flaw>,
) -> Pulled<()> {
    let mut scanner = Scanner { text, at: 0 };
    let mut version = 0;
    scanner.object(|scanner, key| {
        match key {
            "version" => version = scanner.number()?,
            "entries" => scanner.list(|scanner| {
                let entry = scanner.entry()?;
                each(&entry).map_err(Stop::Refused)
            })?,
            "tarSplitDigest" => drop(scanner.string()?),
            _ => return Err(Stop::Odd),
        }
        Ok(())
    })?;
    scanner.blanks();
    match version {
        1 if scanner.at == text.len() => Ok(()),
        _ => Err(Stop::Odd),
    }
}

struct Scanner<'a> {
    text: &'a str,
    /// Bytes that were passed.
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blanks(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Passes `byte` and blanks before it, if it comes next.
    fn pass(&mut self, byte: u8) -> bool {
        if self.peek() != Some(byte) {
            self.blanks();
        }
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, byte: u8) -> Pulled<()> {
        if self.pass(byte) {
            Ok(())
        } else {
            Err(Stop::Odd)
        }
    }

    /// Passes an object; `field` passes the value of each key.
    fn object(&mut self, mut field: impl FnMut(&mut Self, &'a str) -> Pulled<()>) -> Pulled<()> {
        self.expect(b'{')?;
        if self.pass(b'}') {
            return Ok(());
        }
        loop {
            let Cow::Borrowed(key) = self.string()? else {
                return Err(Stop::Odd);
            };
            self.expect(b':')?;
            field(self, key)?;
            if !self.pass(b',') {
                return self.expect(b'}');
            }
        }
    }

    /// Passes a list; `element` passes each element.
    fn list(&mut self, mut element: impl FnMut(&mut Self) -> Pulled<()>) -> Pulled<()> {
        self.expect(b'[')?;
        if self.pass(b']') {
            return Ok(());
        }
        loop {
            element(self)?;
            if !self.pass(b',') {
                return self.expect(b']');
            }
        }
    }

    fn string(&mut self) -> Pulled<Cow<'a, str>> {
        self.expect(b'"')?;
        let start = self.at;
        self.at += plain(&self.text.as_bytes()[start..]);
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                Ok(Cow::Borrowed(&self.text[start..self.at - 1]))
            }
            Some(b'\\') => self.escaped(start).map(Cow::Owned),
            _ => Err(Stop::Odd),
        }
    }

    /// The rest of a string that begins at `start` and has escapes.
    fn escaped(&mut self, start: usize) -> Pulled<String> {
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(_) => self.at += 1,
                None => return Err(Stop::Odd),
            }
        }
        self.at += 1;
        // An escaped multi-byte character may be cut here, which no valid string has.
        let quoted = self.text.get(start - 1..self.at).ok_or(Stop::Odd)?;
        serde_json::from_str(quoted).map_err(|_| Stop::Odd)
    }

    fn number(&mut self) -> Pulled<u64> {
        self.blanks();
        let start = self.at;
        let mut number = 0_u64;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            let tens = number.checked_mul(10);
            let sum = tens.and_then(|tens| tens.checked_add(u64::from(digit - b'0')));
            number = sum.ok_or(Stop::Odd)?;
            self.at += 1;
        }
        let has_leading_zero = self.text.as_bytes()[start..self.at].starts_with(b"0");
        match self.at - start {
            0 => Err(Stop::Odd),
            2.. if has_leading_zero => Err(Stop::Odd),
            _ => Ok(number),
        }
    }

    fn entry(&mut self) -> Pulled<Entry<'a>> {
        let mut entry = Entry::default();
        let mut seen = 0_u32;
        self.object(|scanner, key| {
            let field = scanner.field(&mut entry, key)?;
            let is_new = seen & (1 << field) == 0;
            seen |= 1 << field;
            if is_new { Ok(()) } else { Err(Stop::Odd) }
        })?;
        Ok(entry)
    }

    /// Passes the value of an entry's `key` into `entry`; each key has a number.
    fn field(&mut self, entry: &mut Entry<'a>, key: &str) -> Pulled<u8> {
        let mut text = |to: &mut Cow<'a, str>, field| {
            *to = self.string()?;
            Ok(field)
        };
        let (to, field) = match key {
            "name" => return text(&mut entry.name, 0),
            "modtime" => return text(&mut entry.mod_time, 1),
            "linkName" => return text(&mut entry.link_name, 2),
            "digest" => return text(&mut entry.digest, 3),
            "chunkDigest" => return text(&mut entry.chunk_digest, 4),
            "chunkType" => return text(&mut entry.chunk_type, 5),
            "accesstime" => return text(&mut Cow::default(), 6),
            "changetime" => return text(&mut Cow::default(), 7),
            "userName" => return text(&mut Cow::default(), 8),
            "groupName" => return text(&mut Cow::default(), 9),
            "type" => {
                entry.kind = kind(&self.string()?)?;
                return Ok(10);
            }
            "xattrs" => {
                entry.xattrs = self.xattrs()?;
                return Ok(11);
            }
            "size" => (&mut entry.size, 12),
            "mode" => (&mut entry.mode, 13),
            "uid" => (&mut entry.uid, 14),
            "gid" => (&mut entry.gid, 15),
            "offset" => (&mut entry.offset, 16),
            "innerOffset" => (&mut entry.inner_offset, 17),
            "devMajor" => (&mut entry.dev_major, 18),
            "devMinor" => (&mut entry.dev_minor, 19),
            "NumLink" => (&mut 0, 20),
            "chunkOffset" => (&mut entry.chunk_offset, 21),
            "chunkSize" => (&mut entry.chunk_size, 22),
            "endOffset" => (&mut entry.end_offset, 23),
            _ => return Err(Stop::Odd),
        };
        *to = self.number()?;
        Ok(field)
    }

    #[allow(clippy::type_complexity, reason = "as the field that it becomes")]
    fn xattrs(&mut self) -> Pulled<Vec<(Cow<'a, str>, Cow<'a, [u8]>)>> {
        let mut xattrs: Vec<(Cow<'a, str>, Cow<'a, [u8]>)> = Vec::new();
        self.object(|scanner, name| {
            let value = scanner.string()?;
            let value = STANDARD.decode(value.as_bytes()).map_err(|_| Stop::Odd)?;
            xattrs.push((name.into(), value.into()));
            Ok(())
        })?;
        xattrs.sort_unstable();
        let repeats = xattrs.windows(2).any(|pair| pair[0].0 == pair[1].0);
        if repeats { Err(Stop::Odd) } else { Ok(xattrs) }
    }
}

fn kind(word: &str) -> Pulled<EntryType> {
    Ok(match word {
        "reg" => EntryType::Reg,
        "dir" => EntryType::Dir,
        "symlink" => EntryType::Symlink,
        "hardlink" => EntryType::Hardlink,
        "chunk" => EntryType::Chunk,
        "char" => EntryType::Char,
        "block" => EntryType::Block,
        "fifo" => EntryType::Fifo,
        _ => return Err(Stop::Odd),
    })
}

/// How many bytes stand before the first quote, backslash or control character.
fn plain(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    // The lowest high bit that is set stands in the first byte below `limit`.
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGH;
    let mut passed = 0;
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let found = quote | backslash | below(word, 0x20);
        if found != 0 {
            return passed + found.trailing_zeros() as usize / 8;
        }
        passed += 8;
    }
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
    let rest = words.remainder();
    passed + rest.iter().position(is_special).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulled(json: &str) -> Pulled<Vec<Entry<'_>>> {
        let mut seen = Vec::new();
        entries(json, |entry| {
            seen.push(entry.clone());
            Ok(())
        })?;
        Ok(seen)
    }

    #[test]
    fn what_converters_write_is_never_odd() {
        let json = r#"{
            "version": 1,
            "entries": [
                {"name":"usr/","type":"dir","modtime":"2023-11-14T22:13:20Z","mode":493,"NumLink":0},
                {"name":"usr/a\u0026b","type":"reg","size":3,"userName":"root","offset":77,
                 "xattrs":{"user.b":"AQ==","user.a":""},"digest":"sha256:00","chunkType":"zeros"}
            ], "tarSplitDigest": "sha256:11"
        }"#;
        let entries = pulled(json).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[0].name.as_ref(), entries[0].mode), ("usr/", 493));
        let file = &entries[1];
        assert_eq!(
            (file.name.as_ref(), file.size, file.offset),
            ("usr/a&b", 3, 77)
        );
        let xattrs: Vec<(&str, &[u8])> = file.xattrs.iter().map(|(n, v)| (&**n, &**v)).collect();
        assert_eq!(xattrs, [("user.a", &[][..]), ("user.b", &[1][..])]);
    }

    #[test]
    fn what_the_general_parser_has_to_judge_is_odd() {
        for entry in [
            r#"{"name":"a","name":"b"}"#,
            r#"{"xattrs":{"user.a":"AQ==","user.a":""}}"#,
            r#"{"xattrs":{"user.a":null}}"#,
            r#"{"size":01}"#,
            r#"{"size":1.0}"#,
            r#"{"size":-1}"#,
            r#"{"size":18446744073709551616}"#,
            r#"{"unknown":1}"#,
            r#"{"na\u006de":"a"}"#,
            r#"{"name":"\ud800"}"#,
            "{\"name\":\"\t\"}",
            r#"{"name":"a",}"#,
            r#"["a"]"#,
            r#"{"type":"door"}"#,
        ] {
            let json = format!(r#"{{"version":1,"entries":[{entry}]}}"#);
            assert_eq!(pulled(&json), Err(Stop::Odd), "{entry}");
        }
        for json in [
            "",
            "{}",
            r#"{"version":2}"#,
            r#"{"version":1} x"#,
            r#"{"version":1"#,
        ] {
            assert_eq!(pulled(json), Err(Stop::Odd), "{json}");
        }
    }

    #[test]
    fn the_end_of_plain_text_is_found_wherever_it_lies() {
        for special in [b'"', b'\\', 0, 0x1f] {
            for at in 0..20 {
                let mut text = vec![b'a'; at];
                text.extend([special, b'"', 0x7f, 0x80, 0xff]);
                assert_eq!(plain(&text), at, "{special} at {at}");
            }
        }
        let other: Vec<u8> = (0x20..=255)
            .filter(|b| ![b'"', b'\\'].contains(b))
            .collect();
        assert_eq!(plain(&other), other.len());
    }
}
