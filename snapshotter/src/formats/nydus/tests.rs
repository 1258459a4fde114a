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
use crate::index::{Inode, Kind, Node, Prefetch, Tree};

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

    fn list(&self, tree: &Tree, directory: &Node, above: &str, lines: &mut Vec<String>) {
        for child in tree.children(directory) {
            let node = tree.node(child.node).unwrap();
            let path = format!("{above}{}", String::from_utf8_lossy(tree.name(child)));
            lines.push(self.line(tree, node, &path));
            self.list(tree, node, &format!("{path}/"), lines);
        }
    }

    fn line(&self, tree: &Tree, node: &Node, path: &str) -> String {
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
            "not UTF-8",
            changed(v6, |boot| {
                let at = find(boot, b"newlink");
                boot[at + 3] = 0xff;
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
