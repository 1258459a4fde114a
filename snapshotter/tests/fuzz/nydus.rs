//! Nydus: bootstraps of both versions, mutated from what nydus-image wrote.

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

#[test]
fn nydus_packed() {
    harness::run("nydus_packed", packed(), |bytes| {
        let _ = unpack_bootstrap(bytes);
    });
}
