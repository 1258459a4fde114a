//! Bootstraps as `nydus-image` writes them, and bootstraps as no tool writes them.
//!
//! The fixtures are one image of two layers in three spellings, made by nydus-image 2.2.0 from
//! archives of our own; `tests/fixtures/nydus/README.md` says how. `tree.txt` lists what an
//! unpacker makes of the same archives.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::fill::unpack::unpack;
use crate::index::{Codec, Inode, Kind, Node, Prefetch, Tree};

struct Image {
    layer: Digest,
    bootstrap: Vec<u8>,
    blobs: BTreeMap<Digest, Vec<u8>>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nydus")
}

impl Image {
    fn load(name: &str) -> Self {
        let directory = fixtures().join(name);
        let packed = std::fs::read(directory.join("bootstrap.tar.gz")).unwrap();
        let mut blobs = BTreeMap::new();
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("bootstrap.tar.gz") {
                continue;
            }
            let file = std::fs::File::open(&path).unwrap();
            let mut blob = Vec::new();
            flate2::read::GzDecoder::new(file)
                .read_to_end(&mut blob)
                .unwrap();
            let name = format!("sha256:{}", path.file_stem().unwrap().to_str().unwrap());
            assert_eq!(Digest::of(&blob).to_string(), name);
            blobs.insert(Digest::of(&blob), blob);
        }
        Self {
            layer: Digest::of(&packed),
            bootstrap: unpack_bootstrap(&packed).unwrap(),
            blobs,
        }
    }

    fn index(&self) -> Result<LayerIndex, Flaw> {
        let bootstrap = Bootstrap::read(&self.bootstrap)?;
        let size = |blob: &BlobInfo| self.blobs[&blob.digest].len() as u64;
        let sizes: Vec<u64> = bootstrap.blobs().iter().map(size).collect();
        bootstrap.index(self.layer, &sizes, &[])
    }

    /// The content of a file, every chunk of it verified.
    fn content(&self, index: &LayerIndex, file: &Inode) -> Vec<u8> {
        let blobs: Vec<_> = index.blobs().map(|(digest, _)| digest).collect();
        let mut content = Vec::new();
        for id in index.file_chunks(file) {
            let chunk = index.chunk(id);
            let unit = index.unit(chunk.unit);
            let blob = &self.blobs[&blobs[usize::from(unit.blob)]];
            let packed = &blob[unit.offset as usize..unit.end() as usize];
            let needed = chunk.inner + chunk.len;
            let unpacked = unpack(unit.codec(), packed, needed as usize).unwrap();
            let bytes = &unpacked[chunk.inner as usize..];
            index
                .algorithm()
                .verify(bytes, &chunk.digest, "a chunk")
                .unwrap();
            content.extend_from_slice(bytes);
        }
        content
    }

    /// The tree in the words of `tree.txt`.
    fn listing(&self, index: LayerIndex) -> String {
        let tree = Tree::merge(vec![Arc::new(index)]).unwrap();
        let mut lines = Vec::new();
        self.list(&tree, tree.node(0).unwrap(), "", &mut lines);
        lines.sort();
        lines.concat()
    }

    fn list(&self, tree: &Tree, directory: Node, above: &str, lines: &mut Vec<String>) {
        for child in tree.children(directory) {
            let node = tree.node(child.node).unwrap();
            let path = format!("{above}{}", String::from_utf8_lossy(tree.name(child)));
            lines.push(self.line(tree, node, &path));
            self.list(tree, node, &format!("{path}/"), lines);
        }
    }

    fn line(&self, tree: &Tree, node: Node, path: &str) -> String {
        let (index, inode) = (tree.layer(node), tree.inode(node));
        let (major, minor) = inode.rdev();
        let (kind, what) = match inode.kind() {
            Kind::Directory => ('d', String::new()),
            Kind::File => {
                let content = self.content(index, &inode);
                assert_eq!(content.len() as u64, inode.size, "{path}");
                (
                    'f',
                    format!("{} {}", inode.size, Digest::of(&content).hex()),
                )
            }
            Kind::Symlink => {
                let target = index.link_target(&inode);
                ('l', String::from_utf8_lossy(target).into_owned())
            }
            Kind::CharDevice => ('c', format!("{major}:{minor}")),
            Kind::BlockDevice => ('b', format!("{major}:{minor}")),
            Kind::Fifo => ('p', String::new()),
        };
        let links = if kind == 'd' { 1 } else { node.nlink };
        let mut xattrs: Vec<String> = index
            .xattrs(&inode)
            .map(|(name, value)| {
                format!(
                    "{}={}",
                    String::from_utf8_lossy(name),
                    String::from_utf8_lossy(value)
                )
            })
            .collect();
        xattrs.sort();
        let mut line = format!(
            "{path} {kind} {:o} {}:{} {links} {what} {}",
            inode.mode & 0o7777,
            inode.uid,
            inode.gid,
            xattrs.join(" ")
        );
        line.truncate(line.trim_end().len());
        writeln!(line).unwrap();
        line
    }
}

