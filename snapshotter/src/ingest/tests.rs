//! Layers of every packing, honest and hostile, through the whole of it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;

use super::*;
use crate::fetch::FileBlob;
use crate::fill::Filler;
use crate::formats::Flaw;
use crate::index::{Codec, OBJECT_MIN};
use crate::store::{Origin, Store};

/// Contents in memory.
#[derive(Debug, Default)]
struct Memory(HashMap<u32, Vec<u8>>);

impl Contents for Memory {
    fn write(&mut self, segment: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = self.0.entry(segment).or_default();
        file.resize(file.len().max(offset as usize + bytes.len()), 0);
        file[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// A disk that takes nothing more.
struct Full;

impl Contents for Full {
    fn write(&mut self, _: u32, _: u64, _: &[u8]) -> Result<()> {
        Err(Flaw::new("full").of("the disk"))
    }
}

/// Bytes that compress two to one or so.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&(state as u32).to_le_bytes());
        bytes.extend_from_slice(b"same");
    }
    bytes.truncate(len);
    bytes
}

struct Sample {
    tar: Vec<u8>,
    files: Vec<(String, Vec<u8>)>,
}

fn sample() -> Sample {
    let mut tar = tar::Builder::new(Vec::new());
    let mut files = Vec::new();
    for (n, len) in [0, 10, 5000, OBJECT_MIN as usize, 3 << 20, 5 << 20, 700]
        .into_iter()
        .enumerate()
    {
        let (name, data) = (format!("dir/file{n}"), noise(len, n as u64));
        let mut header = tar::Header::new_ustar();
        header.set_size(len as u64);
        header.set_mode(0o640);
        header.set_uid(n as u64);
        tar.append_data(&mut header, &name, &data[..]).unwrap();
        files.push((name, data));
    }
    Sample {
        tar: tar.into_inner().unwrap(),
        files,
    }
}

/// What a blob was before it was packed, by other decoders than those on trial.
fn unpacked(blob: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match blob {
        [0x1f, 0x8b, ..] => {
            let mut decoder = flate2::read::MultiGzDecoder::new(blob);
            decoder.read_to_end(&mut out).unwrap();
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => out = zstd::decode_all(blob).unwrap(),
        _ => out.extend_from_slice(blob),
    }
    out
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Feeds `blob` in pieces of `step` bytes.
fn run(blob: &[u8], step: usize) -> Result<(LayerIndex, Memory)> {
    run_as(blob, step, Digest::of(blob))
}

fn run_as(blob: &[u8], step: usize, digest: Digest) -> Result<(LayerIndex, Memory)> {
    let mut memory = Memory::default();
    let feed = |sink: Sink<'_>| blob.chunks(step).try_for_each(sink);
    let ingested = ingest(digest, blob.len() as u64, feed, &mut memory)?;
    assert_eq!(ingested.diff_id, Digest::of(&unpacked(blob)));
    Ok((ingested.index, memory))
}

#[test]
fn every_packing_gives_the_same_files_and_spans_that_unpack_to_them() {
    let Sample { tar, files } = sample();
    let members: Vec<u8> = tar.chunks(3_000_001).flat_map(gzip).collect();
    let frames = |size| -> Vec<u8> {
        let frame = |part| zstd::encode_all(part, 1).unwrap();
        tar.chunks(size).flat_map(frame).collect()
    };
    for (what, blob, codec, least) in [
        ("gzip", gzip(&tar), Codec::Deflate, 4),
        ("gzip members", members, Codec::Deflate, 4),
        ("zstd", frames(usize::MAX), Codec::Zstd, 1),
        ("zstd frames", frames(100_000), Codec::Zstd, 4),
        ("tar", tar.clone(), Codec::Plain, 4),
    ] {
        for step in [1 << 20, 4097] {
            let (index, memory) = run(&blob, step).unwrap();
            assert!(index.units() >= least, "{what}: {} units", index.units());
            check(what, &index, &memory, &files);
            check_units(what, &index, &blob, codec);
        }
        let (index, memory) = run(&blob, 1 << 16).unwrap();
        assert_eq!(
            read_lazily(&index, &blob, &files).unwrap(),
            files.len(),
            "{what}"
        );
        let mut damaged = blob.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        let error = read_lazily(&index, &damaged, &files)
            .unwrap_err()
            .to_string();
        assert!(error.contains("digest mismatch"), "{what}: {error}");
        drop(memory);
    }
}

/// Reads all files through a store that has none of them; the number that is right.
fn read_lazily(
    index: &LayerIndex,
    blob: &[u8],
    files: &[(String, Vec<u8>)],
) -> Result<usize, Arc<Error>> {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let origin = Origin {
        image: "registry.example/app:v1".to_owned(),
        size: blob.len() as u64,
        diff_id: None,
    };
    let stored = store.create(index, &origin).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(blob).unwrap();
    let source = Arc::new(FileBlob::new(file, "layer").unwrap());
    let filler = Filler::new(Arc::new(stored), source, Arc::default());
    let mut right = 0;
    for (n, (_, data)) in files.iter().enumerate() {
        let inode = index.inode(n as u32 + 2);
        // From the end, so that spans are begun in the middle of the blob first.
        let half = inode.size / 2;
        let tail = filler.read(&inode, half, u64::MAX)?;
        let head = filler.read(&inode, 0, half)?;
        right += usize::from([head, tail].concat() == *data);
    }
    Ok(right)
}

/// What a pull writes is in the store when it is published, whole and readable; given up, it is gone.
#[test]
fn a_streamed_layer_is_in_the_store_whole_or_not_at_all() {
    let Sample { tar, files } = sample();
    let blob = gzip(&tar);
    let layer = Digest::of(&blob);
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let stream = |digest: Digest, blob: &[u8]| {
        let mut stage = store.stage(&digest)?;
        let feed = |sink: Sink<'_>| blob.chunks(1 << 16).try_for_each(sink);
        let index = ingest(digest, blob.len() as u64, feed, &mut stage)?.index;
        let origin = Origin {
            image: "registry.example/app:v1".to_owned(),
            size: blob.len() as u64,
            diff_id: None,
        };
        stage.publish(&index, &origin)
    };
    stream(layer, &blob[..blob.len() - 100]).unwrap_err();
    assert!(!store.contains(&layer));
    let left = std::fs::read_dir(root.path().join("blobs/sha256")).unwrap();
    assert_eq!(left.count(), 0, "nothing is left of a failed pull");

    drop(stream(layer, &blob).unwrap());
    let stored = store.load(&layer).unwrap();
    for (n, (name, data)) in files.iter().enumerate() {
        let inode = stored.index().inode(n as u32 + 2);
        assert!(stored.is_complete(&inode), "{name}");
        let mut bytes = vec![0; data.len()];
        stored.read(&inode, 0, &mut bytes).unwrap();
        assert!(bytes == *data, "{name}");
    }
    stored.sync().unwrap();
}

/// Every file is where its inode says.
fn check(what: &str, index: &LayerIndex, memory: &Memory, files: &[(String, Vec<u8>)]) {
    // Inode 0 is the root, 1 the directory.
    assert_eq!(index.inodes() as usize, files.len() + 2, "{what}");
    for (n, (name, data)) in files.iter().enumerate() {
        let inode = index.inode(n as u32 + 2);
        assert_eq!(
            (inode.size, inode.uid),
            (data.len() as u64, n as u32),
            "{what}: {name}"
        );
        if inode.size > 0 {
            let stored = &memory.0[&inode.segment][inode.base as usize..][..data.len()];
            assert!(stored == data, "{what}: {name}");
        }
    }
}

/// Every unit has the digest of its span, and a node that has nothing but the index reads the same
/// files, verified.
fn check_units(what: &str, index: &LayerIndex, blob: &[u8], codec: Codec) {
    for id in 0..index.units() {
        let unit = index.unit(id);
        assert_eq!(unit.codec(), codec, "{what}");
        let packed = &blob[unit.offset as usize..unit.end() as usize];
        let span = index.span(id).unwrap();
        assert_eq!(
            Digest::from_bytes(span.digest),
            Digest::of(packed),
            "{what}"
        );
    }
}

#[test]
fn a_blob_of_another_digest_is_refused_however_well_formed() {
    let blob = gzip(&sample().tar);
    let error = run_as(&blob, 1 << 16, Digest::of(b"another")).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[test]
fn damaged_and_hostile_layers_are_refused_with_a_reason() {
    let tar = sample().tar;
    let good = gzip(&tar);
    let cut = good[..good.len() / 2].to_vec();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 0x55;
    let bad_sum = [&good[..good.len() - 8], &[0; 8]].concat();
    let behind = [&good[..], b"rubbish"].concat();
    let short_tar = gzip(&tar[..tar.len() / 2]);
    let no_tar = gzip(&vec![7; 100_000]);
    let escape = {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..9].copy_from_slice(b"../escape");
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, &[][..]).unwrap();
        gzip(&builder.into_inner().unwrap())
    };
    let twice = gzip(&{
        let mut builder = tar::Builder::new(Vec::new());
        for _ in 0..2 {
            let mut header = tar::Header::new_ustar();
            header.set_size(3);
            builder
                .append_data(&mut header, "twice", &b"abc"[..])
                .unwrap();
        }
        builder.into_inner().unwrap()
    });
    for (what, blob, reason) in [
        ("cut", cut, "cut short"),
        ("flipped", flipped, "malformed"),
        ("checksum", bad_sum, "not valid"),
        ("rubbish behind", behind, "not valid"),
        ("half a tar", short_tar, "ends within"),
        ("no tar", no_tar, "checksum"),
        ("escape", escape, "unsafe path"),
        ("twice", twice, "already"),
        (
            "half a frame",
            zstd::encode_all(&tar[..], 1).unwrap()[..5000].to_vec(),
            "cut short",
        ),
    ] {
        let error = run(&blob, 10_000).unwrap_err().to_string();
        assert!(error.contains(reason), "{what}: {error}");
    }
}

#[test]
fn a_bomb_ends_at_the_first_span_that_is_too_large_to_be_read_again() {
    // One frame of zeros: 4 GiB from some hundred kilobytes.
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_path("zeros").unwrap();
    header.set_size(4 << 30);
    header.set_cksum();
    encoder.write_all(header.as_bytes()).unwrap();
    let zeros = vec![0; 1 << 20];
    (0..400).for_each(|_| encoder.write_all(&zeros).unwrap());
    let blob = encoder.finish().unwrap();
    let feed = |sink: Sink<'_>| blob.chunks(1 << 16).try_for_each(sink);
    let error = ingest(Digest::of(&blob), blob.len() as u64, feed, &mut Discard).unwrap_err();
    assert!(error.to_string().contains("no place to begin"), "{error}");
}

#[test]
fn what_the_source_says_is_what_the_caller_hears() {
    let blob = gzip(&sample().tar);
    let feed = |sink: Sink<'_>| {
        sink(&blob[..100_000])?;
        Err(Error::NotFound("the registry".to_owned()))
    };
    let error = ingest(Digest::of(&blob), blob.len() as u64, feed, &mut Discard).unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
    let feed = |sink: Sink<'_>| blob.chunks(1 << 16).try_for_each(sink);
    let error = ingest(Digest::of(&blob), blob.len() as u64, feed, &mut Full).unwrap_err();
    assert!(error.to_string().contains("the disk"), "{error}");
}

/// The parts of an index that say where things are, without the digest of what it was made from.
fn places(index: &LayerIndex) -> Vec<(u64, u32, u64, Vec<u8>)> {
    let span = |id| {
        let (unit, span) = (index.unit(id), index.span(id).unwrap());
        let window = index.window(&span).to_vec();
        (unit.offset, unit.len, u64::from(span.bits), window)
    };
    (0..index.units()).map(span).collect()
}

#[test]
fn an_index_that_has_travelled_reads_the_same_files() {
    let Sample { tar, files } = sample();
    for blob in [gzip(&tar), zstd::encode_all(&tar[..], 1).unwrap(), tar] {
        let (layer, size) = (Digest::of(&blob), blob.len() as u64);
        let feed = |sink: Sink<'_>| blob.chunks(1 << 16).try_for_each(sink);
        let bytes = describe(layer, size, feed).unwrap();
        let index = portable::unpack(&bytes, layer, size).unwrap();
        assert_eq!(index.toc(), Digest::of(&bytes));
        let (original, _) = run(&blob, 1 << 16).unwrap();
        assert_eq!(places(&index), places(&original));
        assert_eq!(read_lazily(&index, &blob, &files).unwrap(), files.len());
        let again = describe(layer, size, feed).unwrap();
        assert!(bytes == again, "the same layer gives the same index");
    }
}

#[test]
fn damaged_and_forged_indexes_are_refused() {
    let blob = gzip(&sample().tar);
    let (layer, size) = (Digest::of(&blob), blob.len() as u64);
    let feed = |sink: Sink<'_>| blob.chunks(1 << 16).try_for_each(sink);
    let good = describe(layer, size, feed).unwrap();
    let refused = |bytes: &[u8]| {
        portable::unpack(bytes, layer, size)
            .unwrap_err()
            .to_string()
    };
    for cut in [
        0,
        7,
        8,
        39,
        47,
        48,
        52,
        60,
        100,
        good.len() / 2,
        good.len() - 1,
    ] {
        refused(&good[..cut]);
    }
    let forged = |at: usize, bytes: &[u8]| {
        let mut forged = good.clone();
        forged[at..at + bytes.len()].copy_from_slice(bytes);
        forged
    };
    for (at, bytes, reason) in [
        (0, &b"XBINDEX9"[..], "version"),
        (8, &[0; 32], "another layer"),
        (40, &[9; 8], "another layer"),
        (48, &[7], "packing"),
        (49, &[0xff; 4], "index"),
        // The first span: offset, length, unpacked offset, bits.
        (53, &[0xff; 8], "a chunk"),
        (61, &[0xff; 8], "a chunk"),
        (69, &[0xff; 8], "order"),
        (77, &[9], "no valid state"),
    ] {
        let error = refused(&forged(at, bytes));
        assert!(error.contains(reason), "{at}: {error}");
    }
    assert!(portable::unpack(&good, Digest::of(b"other"), size).is_err());
    // Every byte turned: refused, or an index that gives right bytes or none.
    for at in (0..good.len()).step_by(997) {
        let mut turned = good.clone();
        turned[at] ^= 0x81;
        if let Ok(index) = portable::unpack(&turned, layer, size) {
            index.as_bytes();
        }
    }
}
