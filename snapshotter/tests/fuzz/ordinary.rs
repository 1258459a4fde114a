//! Ordinary layers: archives as they are and in gzip and zstd, and the indexes made of them.

use std::io::Write;

use xebec_snapshotter::digest::Digest;
use xebec_snapshotter::ingest::{Discard, describe, ingest, portable};

use crate::harness;

/// A small archive with an entry of most kinds.
fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |kind, name: &str, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        if link.is_empty() {
            builder.append_data(&mut header, name, content).unwrap();
        } else {
            builder.append_link(&mut header, name, link).unwrap();
        }
    };
    add(tar::EntryType::Directory, "d/", "", b"");
    add(tar::EntryType::Regular, "d/f", "", &[7; 1500]);
    add(tar::EntryType::Link, "d/hard", "d/f", b"");
    add(tar::EntryType::Symlink, "d/soft", "../x", b"");
    add(tar::EntryType::Fifo, "fifo", "", b"");
    add(tar::EntryType::Regular, "d/.wh.gone", "", b"");
    add(tar::EntryType::Regular, &"long/".repeat(30), "", b"");
    builder
        .append_pax_extensions([("SCHILY.xattr.user.k", &b"v"[..]), ("mtime", b"1.5")])
        .unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    builder.append_data(&mut header, "x", &b"abc"[..]).unwrap();
    builder.into_inner().unwrap()
}

/// The archive as it is, in gzip and in zstd.
fn layers() -> Vec<Vec<u8>> {
    let plain = archive();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let zstd = zstd::encode_all(&plain[..], 1).unwrap();
    vec![plain, gzip.finish().unwrap(), zstd]
}

#[test]
fn ordinary_layer() {
    harness::run("ordinary_layer", layers(), |bytes| {
        let (layer, size) = (Digest::of(bytes), bytes.len() as u64);
        if let Ok(ingested) = ingest(layer, size, |sink| sink(bytes), &mut Discard) {
            crate::index::check(ingested.index);
        }
    });
}

#[test]
fn portable_index() {
    for bytes in layers() {
        let (layer, size) = (Digest::of(&bytes), bytes.len() as u64);
        let seed = describe(layer, size, |sink| sink(&bytes)).unwrap();
        harness::run("portable_index", vec![seed], |index| {
            if let Ok(index) = portable::unpack(index, layer, size) {
                crate::index::check(index);
            }
        });
    }
}