const SPELLINGS: [&str; 3] = ["v6-zstd-blake3", "v6-lz4-sha256-toc", "v5-zstd-blake3"];

#[test]
fn an_image_of_nydus_image_is_the_tree_that_an_unpacker_makes() {
    let expected = std::fs::read_to_string(fixtures().join("tree.txt")).unwrap();
    for name in SPELLINGS {
        let image = Image::load(name);
        let index = image.index().unwrap();
        assert_eq!(index.blobs().count(), 2, "{name}");
        assert_eq!(index.layer(), image.layer);
        assert_eq!(index.prefetch(), Prefetch::Unknown);
        let found = image.listing(index);
        for (found, expected) in found.lines().zip(expected.lines()) {
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(found, expected, "{name}");
    }
}

/// Reads the fixture `name` with `change` made to its bootstrap.
fn changed(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<LayerIndex, Flaw> {
    let mut image = Image::load(name);
    change(&mut image.bootstrap);
    image.index()
}

/// Offset of the root directory's inode in a v6 bootstrap.
fn root_of(bootstrap: &[u8]) -> usize {
    let word = |at: usize| u32::from_le_bytes(bootstrap[at..at + 4].try_into().unwrap());
    let root = u32::from(u16::from_le_bytes(
        bootstrap[1038..1040].try_into().unwrap(),
    ));
    (word(1064) * 4096 + root * 32) as usize
}

/// Offset of what the bytes `needle` begin at.
fn find(bootstrap: &[u8], needle: &[u8]) -> usize {
    let mut windows = bootstrap.windows(needle.len());
    windows.position(|window| window == needle).unwrap()
}

#[test]
fn hostile_bootstraps_are_refused_by_name() {
    let v6 = "v6-zstd-blake3";
    let put = |at: usize, bytes: &'static [u8]| {
        move |boot: &mut Vec<u8>| boot[at..at + bytes.len()].copy_from_slice(bytes)
    };
    let cases: Vec<(&str, Result<LayerIndex, Flaw>)> = vec![
        ("neither", changed(v6, put(1024, &[0]))),
        ("features", changed(v6, put(1104, &[0xff]))),
        ("blocks of", changed(v6, put(1036, &[40]))),
        ("digested", changed(v6, put(1152, &[0; 8]))),
        ("chunks of 3", changed(v6, put(1152 + 20, &[3, 0, 0, 0]))),
        ("blob table", changed(v6, put(1152 + 8, &[0xff; 8]))),
        ("chunk table", changed(v6, put(1152 + 32, &[0xff; 8]))),
        ("outside", changed(v6, put(1038, &[0xff; 2]))),
        (
            "is not valid",
            changed(v6, |boot| {
                let at = find(boot, b"newlink");
                boot[at + 3] = b'/';
            }),
        ),
        (
            "more than the bootstrap",
            changed(v6, |boot| {
                let root = root_of(boot);
                // Extended, with a size of 2^63.
                boot[root] |= 1;
                boot[root + 8..root + 16].copy_from_slice(&(1_u64 << 63).to_le_bytes());
            }),
        ),
        ("neither", changed(v6, Vec::clear)),
        (
            "inode table",
            changed("v5-zstd-blake3", put(56, &[0xff; 4])),
        ),
        (
            "blob's name",
            changed("v5-zstd-blake3", |boot| {
                let at = u64::from_le_bytes(boot[48..56].try_into().unwrap()) as usize;
                boot[at + 8] = b'/';
            }),
        ),
    ];
    for (word, outcome) in cases {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(word), "{word:?}: {error}");
    }
}

#[test]
fn a_directory_within_itself_is_refused() {
    let error = changed("v6-zstd-blake3", |boot| {
        // The entry of `bin` in the root directory leads to the root.
        let root = u16::from_le_bytes(boot[1038..1040].try_into().unwrap());
        let at = find(boot, b"...binetcmany");
        let first = (0..at).rev().find(|start| {
            let names = u16::from_le_bytes(boot[start + 8..start + 10].try_into().unwrap());
            start + usize::from(names) == at
        });
        let first = first.unwrap();
        // ., .., bin: the third entry.
        let bin = first + 2 * 12;
        boot[bin..bin + 8].copy_from_slice(&u64::from(root).to_le_bytes());
    })
    .unwrap_err()
    .to_string();
    assert!(error.contains("another name already"), "{error}");
}

