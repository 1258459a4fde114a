//! zstd:chunked: positions and TOCs.

use xebec_snapshotter::digest::Digest;
use xebec_snapshotter::formats::zstdchunked::{Position, index, unpack_toc};

use crate::harness;

const SIZE: u64 = 4 << 20;

#[test]
fn zstdchunked_toc() {
    let (layer, toc) = (Digest::of(b"layer"), Digest::of(b"toc"));
    let position = Position::parse(&format!("{}:8:8:1", SIZE - 8), SIZE).unwrap();
    harness::run("zstdchunked_toc", Vec::new(), |json| {
        if let Ok(index) = index(json, layer, toc, SIZE, position) {
            crate::index::check(index);
        }
    });
}

/// A position's text, a line break, and the packed TOC that it speaks of.
#[test]
fn zstdchunked_packed() {
    harness::run("zstdchunked_packed", Vec::new(), |input| {
        let line = input.iter().position(|byte| *byte == b'\n');
        let (text, packed) = input.split_at(line.unwrap_or(0));
        let text = String::from_utf8_lossy(text);
        if let Ok(position) = Position::parse(&text, SIZE) {
            let packed = packed.get(1..).unwrap_or_default();
            if let Ok(json) = unpack_toc(packed, position) {
                assert_eq!(json.len() as u64, position.unpacked);
            }
        }
    });
}
