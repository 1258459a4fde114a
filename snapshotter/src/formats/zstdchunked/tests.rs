//! Honest and hostile blobs of both dialects.

use super::sample::{Finished, Sample};
use super::*;
use crate::formats::estargz::toc::EntryType;

fn sample() -> Sample {
    let mut sample = Sample::default();
    sample.entry(EntryType::Dir, "bin");
    sample.file("bin/tool", &[&[7; 1000], &[0; 5000], &[9; 300]]);
    sample.file("bin/whole", &[b"one chunk"]);
    sample.file("bin/zeros", &[&[0; 4096]]);
    sample.entry(EntryType::Hardlink, "bin/tool2").link_name = "bin/tool".to_owned();
    sample.entry(EntryType::Reg, "bin/empty");
    sample
}

/// The position by annotation, which the footer must agree with.
fn position(finished: &Finished) -> Position {
    let size = finished.blob.len() as u64;
    let position = Position::parse(&finished.position, size).unwrap();
    assert_eq!(
        Position::of_footer(&finished.blob, size).unwrap(),
        Some(position)
    );
    position
}

fn open(finished: &Finished) -> Result<LayerIndex, Flaw> {
    let position = position(finished);
    let packed = &finished.blob[position.offset as usize..][..position.packed as usize];
    assert_eq!(Digest::of(packed), finished.checksum);
    let json = unpack_toc(packed, position)?;
    let layer = Digest::of(&finished.blob);
    let size = finished.blob.len() as u64;
    index(&json, layer, finished.checksum, size, position)
}

#[test]
fn both_dialects_tell_where_every_chunk_is() {
    for dialect in [CONTAINERS, STARGZ] {
        let finished = sample().finish(dialect);
        let index = open(&finished).unwrap();
        assert_eq!(index.inodes(), 6);
        assert_eq!(index.toc(), finished.checksum);
        assert_eq!(index.chunks(), 3, "zeros are holes");
        for id in 0..index.chunks() {
            let chunk = index.chunk(id);
            let unit = index.unit(chunk.unit);
            assert_eq!(unit.codec(), Codec::Zstd);
            let packed = &finished.blob[unit.offset as usize..unit.end() as usize];
            let mut bytes = Vec::new();
            zstd::stream::read::Decoder::with_buffer(packed)
                .unwrap()
                .take(u64::from(chunk.len))
                .read_to_end(&mut bytes)
                .unwrap();
            assert_eq!(Digest::of(&bytes).as_bytes(), &chunk.digest);
        }
        let tool = index.inode(2);
        assert_eq!((tool.size, tool.nlink), (6300, 2));
        assert_eq!(index.chunks_at(&tool, 1000, 5000).len(), 0);
    }
}

#[test]
fn an_end_offset_keeps_the_next_header_out_of_a_chunk() {
    let packed_len = |dialect| {
        let index = open(&sample().finish(dialect)).unwrap();
        index.unit(index.units() - 1).len
    };
    assert!(packed_len(CONTAINERS) < packed_len(STARGZ));
}

#[test]
fn positions_that_lead_astray_are_refused() {
    let huge = u64::MAX;
    for (text, word) in [
        ("", "not OFFSET"),
        ("1:2:3", "not OFFSET"),
        ("100:2:3:1:5", "not OFFSET"),
        ("+100:2:3:1", "not OFFSET"),
        ("100:-2:3:1", "not OFFSET"),
        ("100:2:3:1 ", "not OFFSET"),
        ("99999999999999999999:2:3:1", "not OFFSET"),
        ("100:2:3:2", "type 2"),
        ("7:2:3:1", "2 bytes at 7"),
        ("100:0:3:1", "0 bytes at 100"),
        ("100:901:3:1", "901 bytes at 100"),
        (&format!("{huge}:2:3:1"), "of a blob of 1000"),
        (&format!("100:2:{huge}:1"), "unpacked"),
    ] {
        let error = Position::parse(text, 1000).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
    let large = Position::parse("100:999999999:3:1", 1 << 40).unwrap_err();
    assert!(large.to_string().contains("packed"), "{large}");
    assert_eq!(Position::of_footer(&[0; 100], 100).unwrap(), None);
    assert_eq!(Position::of_footer(b"GNUlInUx", 8).unwrap(), None);
    let mut footer = vec![0xff; 56];
    footer.extend(b"GNUlInUx");
    assert!(Position::of_footer(&footer, 1000).is_err());
}

#[test]
fn a_toc_that_unpacks_to_another_length_is_refused() {
    let packed = sample::frame(&vec![b' '; 100_000]);
    for unpacked in [0, 99_999, 100_001] {
        let position = Position {
            offset: 8,
            packed: packed.len() as u64,
            unpacked,
        };
        assert!(unpack_toc(&packed, position).is_err(), "{unpacked}");
        assert!(unpack_toc(b"no frame", position).is_err());
    }
}

#[test]
fn forged_chunks_are_refused_by_name() {
    type Forge = fn(&mut Sample);
    let cases: [(&str, Forge); 6] = [
        ("of type \"ones\"", |s| {
            s.toc.entries[1].chunk_type = "ones".to_owned();
        }),
        ("covered up to 7000", |s| s.toc.entries[2].chunk_size = 6000),
        ("covered", |s| s.toc.entries[2].chunk_size = 4000),
        ("behind the end", |s| {
            s.toc.entries[2].chunk_offset = 1 << 63;
        }),
        ("valid digest", |s| {
            s.toc.entries[3].chunk_digest = "sha256:12".to_owned();
        }),
        ("blob of", |s| s.toc.entries[3].offset = 1 << 40),
    ];
    for (word, forge) in cases {
        let mut sample = sample();
        forge(&mut sample);
        let error = open(&sample.finish(CONTAINERS)).unwrap_err().to_string();
        assert!(
            error.contains(word) && error.contains("bin/tool"),
            "{word}: {error}"
        );
    }
}
