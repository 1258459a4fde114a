//! Ztocs, honest and hostile.

use std::io::{Read, Write};
use std::sync::Arc;

use super::*;
use crate::fetch::FileBlob;
use crate::fill::Filler;
use crate::index::Kind;
use crate::ingest::{Discard, ingest};
use crate::store::{Origin, Store};

fn refused(ztoc: &[u8]) -> String {
    let layer = Digest::of(b"layer");
    index(ztoc, layer, 1000).unwrap_err().to_string()
}

#[test]
fn buffers_that_lead_nowhere_are_refused() {
    let cases: [&[u8]; 6] = [
        b"",
        b"\x04\0\0",
        b"\xff\xff\xff\xff\0\0\0\0",
        // A table whose vtable lies before the buffer, and one whose lies behind.
        b"\x04\0\0\0\x40\0\0\0",
        b"\x04\0\0\0\0\0\0\x80",
        // A table that is its own vtable.
        b"\x04\0\0\0\0\0\0\0\xff\xff\xff\xff",
    ];
    for ztoc in cases {
        let error = refused(ztoc);
        assert!(error.contains("ztoc"), "{ztoc:?}: {error}");
    }
}

#[test]
fn noise_is_refused_whatever_it_is() {
    let mut state = 7u64;
    for round in 0..2000 {
        let len = 4 + round % 300;
        let noise: Vec<u8> = (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // Small numbers lead somewhere more often.
                (state >> 32) as u8 & if round % 2 == 0 { 0x1f } else { 0xff }
            })
            .collect();
        refused(&noise);
    }
}

#[test]
fn strings_that_share_their_bytes_are_counted() {
    // One byte vector of 64 bytes, asked for again and again.
    let mut bytes = vec![0; 100];
    bytes[..4].copy_from_slice(&12u32.to_le_bytes());
    // vtable at 4: length 6, table length 8, field 0 at 4; table at 12.
    bytes[4..10].copy_from_slice(&[6, 0, 8, 0, 4, 0]);
    bytes[12..16].copy_from_slice(&8i32.to_le_bytes());
    bytes[16..20].copy_from_slice(&4u32.to_le_bytes());
    bytes[20..24].copy_from_slice(&64u32.to_le_bytes());
    let buffer = Buffer::new(&bytes);
    let table = buffer.root().unwrap();
    let given = (0..100).take_while(|_| table.bytes(0).is_ok()).count();
    assert_eq!(given, 400 / 64);
    assert_eq!(table.string(1).unwrap(), "", "an absent field");
}

#[test]
fn checkpoints_of_both_versions_are_read_and_others_refused() {
    let record = |at: u64, out: u64, bits: u8| {
        let mut record = at.to_le_bytes().to_vec();
        record.extend_from_slice(&out.to_le_bytes());
        record.push(bits);
        record.extend_from_slice(&vec![9; WINDOW]);
        record
    };
    let head = |count: u32| [&count.to_le_bytes()[..], &[0; 8]].concat();
    let second = [head(2), record(10, 0, 0), record(500, 4000, 3)].concat();
    let first = [head(2), record(500, 4000, 3)].concat();
    for bytes in [&second, &first] {
        let read = checkpoints(bytes).unwrap();
        let places: Vec<_> = read.iter().map(|c| (c.at, c.out, c.bits)).collect();
        assert_eq!(places, [(10, 0, 0), (500, 4000, 3)]);
    }
    for bytes in [
        &second[..11],
        &second[..second.len() - 1],
        &head(3),
        &head(u32::MAX),
    ] {
        assert!(checkpoints(bytes).is_err());
    }
}

/// A layer with one of everything, and the ztoc that SOCI's own tool (`soci` 0.4.1 of Debian,
/// `--span-size 65536`) made of it.
fn fixture() -> (Vec<u8>, Vec<u8>) {
    let packed = include_bytes!("../../../tests/fixtures/soci/ztoc.gz");
    let mut ztoc = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(&packed[..]);
    decoder.read_to_end(&mut ztoc).unwrap();
    let layer = include_bytes!("../../../tests/fixtures/soci/layer.tar.gz");
    (layer.to_vec(), ztoc)
}

