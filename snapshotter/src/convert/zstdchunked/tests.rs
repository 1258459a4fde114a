use std::io::Read;

use super::super::guided::Recorded;
use super::super::hot::{Hot, Sizes};
use super::super::spool::spool;
use super::super::target::Target;
use super::*;
use crate::formats::zstdchunked::{Position, index, unpack_toc};
use crate::index::LayerIndex;

const CHUNK: u64 = 4096;

fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    build(&mut builder);
    let mut bytes = builder.into_inner().unwrap();
    // Archives are often padded to a record.
    bytes.resize(bytes.len().next_multiple_of(10_240), 0);
    bytes
}

fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o100_644);
    header.set_size(content.len() as u64);
    header.set_mtime(1_700_000_000);
    builder.append_data(&mut header, name, content).unwrap();
}

fn sample() -> Vec<u8> {
    archive(|tar| {
        let mut dir = tar::Header::new_gnu();
        dir.set_entry_type(tar::EntryType::Directory);
        dir.set_mode(0o755);
        dir.set_size(0);
        tar.append_data(&mut dir, "etc/", std::io::empty()).unwrap();
        add(tar, "etc/empty", b"");
        add(tar, "etc/small", b"small");
        tar.append_pax_extensions([("SCHILY.xattr.user.k", &b"v\0"[..]), ("atime", b"1.5")])
            .unwrap();
        let large: Vec<u8> = (0..20_000_u32).flat_map(u32::to_le_bytes).collect();
        add(tar, "etc/large", &large[..3 * CHUNK as usize + 7]);
        add(tar, "etc/zeros", &[0; 10_000]);
        add(tar, &format!("{}/x", "long".repeat(40)), b"x");
    })
}

fn written(archive: &[u8], threads: usize) -> (Written, Vec<u8>) {
    written_for(archive, threads, Hot::default())
}

fn written_for(archive: &[u8], threads: usize, hot: Hot) -> (Written, Vec<u8>) {
    let dir = std::env::temp_dir();
    let spool = spool(archive, &dir, "layer").unwrap();
    let style = Style {
        target: Target::ZstdChunked,
        chunk_sizes: Sizes {
            ordinary: CHUNK,
            hot: 2 * CHUNK,
        },
        level: 3,
        prioritized: Vec::new(),
        hot,
    };
    let pool = Pool::new(threads, style.packing());
    let written = write(spool, &style, &pool, &dir).unwrap();
    let mut blob = vec![0; written.size as usize];
    written.file.read_exact_at(&mut blob, 0).unwrap();
    (written, blob)
}

fn annotation<'a>(written: &'a Written, name: &str) -> Option<&'a str> {
    let mut found = written.annotations.iter().filter(|(key, _)| *key == name);
    found.next().map(|(_, value)| value.as_str())
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    zstd::Decoder::new(bytes)
        .unwrap()
        .read_to_end(&mut plain)
        .unwrap();
    plain
}

#[test]
fn the_blob_unpacks_to_the_archive_and_is_the_same_each_time() {
    let archive = sample();
    let (first, blob) = written(&archive, 1);
    assert!(unpacked(&blob) == archive);
    assert_eq!(first.diff_id, Digest::of(&archive));
    assert_eq!(first.digest, Digest::of(&blob));
    let (second, again) = written(&archive, 5);
    assert!(blob == again);
    assert_eq!(first.annotations, second.annotations);
}

/// The layer as our own reader sees it; each chunk must be what its frame alone unpacks to.
fn checked(done: &Written, blob: &[u8]) -> LayerIndex {
    let size = blob.len() as u64;
    let position = annotation(done, CONTAINERS.position).unwrap();
    let position = Position::parse(position, size).unwrap();
    assert_eq!(Position::of_footer(blob, size).unwrap(), Some(position));
    let packed = &blob[position.offset as usize..][..position.packed as usize];
    let checksum = annotation(done, CONTAINERS.checksum).unwrap();
    assert_eq!(checksum, Digest::of(packed).to_string());
    let json = unpack_toc(packed, position).unwrap();
    let index = index(&json, done.digest, done.toc_digest, size, position).unwrap();
    for id in 0..index.chunks() {
        let chunk = index.chunk(id);
        let unit = index.unit(chunk.unit);
        let bytes = unpacked(&blob[unit.offset as usize..unit.end() as usize]);
        assert_eq!(
            bytes.len() as u64,
            u64::from(chunk.len),
            "nothing but the chunk"
        );
        assert_eq!(Digest::of(&bytes).as_bytes(), &chunk.digest);
    }
    index
}

