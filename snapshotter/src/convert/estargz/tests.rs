use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::FileExt;

use flate2::read::{GzDecoder, MultiGzDecoder};

use super::super::guided::Recorded;
use super::super::hot::{Hot, Sizes};
use super::super::member::Packing;
use super::super::spool::spool;
use super::super::tar::Reader;
use super::super::target::Target;
use super::*;

/// A pseudo-random tree, the same for the same seed.
fn layer(seed: u64, files: usize) -> Vec<u8> {
    let mut state = seed;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    let mut tar = tar::Builder::new(Vec::new());
    for at in 0..files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(random(70_000));
        header.set_mtime(random(2_000_000_000));
        let dir = format!("dir{}", random(5));
        let name = format!("{dir}/{}{at}", "n".repeat(random(200) as usize));
        match random(6) {
            0 => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                tar.append_data(&mut header, format!("{name}/"), std::io::empty())
                    .unwrap();
            }
            1 => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, name, format!("../{at}"))
                    .unwrap();
            }
            _ => {
                let size = [0, 1, 511, 512, 513, 5000, 20_000][random(7) as usize];
                let content: Vec<u8> = (0..size).map(|_| random(7) as u8).collect();
                if random(2) == 0 {
                    tar.append_pax_extensions([("SCHILY.xattr.user.k", &content[..size.min(9)])])
                        .unwrap();
                }
                header.set_size(size as u64);
                tar.append_data(&mut header, name, &content[..]).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

fn written(archive: &[u8], chunk_size: u64, prioritized: &[&str]) -> (Written, Vec<u8>) {
    let prioritized = prioritized.iter().map(ToString::to_string).collect();
    let style = Style {
        target: Target::Estargz,
        chunk_sizes: Sizes::new(Some(chunk_size), 0),
        level: 6,
        prioritized,
        hot: Hot::default(),
    };
    written_so(archive, &style)
}

fn written_so(archive: &[u8], style: &Style) -> (Written, Vec<u8>) {
    let dir = std::env::temp_dir();
    let spool = spool(archive, &dir, "layer").unwrap();
    let written = write(spool, style, &Pool::new(3, Packing::Gzip(6)), &dir).unwrap();
    let mut blob = vec![0; written.size as usize];
    written.file.read_exact_at(&mut blob, 0).unwrap();
    (written, blob)
}

fn unzip(blob: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    MultiGzDecoder::new(blob).read_to_end(&mut plain).unwrap();
    plain
}

fn toc(blob: &[u8]) -> (Toc, Vec<u8>) {
    let footer = footer::parse(blob, blob.len() as u64).unwrap().unwrap();
    let mut reader = Reader::new(GzDecoder::new(&blob[footer.toc_offset as usize..]));
    let entry = reader.next_entry().unwrap().unwrap();
    assert_eq!(entry.name, TOC_NAME);
    let mut json = Vec::new();
    reader
        .into_inner()
        .take(entry.size)
        .read_to_end(&mut json)
        .unwrap();
    (serde_json::from_slice(&json).unwrap(), json)
}

/// Names with their content, as an unpacker finds them.
fn contents(archive: &[u8]) -> BTreeMap<String, (u64, Vec<u8>, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let uid = entry.header().uid().unwrap();
        let link = entry
            .link_name_bytes()
            .map(std::borrow::Cow::into_owned)
            .unwrap_or_default();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (name, (uid, link, content))
    });
    entries.collect()
}

#[test]
fn the_blob_is_the_same_archive_with_landmark_and_toc() {
    for seed in 0..8 {
        let archive = layer(seed, 150);
        let (written, blob) = written(&archive, 4096, &[]);
        let plain = unzip(&blob);
        assert_eq!(Digest::of(&blob), written.digest);
        assert_eq!(Digest::of(&plain), written.diff_id);
        let length = plain.len().to_string();
        assert_eq!(
            written.annotations[1],
            (UNCOMPRESSED_SIZE_ANNOTATION, length)
        );
        let mut found = contents(&plain);
        assert!(found.remove(TOC_NAME).is_some());
        assert_eq!(
            found.remove(NO_PREFETCH_LANDMARK).unwrap().2,
            LANDMARK_CONTENT
        );
        assert_eq!(found, contents(&archive));
    }
}

#[test]
fn every_chunk_is_where_the_toc_says_with_its_digest() {
    let archive = layer(42, 200);
    let (done, blob) = written(&archive, 4096, &[]);
    check_chunks(&archive, &done, &blob);
}

