//! What lies beside ordinary layers: indexes of our own, and ztocs.

use xebec_snapshotter::digest::Digest;
use xebec_snapshotter::formats::soci;
use xebec_snapshotter::ingest::{self, portable};

use crate::harness;

#[test]
fn portable_index() {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, size) in [("a", 5), ("b/c", 3000)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        let content = vec![7; size as usize];
        tar.append_data(&mut header, name, &content[..]).unwrap();
    }
    let blob = tar.into_inner().unwrap();
    let (layer, size) = (Digest::of(&blob), blob.len() as u64);
    let honest = ingest::describe(layer, size, |sink| sink(&blob)).unwrap();
    harness::run("portable_index", vec![honest], |bytes| {
        if let Ok(index) = portable::unpack(bytes, layer, size) {
            crate::index::check(index);
        }
    });
}

#[test]
fn soci_ztoc() {
    // A root table with six fields, all at one place that leads to itself.
    let mut ztoc = 20u32.to_le_bytes().to_vec();
    ztoc.extend_from_slice(&[16, 0, 8, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0]);
    ztoc.extend_from_slice(&16i32.to_le_bytes());
    ztoc.extend_from_slice(&[0; 40]);
    let layer = Digest::of(b"layer");
    harness::run("soci_ztoc", vec![ztoc], |bytes| {
        if let Ok(index) = soci::index(bytes, layer, 1 << 20) {
            crate::index::check(index);
        }
    });
}