#[test]
fn our_own_reader_finds_every_chunk_by_annotation_and_footer() {
    let (done, blob) = written(&sample(), 2);
    let index = checked(&done, &blob);
    // The root, etc, its four files, the long directory and its file.
    assert_eq!(index.inodes(), 8);
    // small, four of large, x; the zeros are holes.
    assert_eq!(index.chunks(), 6);
}

#[test]
fn what_a_start_reads_is_apart_and_packed_harder_in_the_same_archive() {
    let text = |i: u32| format!("{} and {} ", i % 977, i * i % 499);
    let large: Vec<u8> = (0..8000).flat_map(|i| text(i).into_bytes()).collect();
    let archive = archive(|tar| add(tar, "large", &large));
    let hot = Hot::new(&[Recorded {
        path: "large".to_owned(),
        at: 0,
        ranges: vec![(5 * CHUNK + 1, 2 * CHUNK), (5 * CHUNK, 10)],
    }]);
    let (done, blob) = written_for(&archive, 1, hot.clone());
    assert!(unpacked(&blob) == archive && done.diff_id == Digest::of(&archive));
    assert!(
        written_for(&archive, 4, hot).1 == blob,
        "the same each time"
    );
    let index = checked(&done, &blob);
    let chunks: Vec<_> = (0..index.chunks()).map(|id| index.chunk(id)).collect();
    let ends: Vec<u64> = chunks[..9].iter().map(|chunk| chunk.file_offset).collect();
    // Three pages are hot, of which a chunk holds two.
    assert_eq!(ends, [0, 1, 2, 3, 4, 5, 7, 8, 9].map(|page| page * CHUNK));
    let frame = |chunk: &crate::index::Chunk| {
        let unit = index.unit(chunk.unit);
        blob[unit.offset as usize..unit.end() as usize].to_vec()
    };
    for (number, level) in [(4, 3), (5, 19), (6, 19), (7, 3)] {
        let plain = &large[ends[number] as usize..ends[number + 1] as usize];
        let expected = zstd::bulk::compress(plain, level).unwrap();
        assert!(
            frame(&chunks[number]) == expected,
            "level {level} of {number}"
        );
    }
}

#[test]
fn the_tar_split_and_the_files_make_up_the_archive() {
    let archive = sample();
    let (done, blob) = written(&archive, 2);
    let position = annotation(&done, TAR_SPLIT_POSITION).unwrap();
    let numbers: Vec<usize> = position.split(':').map(|n| n.parse().unwrap()).collect();
    let packed = &blob[numbers[0]..][..numbers[1]];
    let lines = unpacked(packed);
    assert_eq!(lines.len(), numbers[2]);
    let (mut rebuilt, mut names) = (Vec::new(), Vec::new());
    for line in lines.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()) {
        use base64::Engine as _;
        let line: serde_json::Value = serde_json::from_slice(line).unwrap();
        let payload = line["payload"].as_str().map(|text| {
            base64::engine::general_purpose::STANDARD
                .decode(text)
                .unwrap()
        });
        if line["type"] == 2 {
            rebuilt.extend(payload.unwrap());
            continue;
        }
        names.push(line["name"].as_str().unwrap().to_owned());
        let size = line["size"].as_u64().unwrap_or(0) as usize;
        let content = &archive[rebuilt.len()..][..size];
        let mut crc = Crc64::default();
        crc.update(content);
        assert_eq!(payload.is_some(), size > 0);
        if let Some(payload) = payload {
            assert_eq!(payload, crc.finish().to_be_bytes());
        }
        rebuilt.extend_from_slice(content);
    }
    assert!(rebuilt == archive);
    assert_eq!(names[0], "etc/", "names are those of the headers");
}

#[test]
fn an_archive_with_a_name_twice_has_no_tar_split_and_the_last_one_wins() {
    let archive = archive(|tar| {
        add(tar, "a", b"first");
        add(tar, "b", b"b");
        add(tar, "./a", b"second");
    });
    let (done, blob) = written(&archive, 2);
    assert_eq!(annotation(&done, TAR_SPLIT_POSITION), None);
    assert!(unpacked(&blob) == archive);
    let size = blob.len() as u64;
    let position = Position::of_footer(&blob, size).unwrap().unwrap();
    let packed = &blob[position.offset as usize..][..position.packed as usize];
    let json = unpack_toc(packed, position).unwrap();
    let index = index(&json, done.digest, done.toc_digest, size, position).unwrap();
    let sizes: Vec<_> = (1..index.inodes()).map(|id| index.inode(id).size).collect();
    assert_eq!(sizes, [1, 6]);
}
