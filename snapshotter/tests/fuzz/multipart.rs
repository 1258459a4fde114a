//! Answers that hold several ranges: what is taken out of them is no more than was asked for, and
//! the same however they arrive.

use std::ops::Range;

use xebec_snapshotter::fetch::multipart::{Multipart, boundary};

use crate::harness;

const WANTED: [Range<u64>; 3] = [10..20, 500..501, 700..1_000];
const SIZE: u64 = 10_000;

fn answer() -> Vec<u8> {
    let part = |range: &Range<u64>| {
        let (first, last) = (range.start, range.end - 1);
        let head = format!("\r\n--b\r\nContent-Range: bytes {first}-{last}/{SIZE}\r\n\r\n");
        [
            head.into_bytes(),
            vec![b'-'; (range.end - range.start) as usize],
        ]
        .concat()
    };
    let parts: Vec<u8> = WANTED.iter().flat_map(part).collect();
    [&parts, &b"\r\n--b--\r\n"[..]].concat()
}

/// What comes out of `bytes` in pieces of `piece`, how it ended, and whether that is everything.
fn read(bytes: &[u8], piece: usize) -> (Vec<u8>, Result<(), String>, bool) {
    let mut reader = Multipart::new("b", &WANTED, SIZE);
    let mut got = Vec::new();
    let mut pieces = bytes.chunks(piece);
    let fed = pieces
        .try_for_each(|piece| reader.feed(piece, |found| got.extend_from_slice(&piece[found])));
    (got, fed, reader.is_complete())
}

#[test]
fn multipart() {
    harness::run("multipart", vec![answer()], |bytes| {
        let whole = read(bytes, usize::MAX);
        assert_eq!(read(bytes, 7), whole, "in pieces");
        let (got, _, is_complete) = whole;
        let wanted: u64 = WANTED.iter().map(|range| range.end - range.start).sum();
        assert!(got.len() as u64 <= wanted);
        assert_eq!(got.len() as u64 == wanted, is_complete);
        if let Some(boundary) = boundary(&String::from_utf8_lossy(bytes)) {
            assert!((1..=70).contains(&boundary.len()));
        }
    });
}
