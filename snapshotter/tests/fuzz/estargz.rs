//! eStargz: footers and TOCs.

use xebec_snapshotter::digest::Digest;
use xebec_snapshotter::formats::estargz::{footer, index, unpack_toc};
use xebec_snapshotter::formats::zstdchunked::Position;

use crate::harness;

const SIZE: u64 = 1 << 20;

#[test]
fn footers() {
    harness::run("footers", Vec::new(), |tail| {
        if let Ok(Some(footer)) = footer::parse(tail, SIZE) {
            assert!(footer.toc_offset + footer.len < SIZE + 1);
        }
        footer::is_external(tail);
        if let Ok(Some(position)) = Position::of_footer(tail, SIZE) {
            assert!(position.offset + position.packed <= SIZE);
        }
    });
}

#[test]
fn estargz_toc() {
    let (layer, toc) = (Digest::of(b"layer"), Digest::of(b"toc"));
    harness::run("estargz_toc", Vec::new(), |json| {
        if let Ok(index) = index(json, layer, toc, SIZE, SIZE) {
            crate::index::check(index);
        }
    });
}

#[test]
fn estargz_packed() {
    harness::run("estargz_packed", Vec::new(), |packed| {
        // Whatever it is, it is bounded by the parser's own limit.
        let _ = unpack_toc(packed).map(|json| assert!(json.len() <= 512 << 20));
    });
}