#[test]
fn a_ztoc_of_socis_own_tool_says_what_the_layer_itself_says() {
    let (blob, ztoc) = fixture();
    let (layer, size) = (Digest::of(&blob), blob.len() as u64);
    let theirs = index(&ztoc, layer, size).unwrap();
    let ours = ingest(layer, size, |sink| sink(&blob), &mut Discard).unwrap();
    let ours = ours.index;
    assert!(theirs.units() > 2, "{} spans", theirs.units());
    assert_eq!(theirs.toc(), Digest::of(&ztoc));
    let describe = |index: &LayerIndex, id| {
        let inode = index.inode(id);
        let xattrs = index.xattrs(&inode);
        let xattrs: Vec<_> = xattrs.map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        let link = match inode.kind() {
            Kind::Symlink => index.link_target(&inode).to_vec(),
            _ => Vec::new(),
        };
        let owner = (inode.mode, inode.uid, inode.gid, inode.nlink);
        let time = (inode.mtime, inode.mtime_nsec);
        (owner, time, inode.size, inode.rdev(), xattrs, link)
    };
    assert_eq!(theirs.inodes(), ours.inodes());
    for id in 0..ours.inodes() {
        assert_eq!(describe(&theirs, id), describe(&ours, id), "inode {id}");
    }
    let with_xattrs = (0..ours.inodes()).filter(|id| !describe(&theirs, *id).4.is_empty());
    assert_eq!(with_xattrs.count(), 1);
}

#[test]
fn a_layer_is_read_by_its_ztoc_and_a_damaged_one_is_not() {
    let (blob, ztoc) = fixture();
    let index = index(&ztoc, Digest::of(&blob), blob.len() as u64).unwrap();
    let mut archive = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(&blob[..]);
    decoder.read_to_end(&mut archive).unwrap();
    let mut contents = Vec::new();
    for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            contents.push(content);
        }
    }
    let read = |blob: &[u8]| -> Vec<Option<Vec<u8>>> {
        let root = tempfile::tempdir().unwrap();
        let origin = Origin {
            image: "registry.example/app:v1".to_owned(),
            size: blob.len() as u64,
            diff_id: None,
        };
        let store = Store::open(root.path()).unwrap();
        let stored = store.create(&index, &origin).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(blob).unwrap();
        let source = Arc::new(FileBlob::new(file, "layer").unwrap());
        let filler = Filler::new(Arc::new(stored), source, Arc::default());
        let files = (0..index.inodes()).map(|id| index.inode(id));
        let files = files.filter(|inode| inode.kind() == Kind::File);
        files
            .map(|inode| filler.read(&inode, 0, u64::MAX).ok())
            .collect()
    };
    let right: Vec<_> = contents.into_iter().map(Some).collect();
    assert!(right.len() > 8 && read(&blob) == right);
    let mut damaged = blob.clone();
    damaged[blob.len() / 2] ^= 1;
    let seen = read(&damaged);
    let wrong = seen
        .iter()
        .zip(&right)
        .filter(|(seen, right)| seen != right);
    assert!(wrong.clone().count() > 0, "the damage is met");
    assert!(
        wrong.clone().all(|(seen, _)| seen.is_none()),
        "and no wrong byte is given"
    );
}

#[test]
fn spans_that_are_wanted_first_are_fetched_first() {
    let (blob, ztoc) = fixture();
    let (layer, size) = (Digest::of(&blob), blob.len() as u64);
    let everything = index(&ztoc, layer, size).unwrap();
    assert_eq!(everything.prefetch_units().count(), 0);
    let last = everything.units() - 1;
    let wanted = prefetch::parse(
        br#"{"version":"1.0","prefetch_spans":[
        {"start_span":1,"end_span":1,"priority":3},{"start_span":0,"end_span":1},
        {"start_span":4000000000,"end_span":4294967295}]}"#,
    );
    let index = index_prefetched(&ztoc, layer, size, &wanted.unwrap()).unwrap();
    let listed: Vec<_> = index.prefetch_units().collect();
    assert!(last > 1);
    assert_eq!(
        listed,
        [0, 1],
        "each once, in order, and none that is not there"
    );
}
