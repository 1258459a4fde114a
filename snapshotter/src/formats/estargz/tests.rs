//! The parser over honest, broken and hostile TOCs.

use super::sample::{Finished, Sample, gzip, noise};
use super::*;
use crate::index::{Prefetch, Tree};

fn parse(sample: Sample) -> Result<LayerIndex, Flaw> {
    let finished = sample.finish();
    parse_finished(&finished)
}

fn parse_finished(finished: &Finished) -> Result<LayerIndex, Flaw> {
    let size = finished.blob.len() as u64;
    let footer = footer::parse(&finished.blob, size)?.expect("the sample has a footer");
    assert_eq!(footer.toc_offset, finished.toc_offset);
    let packed = &finished.blob[footer.toc_offset as usize..(size - footer.len) as usize];
    let json = unpack_toc(packed)?;
    assert_eq!(Digest::of(&json), finished.toc_digest);
    let layer = Digest::of(&finished.blob);
    index(&json, layer, finished.toc_digest, size, footer.toc_offset)
}

fn names(index: LayerIndex) -> Vec<String> {
    let tree = Tree::merge(vec![std::sync::Arc::new(index)]).unwrap();
    let root = tree.node(0).unwrap();
    let name = |child| String::from_utf8_lossy(tree.name(child)).into_owned();
    tree.children(root).map(name).collect()
}