#[test]
fn no_change_of_a_bootstrap_does_more_than_fail() {
    for name in SPELLINGS {
        let image = Image::load(name);
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let mut broken = image;
        for _ in 0..600 {
            let at = (random() as usize) % (broken.bootstrap.len() - 8);
            let word: [u8; 8] = broken.bootstrap[at..at + 8].try_into().unwrap();
            let new = [random(), u64::MAX, 0, 1 << 63][(random() % 4) as usize];
            broken.bootstrap[at..at + 8].copy_from_slice(&new.to_le_bytes());
            // Whatever comes out is whole: all that can go wrong is told as a flaw.
            if let Ok(index) = broken.index() {
                let _ = Tree::merge(vec![Arc::new(index)]);
            }
            broken.bootstrap[at..at + 8].copy_from_slice(&word);
        }
        let whole = broken.bootstrap.len();
        // Behind the last table there is padding.
        for len in (0..whole - 4096).step_by(whole / 60) {
            let cut = &broken.bootstrap[..len];
            let failed = Bootstrap::read(cut).and_then(|bootstrap| {
                let sizes = vec![1 << 30; bootstrap.blobs().len()];
                bootstrap.index(broken.layer, &sizes, &[])
            });
            assert!(failed.is_err(), "{name} cut at {len}");
        }
    }
}