#[test]
fn what_a_start_reads_has_chunks_of_its_own() {
    let archive = layer(42, 200);
    let large = contents(&archive);
    let large = large
        .iter()
        .filter(|(_, (_, _, content))| content.len() == 20_000);
    let recorded = large.map(|(name, _)| Recorded {
        path: name.clone(),
        at: 0,
        ranges: vec![(4000, 5000)],
    });
    let recorded: Vec<_> = recorded.collect();
    let hot = Hot::new(&recorded);
    let style = Style {
        target: Target::Estargz,
        chunk_sizes: Sizes::new(None, 16_384),
        level: 1,
        prioritized: Vec::new(),
        hot,
    };
    let (done, blob) = written_so(&archive, &style);
    check_chunks(&archive, &done, &blob);
    assert_eq!(Digest::of(&unzip(&blob)), done.diff_id);
    let (toc, _) = toc(&blob);
    let first = &recorded[0].path;
    let chunks = toc.entries.iter().filter(|entry| entry.name == *first);
    let chunks: Vec<_> = chunks
        .map(|entry| (entry.chunk_offset, entry.chunk_size))
        .collect();
    assert_eq!(chunks, [(0, 12_288), (12_288, 0)], "three pages, the rest");
}

fn check_chunks(archive: &[u8], written: &Written, blob: &[u8]) {
    let (toc, json) = toc(blob);
    assert_eq!(Digest::of(&json), written.toc_digest);
    let expected = contents(archive);
    let mut size = 0;
    let mut files = 0;
    for entry in &toc.entries {
        if entry.kind == EntryType::Reg {
            size = entry.size;
        }
        if entry.offset == 0 || entry.name == NO_PREFETCH_LANDMARK {
            continue;
        }
        let length = if entry.chunk_size == 0 {
            size - entry.chunk_offset
        } else {
            entry.chunk_size
        };
        let mut chunk = vec![0; length as usize];
        GzDecoder::new(&blob[entry.offset as usize..])
            .read_exact(&mut chunk)
            .unwrap();
        assert_eq!(Digest::of(&chunk).to_string(), entry.chunk_digest);
        let content = &expected[&entry.name].2;
        assert_eq!(content[entry.chunk_offset as usize..][..chunk.len()], chunk);
        files += 1;
    }
    assert!(files > 100, "{files}");
    for entry in toc
        .entries
        .iter()
        .filter(|entry| entry.kind == EntryType::Reg)
    {
        if let Some((_, _, content)) = expected.get(&entry.name) {
            assert_eq!(
                entry.digest,
                Digest::of(content).to_string(),
                "{}",
                entry.name
            );
        }
    }
}

#[test]
fn the_toc_lists_the_archive_in_its_order() {
    let archive = layer(7, 100);
    let (_, blob) = written(&archive, 4096, &[]);
    let (toc, _) = toc(&blob);
    let listed: Vec<_> = toc
        .entries
        .iter()
        .filter(|entry| entry.kind != EntryType::Chunk)
        .map(|entry| entry.name.trim_end_matches('/').to_owned())
        .collect();
    let mut reader = Reader::new(&archive[..]);
    let mut expected = vec![NO_PREFETCH_LANDMARK.to_owned()];
    while let Some(entry) = reader.next_entry().unwrap() {
        expected.push(entry.name.to_string());
    }
    assert_eq!(listed, expected);
}

#[test]
fn prioritized_files_lie_before_the_landmark() {
    let archive = layer(3, 60);
    let names: Vec<_> = contents(&archive)
        .into_iter()
        .filter(|(_, (_, _, content))| content.len() > 1)
        .map(|(name, _)| name)
        .take(3)
        .collect();
    let wanted: Vec<_> = names.iter().rev().map(String::as_str).collect();
    let (_, blob) = written(&archive, 4096, &wanted);
    let (toc, _) = toc(&blob);
    let place = |name: &str| {
        toc.entries
            .iter()
            .position(|entry| entry.name == name)
            .unwrap()
    };
    let landmark = place(PREFETCH_LANDMARK);
    let places: Vec<_> = wanted.iter().map(|name| place(name)).collect();
    assert!(
        places.is_sorted() && places[2] < landmark,
        "{places:?} {landmark}"
    );
    let mut found = contents(&unzip(&blob));
    found.remove(TOC_NAME);
    found.remove(PREFETCH_LANDMARK);
    assert_eq!(found, contents(&archive));
}

#[test]
fn the_same_input_gives_the_same_blob() {
    let archive = layer(11, 120);
    let (first, _) = written(&archive, 4096, &[]);
    let (second, blob) = written(&archive, 4096, &[]);
    assert_eq!(first.digest, second.digest);
    // And so does a conversion of the result, which drops what the first one added.
    let (again, _) = written(&blob, 4096, &[]);
    assert_eq!(first.digest, again.digest);
}

#[test]
fn an_empty_layer_has_a_toc_too() {
    let empty = tar::Builder::new(Vec::new()).into_inner().unwrap();
    let (_, blob) = written(&empty, 4096, &[]);
    let (toc, _) = toc(&blob);
    assert_eq!(toc.entries.len(), 1);
    assert_eq!(toc.entries[0].name, NO_PREFETCH_LANDMARK);
    assert_eq!(contents(&unzip(&blob)).len(), 2);
}
