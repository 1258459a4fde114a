//! Nydus: bootstraps of both versions, mutated from what nydus-image wrote.

use std::io::Read;
use std::path::Path;

use xebec_snapshotter::digest::Digest;
use xebec_snapshotter::formats::nydus::{Bootstrap, unpack_bootstrap};

use crate::harness;

fn packed() -> Vec<Vec<u8>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nydus");
    ["v5-zstd-blake3", "v6-lz4-sha256-toc", "v6-zstd-blake3"]
        .map(|name| std::fs::read(fixtures.join(name).join("bootstrap.tar.gz")).unwrap())
        .to_vec()
}

#[test]
fn nydus_bootstrap() {
    let packed = packed();
    let seeds = packed.iter().map(|layer| unpack_bootstrap(layer).unwrap());
    harness::run("nydus_bootstrap", seeds.collect(), |bytes| {
        let Ok(bootstrap) = Bootstrap::read(bytes) else {
            return;
        };
        let blobs = bootstrap.blobs();
        let sizes: Vec<u64> = blobs.iter().map(|_| 1 << 30).collect();
        let contexts: Vec<_> = blobs.iter().map(|_| None).collect();
        if let Ok(index) = bootstrap.index(Digest::of(b"layer"), &sizes, &contexts) {
            crate::index::check(index);
        }
    });
}

/// A bootstrap of unchanged gzip layers behind its length, then the contexts of both.
fn with_contexts() -> Vec<u8> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nydus/v6-zran");
    let layer = std::fs::read(directory.join("bootstrap.tar.gz")).unwrap();
    let bytes = unpack_bootstrap(&layer).unwrap();
    let mut input = (bytes.len() as u32).to_le_bytes().to_vec();
    input.extend_from_slice(&bytes);
    let bootstrap = Bootstrap::read(&bytes).unwrap();
    for blob in bootstrap.blobs() {
        let range = blob.contexts().unwrap().unwrap();
        let packed = directory.join(format!("{}.gz", range.blob.hex()));
        let packed = std::fs::File::open(packed).unwrap();
        let mut holder = Vec::new();
        flate2::read::GzDecoder::new(packed)
            .read_to_end(&mut holder)
            .unwrap();
        input.extend_from_slice(&holder[range.offset as usize..][..range.len as usize]);
    }
    input
}

/// Bootstrap and contexts together: what either says of the other may be a lie.
#[test]
fn nydus_contexts() {
    harness::run("nydus_contexts", vec![with_contexts()], |input| {
        let Some((len, rest)) = input.split_first_chunk() else {
            return;
        };
        let len = u32::from_le_bytes(*len) as usize;
        let Some((bytes, mut rest)) = rest.split_at_checked(len) else {
            return;
        };
        let Ok(bootstrap) = Bootstrap::read(bytes) else {
            return;
        };
        let mut contexts = Vec::new();
        for blob in bootstrap.blobs() {
            let Ok(needed) = blob.contexts() else {
                return;
            };
            let len = needed.map_or(0, |range| range.len as usize);
            let (packed, more) = rest.split_at(len.min(rest.len()));
            rest = more;
            match needed.map(|_| blob.read_contexts(packed)).transpose() {
                Ok(read) => contexts.push(read),
                Err(_) => return,
            }
        }
        let sizes = vec![1 << 30; contexts.len()];
        if let Ok(index) = bootstrap.index(Digest::of(b"layer"), &sizes, &contexts) {
            crate::index::check(index);
        }
    });
}

#[test]
fn nydus_packed() {
    harness::run("nydus_packed", packed(), |bytes| {
        let _ = unpack_bootstrap(bytes);
    });
}
