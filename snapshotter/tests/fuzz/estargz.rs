//! eStargz: footers and TOCs.

use xebec_snapshotter::digest::Digest;
use xebec_snapshotter::formats::Flaw;
use xebec_snapshotter::formats::estargz::entry::Entry;
use xebec_snapshotter::formats::estargz::{footer, index, toc, unpack_toc};
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
    let (layer, digest) = (Digest::of(b"layer"), Digest::of(b"toc"));
    harness::run("estargz_toc", Vec::new(), |json| {
        let fast = listed(|each| toc::for_each_entry(json, each));
        assert_eq!(fast, listed(|each| toc::for_each_entry_of_any(json, each)));
        if let Ok(index) = index(json, layer, digest, SIZE, SIZE) {
            crate::index::check(index);
        }
    });
}

/// What a parser of TOCs gives and how it ends.
fn listed(
    parser: impl FnOnce(&mut dyn FnMut(&Entry<'_>) -> Result<(), Flaw>) -> Result<(), Flaw>,
) -> (Vec<String>, Result<(), Flaw>) {
    let mut entries = Vec::new();
    let outcome = parser(&mut |entry| {
        entries.push(format!("{entry:?}"));
        Ok(())
    });
    (entries, outcome)
}

#[test]
fn estargz_packed() {
    harness::run("estargz_packed", Vec::new(), |packed| {
        // Whatever it is, it is bounded by the parser's own limit.
        let _ = unpack_toc(packed).map(|json| assert!(json.len() <= 512 << 20));
    });
}
