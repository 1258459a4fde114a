//! tar-split: what of an archive is not content of its files, from which containers/storage puts
//! the exact archive together again.
//!
//! One JSON document a line: a segment (type 2) holds raw bytes, a file (type 1) stands for its
//! content and holds its CRC-64. An entry is a segment that ends with its header and then a file.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

/// A line; the names and their order are the format's.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    payload: Option<String>,
    position: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

const FILE: u8 = 1;
const SEGMENT: u8 = 2;

/// Writes the lines.
pub(super) struct TarSplit<W> {
    out: W,
    position: u64,
    length: u64,
}

impl<W: Write> TarSplit<W> {
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            position: 0,
            length: 0,
        }
    }

    /// Raw bytes: headers, padding, the end of the archive.
    pub(super) fn segment(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.line(SEGMENT, None, 0, Some(STANDARD.encode(bytes)))
    }

    /// A file's content, by its size and CRC; an entry without content has neither.
    pub(super) fn file(&mut self, name: &str, size: u64, crc: u64) -> io::Result<()> {
        let payload = (size > 0).then(|| STANDARD.encode(crc.to_be_bytes()));
        self.line(FILE, Some(name), size, payload)
    }

    /// Where the lines went, and how many bytes they are.
    pub(super) fn finish(self) -> (W, u64) {
        (self.out, self.length)
    }

    fn line(
        &mut self,
        kind: u8,
        name: Option<&str>,
        size: u64,
        payload: Option<String>,
    ) -> io::Result<()> {
        let line = Line {
            kind,
            name,
            size,
            payload,
            position: self.position,
        };
        self.position += 1;
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        self.length += text.len() as u64;
        self.out.write_all(&text)
    }
}

/// CRC-64 of ISO 3309, as Go's `hash/crc64` computes it, eight bytes a step.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Crc64(u64);

const POLYNOMIAL: u64 = 0xd800_0000_0000_0000;

const TABLES: [[u64; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (POLYNOMIAL * (crc & 1));
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = tables[0][(before & 0xff) as usize] ^ (before >> 8);
            byte += 1;
        }
        table += 1;
    }
    tables
};

impl Crc64 {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        let mut crc = !self.0;
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            let mixed = (crc ^ u64::from_le_bytes(*word)).to_le_bytes();
            crc = mixed
                .iter()
                .zip(TABLES.iter().rev())
                .fold(0, |sum, (byte, table)| sum ^ table[usize::from(*byte)]);
        }
        for byte in rest {
            crc = TABLES[0][usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
        }
        self.0 = !crc;
    }

    pub(super) fn finish(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_that_of_iso_3309_however_the_bytes_are_cut() {
        // The check value of CRC-64/GO-ISO.
        let digits = b"123456789";
        for cut in 0..=digits.len() {
            let mut crc = Crc64::default();
            crc.update(&digits[..cut]);
            crc.update(&digits[cut..]);
            assert_eq!(crc.finish(), 0xb909_56c7_75a4_1001);
        }
    }

    #[test]
    fn lines_are_those_that_vbatts_tar_split_writes() {
        let mut split = TarSplit::new(Vec::new());
        split.segment(b"head").unwrap();
        split.file("etc/passwd", 65, 0xb9ad_93c0_e1f5_c022).unwrap();
        split.segment(b"").unwrap();
        split.segment(b"tail").unwrap();
        split.file("tmp", 0, 0).unwrap();
        let expected = concat!(
            r#"{"type":2,"payload":"aGVhZA==","position":0}"#,
            "\n",
            r#"{"type":1,"name":"etc/passwd","size":65,"payload":"ua2TwOH1wCI=","position":1}"#,
            "\n",
            r#"{"type":2,"payload":"dGFpbA==","position":2}"#,
            "\n",
            r#"{"type":1,"name":"tmp","payload":null,"position":3}"#,
            "\n",
        );
        let (lines, length) = split.finish();
        assert_eq!(length, expected.len() as u64);
        assert_eq!(String::from_utf8(lines).unwrap(), expected);
    }
}