#[test]
fn chunks_are_where_the_toc_says() {
    let mut sample = Sample::default();
    sample.file("big", &noise(3, 2500), 1000);
    sample.packed(&[("a", b"one"), ("b", b"second")]);
    let second_member = sample.blob.len() as u64;
    sample.file("last", b"end", 10);
    let index = parse(sample).unwrap();
    assert_eq!((index.units(), index.chunks()), (5, 6));
    let chunk = |id| index.chunk(id);
    assert_eq!((chunk(1).file_offset, chunk(1).len), (1000, 1000));
    assert_eq!((chunk(2).file_offset, chunk(2).len), (2000, 500));
    assert_eq!(chunk(3).unit, chunk(4).unit, "two files in one member");
    assert_eq!((chunk(4).inner, chunk(4).len), (16 + 3, 6));
    assert_eq!(index.unit(4).offset, second_member);
    let unit = index.unit(3);
    assert_eq!(index.unit_chunks(&unit).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(unit.end(), second_member);
    assert_eq!(index.data_size(), 2500 + 3 + 6 + 3);
}

#[test]
fn landmarks_are_hidden_and_reported() {
    let mut sample = Sample::default();
    sample.file("first", b"1", 1);
    sample.file("second", b"2", 1);
    sample.landmark();
    sample.file("third", b"3", 1);
    let index = parse(sample).unwrap();
    assert_eq!(index.prefetch(), Prefetch::Units(2));
    assert_eq!(names(index), ["first", "second", "third"]);

    let mut sample = Sample::default();
    sample.file(NO_PREFETCH_LANDMARK, &[0xf], 1);
    sample.file("a", b"1", 1);
    let index = parse(sample).unwrap();
    assert_eq!(index.prefetch(), Prefetch::Units(0));
    assert_eq!(names(index), ["a"]);

    let mut sample = Sample::default();
    sample.file("a", b"1", 1);
    assert_eq!(parse(sample).unwrap().prefetch(), Prefetch::Unknown);
}

#[test]
fn an_index_survives_its_image() {
    let mut sample = Sample::default();
    sample.dir("etc/");
    sample.file("etc/passwd", b"root", 10);
    sample.xattr("user.note", b"value");
    let index = parse(sample).unwrap();
    let image = index.as_bytes().to_vec();
    let again = LayerIndex::from_image(Box::new(image.clone())).unwrap();
    assert_eq!(again.as_bytes(), index.as_bytes());
    assert_eq!((again.layer(), again.toc()), (index.layer(), index.toc()));
    for broken in [
        image[..image.len() - 1].to_vec(),
        image[..40].to_vec(),
        [&image[..image.len() - 1], &[image[image.len() - 1] ^ 1]].concat(),
    ] {
        assert!(LayerIndex::from_image(Box::new(broken)).is_err());
    }
}

/// Changes one honest TOC in a way that must be refused, and a word that the refusal must hold.
type Forgery = (&'static str, fn(&mut Sample), &'static str);

const FORGERIES: &[Forgery] = &[
    (
        "parent",
        |s| s.toc.entries[1].name = "etc/../../x".into(),
        "etc/../../x",
    ),
    (
        "absolute",
        |s| s.toc.entries[1].name = "/etc/passwd".into(),
        "/etc/passwd",
    ),
    (
        "empty",
        |s| s.toc.entries[1].name = String::new(),
        "entry \"\"",
    ),
    ("NUL", |s| s.toc.entries[1].name = "a\0b".into(), "NUL"),
    (
        "duplicate",
        |s| s.file("etc/passwd", b"x", 1),
        "\"etc/passwd\": the name is there",
    ),
    (
        "file as directory",
        |s| s.file("etc/passwd/x", b"x", 1),
        "not a directory",
    ),
    (
        "link to nothing",
        |s| {
            s.link(EntryType::Hardlink, "l", "nowhere");
        },
        "nowhere",
    ),
    (
        "link to a directory",
        |s| {
            s.link(EntryType::Hardlink, "l", "etc");
        },
        "a directory",
    ),
    (
        "link out",
        |s| {
            s.link(EntryType::Hardlink, "l", "../x");
        },
        "no valid target",
    ),
    (
        "link cycle",
        |s| {
            s.link(EntryType::Hardlink, "a", "b");
            s.link(EntryType::Hardlink, "b", "a");
        },
        "cycle",
    ),
    (
        "link to itself",
        |s| {
            s.link(EntryType::Hardlink, "a", "a");
        },
        "cycle",
    ),
    (
        "lost name",
        |s| {
            s.link(EntryType::Symlink, "caf\u{fffd}", "x");
        },
        "U+FFFD",
    ),
    (
        "lost target",
        |s| {
            s.link(EntryType::Symlink, "s", "caf\u{fffd}");
        },
        "U+FFFD",
    ),
    (
        "symlink to nothing",
        |s| {
            s.link(EntryType::Symlink, "s", "");
        },
        "no valid target",
    ),
    ("huge file", |s| s.toc.entries[1].size = 1 << 63, "16 TiB"),
    (
        "huge chunk",
        |s| s.toc.entries[1].chunk_size = 1 << 63,
        "9223372036854775808",
    ),
    (
        "huge file in one chunk",
        |s| {
            s.toc.entries[1].size = u64::MAX;
            s.toc.entries[1].chunk_size = 0;
        },
        "16 TiB",
    ),
    (
        "outside the blob",
        |s| s.toc.entries[1].offset = 1 << 40,
        "of a blob of",
    ),
    (
        "deep inside",
        |s| s.toc.entries[1].inner_offset = 1 << 40,
        "into what is unpacked",
    ),
    (
        "gap",
        |s| s.toc.entries[2].chunk_offset += 1,
        "covered up to",
    ),
    (
        "overlap",
        |s| s.toc.entries[2].chunk_offset -= 1,
        "covered up to",
    ),
    (
        "missing chunk",
        |s| drop(s.toc.entries.remove(2)),
        "in the file",
    ),
    (
        "behind the end",
        |s| s.toc.entries[2].chunk_offset = 99,
        "behind the end",
    ),
    (
        "foreign chunk",
        |s| s.toc.entries[2].name = "other".into(),
        "follow its file",
    ),
    (
        "no digest",
        |s| {
            s.toc.entries[1].chunk_digest = String::new();
        },
        "without a valid digest",
    ),
    (
        "bad digest",
        |s| s.toc.entries[1].chunk_digest = "md5:0".into(),
        "valid digest",
    ),
    (
        "bad time",
        |s| s.toc.entries[1].mod_time = "yesterday".into(),
        "yesterday",
    ),
    ("bad owner", |s| s.toc.entries[1].uid = 1 << 32, "bad owner"),
    (
        "bad device",
        |s| s.entry(EntryType::Char, "d").dev_major = 1 << 32,
        "device number",
    ),
    (
        "whiteout of nothing",
        |s| s.file("etc/.wh.", b"", 1),
        "no valid name",
    ),
    (
        "whiteout of ..",
        |s| s.file("etc/.wh...", b"", 1),
        "no valid name",
    ),
    (
        "root is a file",
        |s| s.file("./", b"", 1),
        "root is not a directory",
    ),
    (
        "long name",
        |s| s.file(&"n".repeat(256), b"", 1),
        "longer than 255",
    ),
    (
        "long xattr",
        |s| {
            s.dir("x/");
            s.xattr("user.x", &vec![0; 70_000]);
        },
        "attribute",
    ),
];

#[test]
fn forged_tocs_are_refused_by_the_entrys_name() {
    for (what, forge, word) in FORGERIES {
        let mut sample = Sample::default();
        sample.dir("etc/");
        sample.file("etc/passwd", b"root:x:0:0", 5);
        forge(&mut sample);
        match parse(sample) {
            Ok(_) => panic!("{what}: accepted"),
            Err(flaw) => {
                let text = flaw.to_string();
                assert!(
                    text.contains(word) && text.contains("entry \""),
                    "{what}: {text}"
                );
            }
        }
    }
}

#[test]
fn directories_may_come_twice_and_late() {
    let mut sample = Sample::default();
    sample.file("usr/bin/x", b"x", 1);
    sample.dir("usr/").mode = 0o700;
    sample.dir("usr/").mode = 0o711;
    sample.dir("./").mode = 0o750;
    let index = parse(sample).unwrap();
    let tree = Tree::merge(vec![std::sync::Arc::new(index)]).unwrap();
    let root = tree.node(0).unwrap();
    assert_eq!(tree.inode(root).mode, 0o040_750);
    let usr = tree.node(tree.look_up(root, b"usr").unwrap()).unwrap();
    assert_eq!(tree.inode(usr).mode, 0o040_711);
    let bin = tree.node(tree.look_up(usr, b"bin").unwrap()).unwrap();
    assert_eq!(tree.inode(bin).mode, 0o040_755, "nobody described it");
}

#[test]
fn a_truncated_or_strange_toc_member_is_refused() {
    let mut sample = Sample::default();
    sample.file("a", b"1", 1);
    let finished = sample.finish();
    let end = finished.blob.len() - footer::FOOTER_LEN;
    let packed = &finished.blob[finished.toc_offset as usize..end];
    assert!(unpack_toc(packed).is_ok());
    for cut in [0, 1, 20, packed.len() / 2, packed.len() * 3 / 4] {
        assert!(unpack_toc(&packed[..cut]).is_err(), "cut to {cut}");
    }
    assert!(unpack_toc(&gzip(b"no archive")).is_err());
    let mut header = tar::Header::new_gnu();
    header.set_path("other.json").unwrap();
    header.set_size(0);
    header.set_cksum();
    let mut archive = tar::Builder::new(Vec::new());
    archive.append(&header, &b""[..]).unwrap();
    let error = unpack_toc(&gzip(&archive.into_inner().unwrap())).unwrap_err();
    assert!(error.to_string().contains(TOC_NAME), "{error}");
}

#[test]
fn random_damage_never_panics_and_never_reaches_outside() {
    let mut sample = Sample::default();
    sample.dir("d/");
    sample.file("d/f", &noise(5, 3000), 700);
    sample.link(EntryType::Hardlink, "d/h", "d/f");
    sample.link(EntryType::Symlink, "d/s", "f");
    sample.packed(&[("p", b"12"), ("q", b"345")]);
    sample.file(".wh.gone", b"", 1);
    let json = sample.json();
    let size = sample.blob.len() as u64;
    let (layer, toc) = (Digest::of(b"layer"), Digest::of(b"toc"));
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..20_000 {
        let random = noise(seed, 12);
        let mut damaged = json.clone();
        for pair in random.chunks(3).take(1 + usize::from(random[11] % 4)) {
            let at = usize::from(u16::from_le_bytes([pair[0], pair[1]])) % damaged.len();
            // Mostly digits and structure: plain noise would only ever test the JSON parser.
            damaged[at] = b"0123456789-\"{}[],:./"[usize::from(pair[2]) % 20];
        }
        match index(&damaged, layer, toc, size, size) {
            Err(_) => refused += 1,
            Ok(index) => {
                accepted += 1;
                check_bounds(&index, size);
            }
        }
    }
    assert!(
        accepted > 100 && refused > 100,
        "{accepted} accepted, {refused} refused"
    );
}

/// Every reference of an accepted index lies inside what it refers to.
fn check_bounds(index: &LayerIndex, size: u64) {
    for id in 0..index.chunks() {
        let chunk = index.chunk(id);
        let (segment, position) = index.position(&chunk);
        assert!(position + u64::from(chunk.len) <= index.segment_len(segment));
        assert!(index.unit(chunk.unit).end() <= size);
        assert_eq!(
            index.chunks_at(&index.inode(chunk.inode), chunk.file_offset, 1),
            id..id + 1
        );
    }
}