#[test]
fn a_layer_without_a_bootstrap_is_refused() {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    archive
        .append_data(&mut header, "image/image.txt", &b"abc"[..])
        .unwrap();
    let archive = archive.into_inner().unwrap();
    for (layer, word) in [
        (&archive[..], "no image/image.boot"),
        (&b"\x1f\x8bxx"[..], "layer"),
    ] {
        let error = unpack_bootstrap(layer).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

/// A blob of `chunks` chunks whose contexts are `len` bytes, not packed.
fn blob(features: u32, chunks: u32, len: u64) -> BlobInfo {
    BlobInfo {
        digest: Digest::of(b"blob"),
        codec: Codec::Zstd,
        algorithm: Algorithm::Sha256,
        features,
        chunks,
        meta: Some((Digest::of(b"meta"), 9000)),
        context: super::blobs::ContextPlace {
            codec: Codec::Plain,
            offset: 512,
            packed_len: len,
            len,
        },
    }
}

/// Little-endian words of 8 bytes.
fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn chunks_that_are_packed_together_are_found_by_their_batch() {
    const BATCH: u64 = 4 << 56;
    // Flags, offset in the blob, batch and offset in it.
    let entries = [
        [BATCH, 4096, 0],
        [BATCH, 4096, 700],
        [BATCH, 5000, 1 << 32],
        [0, 9000, 0],
    ];
    let batch = |len: u64, unpacked: u64| words(&[unpacked << 32 | len, 0, 0, 0, 0]);
    let table = [words(&entries.concat()), batch(300, 1400), batch(80, 80)].concat();
    let info = blob(0x84, 4, table.len() as u64);
    let range = info.contexts().unwrap().unwrap();
    assert_eq!((range.blob, range.size), (info.digest, None));
    assert_eq!((range.offset, range.len), (512, table.len() as u64));
    let contexts = info.read_contexts(&table).unwrap();
    let place = |index| {
        let place = contexts.place(index, info.codec);
        place.map(|place| (place.offset, place.len, place.codec, place.inner))
    };
    assert_eq!(place(0), Ok((4096, 300, Codec::Zstd, 0)));
    assert_eq!(place(1), Ok((4096, 300, Codec::Zstd, 700)));
    assert_eq!(place(2), Ok((5000, 80, Codec::Plain, 0)), "no smaller");
    assert!(place(3).unwrap_err().contains("in no batch"));
    assert!(place(4).unwrap_err().contains("chunk 4 of 4"));
    let short = info.read_contexts(&table[..70]).unwrap_err().to_string();
    assert!(short.contains("contexts of blob"), "{short}");
}

/// An inflate context's fields: offset, window's offset, length of the data and of the window, bits.
type Fields = (u64, u64, u32, u32, u8);

/// A table of two chunks with these inflate contexts.
fn inflate_table(contexts: &[Fields]) -> Vec<u8> {
    const ZRAN: u64 = 2 << 56;
    let mut table = words(&[ZRAN, 0, 0, ZRAN, 0, 1 << 32 | 0x4d]);
    for &(offset, window_at, len, window_len, bits) in contexts {
        table.extend(words(&[offset, 0, window_at]));
        for word in [len, 0, window_len] {
            table.extend_from_slice(&word.to_le_bytes());
        }
        table.extend_from_slice(&[0, bits, 0, 0]);
    }
    table.extend_from_slice(&[7; 100]);
    let mut header = vec![0; 4096];
    let count = contexts.len() as u32;
    for (at, word) in [(0, 0xb10b_b10b), (4092, 0xb10b_b10b), (40, 48), (56, count)] {
        header[at..at + 4].copy_from_slice(&u32::to_le_bytes(word));
    }
    table.extend(header);
    table
}

#[test]
fn inflate_contexts_are_spans_and_forged_ones_are_refused() {
    let read = |contexts: &[Fields]| {
        let table = inflate_table(contexts);
        let info = blob(0x1c, 2, table.len() as u64 - 4096);
        let range = info.contexts().unwrap().unwrap();
        assert_eq!((range.blob, range.size), (Digest::of(b"meta"), Some(9000)));
        assert_eq!(range.len, table.len() as u64);
        info.read_contexts(&table)
    };
    let contexts = read(&[(10, 0, 500, 0, 0), (600, 0, 300, 100, 3)]).unwrap();
    let spans: Vec<_> = contexts.spans().map(Result::unwrap).collect();
    let span = |at: usize| (spans[at].offset, spans[at].len, spans[at].bits);
    // The byte of which three bits are left belongs to the second.
    assert_eq!((span(0), span(1)), ((10, 500, 0), (599, 301, 3)));
    assert!(spans[0].window.is_empty() && !spans[1].window.is_empty());
    let place = contexts.place(1, Codec::Gzip).unwrap();
    assert_eq!((place.offset, place.len, place.inner), (599, 301, 0x4d));
    assert_eq!(place.codec, Codec::Deflate);

    let lone = read(&[(10, 0, 500, 0, 0)]).unwrap();
    let error = lone.place(1, Codec::Gzip).unwrap_err();
    assert!(error.contains("no inflate context"), "{error}");
    let forged = [
        ((0, 0, 500, 0, 3), "begins at bit 3"),
        ((9, 0, 500, 0, 9), "begins at bit 9"),
        ((9, 0, 500, 40_000, 0), "a window of 40000 bytes"),
        ((9, 50, 500, 51, 0), "a window of 51 bytes"),
        ((9, u64::MAX, 500, 1, 0), "beyond 2^64"),
        ((9, u64::MAX - 200, 500, 1, 0), "a window"),
    ];
    for (context, word) in forged {
        let contexts = read(&[context]).unwrap();
        let error = contexts.spans().next().unwrap().unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    let long = blob(0x1c, 2, 1 << 40).contexts().unwrap_err().to_string();
    assert!(long.contains("too long"), "{long}");
    let table = inflate_table(&[]);
    let info = blob(0x1c, 2, table.len() as u64 - 4096);
    let mut headless = table.clone();
    *headless.last_mut().unwrap() ^= 1;
    assert!(info.read_contexts(&headless).is_err());
    assert!(info.read_contexts(&table[..100]).is_err());
}

/// The fixture with its first chunk record changed.
fn with_chunk(change: impl FnOnce(&mut [u8])) -> Result<LayerIndex, Flaw> {
    changed("v6-zstd-blake3", |boot| {
        let field = &boot[1152 + 24..1152 + 32];
        let at = u64::from_le_bytes(field.try_into().unwrap()) as usize;
        change(&mut boot[at..at + 80]);
    })
}

#[test]
fn hostile_chunks_are_refused_by_name() {
    type Change = fn(&mut [u8]);
    let cases: [(&str, Change); 5] = [
        ("flags", |chunk| chunk[36] |= 4),
        ("without contexts", |chunk| chunk[36] |= 8),
        ("bytes where", |chunk| chunk[44..48].fill(0xff)),
        ("blob", |chunk| chunk[48..56].fill(0x7f)),
        // Into its neighbour.
        ("overlap", |chunk| chunk[40] = chunk[40].wrapping_add(9)),
    ];
    for (word, change) in cases {
        let error = with_chunk(change).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn a_table_of_more_than_ten_million_chunks_is_refused_before_it_is_read() {
    let len = (crate::index::MAX_ENTRIES as u64 + 1) * 80;
    let mut image = Image::load("v6-zstd-blake3");
    let at = image.bootstrap.len() as u64;
    image.bootstrap[1152 + 24..1152 + 40].copy_from_slice(&words(&[at, len]));
    image.bootstrap.resize((at + len) as usize, 0);
    let error = image.index().unwrap_err().to_string();
    assert!(error.contains("a chunk table of"), "{error}");
}

#[test]
fn a_file_of_2_to_the_63_bytes_costs_nothing() {
    let error = changed("v6-zstd-blake3", |boot| {
        // Of every long inode of a regular file.
        let meta = root_of(boot) / 4096 * 4096;
        for at in (meta..boot.len() - 64).step_by(32) {
            let half = |at: usize| u16::from_le_bytes([boot[at], boot[at + 1]]);
            if half(at) == 9 && half(at + 4) & 0o170_000 == 0o100_000 {
                boot[at + 8..at + 16].copy_from_slice(&(1_u64 << 63).to_le_bytes());
            }
        }
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("exceed 16 TiB"), "{error}");
}
