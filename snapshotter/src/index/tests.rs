//! Merging chains: whiteouts, opaque directories, kinds that change, hard links.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::digest::Digest;
use crate::formats::Flaw;

const META: Meta = Meta {
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtime: (0, 0),
    xattrs: Vec::new(),
};

/// One line of a layer: `dir/`, `file`, `link -> target`, `hard => target`.
fn layer(lines: &[&str]) -> Arc<LayerIndex> {
    let mut builder = LayerBuilder::new(Digest::of(b"l"), Digest::of(b"t"), 0);
    for line in lines {
        let added = if let Some((path, target)) = line.split_once(" -> ") {
            builder.symlink(path, &META, target)
        } else if let Some((path, target)) = line.split_once(" => ") {
            builder.hard_link(path, target)
        } else if line.ends_with('/') {
            builder.directory(line, &META)
        } else {
            builder.file(line, &META, 0).map(drop)
        };
        added.unwrap();
    }
    Arc::new(builder.finish().unwrap())
}

fn merge(layers: &[&[&str]]) -> Tree {
    Tree::merge(layers.iter().map(|lines| layer(lines)).collect()).unwrap()
}

/// Every path with the layer that its node is from, and the number of names.
fn listing(tree: &Tree) -> Vec<String> {
    fn walk(tree: &Tree, node: Node, path: &str, out: &mut Vec<String>) {
        for child in tree.children(node) {
            let name = String::from_utf8_lossy(tree.name(child)).into_owned();
            let node = tree.node(child.node).unwrap();
            let directory = tree.inode(node).kind() == Kind::Directory;
            let slash = if directory { "/" } else { "" };
            out.push(format!("{path}{name}{slash} {} {}", node.layer, node.nlink));
            walk(tree, node, &format!("{path}{name}/"), out);
        }
    }
    let mut out = Vec::new();
    walk(tree, tree.node(0).unwrap(), "", &mut out);
    out
}

/// What is checked, the layers from the bottom up, and each path with its layer and link count.
type Case = (
    &'static str,
    &'static [&'static [&'static str]],
    &'static [&'static str],
);
const CASES: &[Case] = &[
    (
        "one layer",
        &[&["a/", "a/x", "b"]],
        &["a/ 0 2", "a/x 0 1", "b 0 1"],
    ),
    ("upper file wins", &[&["a"], &["a"]], &["a 1 1"]),
    (
        "directories merge, the upper one's attributes win",
        &[&["d/", "d/x", "d/y"], &["d/", "d/y", "d/z"]],
        &["d/ 1 2", "d/x 0 1", "d/y 1 1", "d/z 1 1"],
    ),
    (
        "a directory that is only implied keeps the lower one's attributes",
        &[&["d/", "d/x"], &["d/y"]],
        &["d/ 0 2", "d/x 0 1", "d/y 1 1"],
    ),
    (
        "a whiteout hides a file",
        &[&["a", "b"], &[".wh.a"]],
        &["b 0 1"],
    ),
    (
        "a whiteout hides a tree",
        &[&["d/", "d/e/", "d/e/f"], &[".wh.d"]],
        &[],
    ),
    (
        "a whiteout of nothing",
        &[&["a"], &[".wh.zzz", ".wh.0"]],
        &["a 0 1"],
    ),
    (
        "a whiteout hides nothing above it",
        &[&["a"], &[".wh.a"], &["a"]],
        &["a 2 1"],
    ),
    (
        "a whiteout beside a new directory of the same name",
        &[&["d/", "d/old"], &[".wh.d", "d/", "d/new"]],
        &["d/ 1 2", "d/new 1 1"],
    ),
    (
        "the whiteout may come after",
        &[&["d/", "d/old"], &["d/", "d/new", ".wh.d"]],
        &["d/ 1 2", "d/new 1 1"],
    ),
    (
        "an opaque directory hides what is below",
        &[
            &["d/", "d/old", "d/s/", "d/s/t"],
            &["d/", "d/.wh..wh..opq", "d/new"],
        ],
        &["d/ 1 2", "d/new 1 1"],
    ),
    (
        "an opaque directory hides nothing of its own or above",
        &[&["d/", "d/a"], &["d/", "d/.wh..wh..opq", "d/b"], &["d/c"]],
        &["d/ 1 2", "d/b 1 1", "d/c 2 1"],
    ),
    (
        "an opaque root",
        &[&["a", "b"], &[".wh..wh..opq", "c"]],
        &["c 1 1"],
    ),
    (
        "a whiteout in an opaque directory",
        &[&["d/", "d/a"], &["d/", "d/.wh..wh..opq", "d/.wh.a"]],
        &["d/ 1 2"],
    ),
    (
        "a directory over a file",
        &[&["a"], &["a/", "a/x"]],
        &["a/ 1 2", "a/x 1 1"],
    ),
    (
        "a file over a directory",
        &[&["a/", "a/x"], &["a"]],
        &["a 1 1"],
    ),
    (
        "a directory over a file over a directory",
        &[&["a/", "a/x"], &["a"], &["a/", "a/y"]],
        &["a/ 2 2", "a/y 2 1"],
    ),
    (
        "a link over a directory",
        &[&["a/", "a/x"], &["a -> b"]],
        &["a 1 1"],
    ),
    (
        "AUFS leftovers are no files",
        &[&[".wh..wh.plnk/", ".wh..wh.aufs", "a"]],
        &["a 0 1"],
    ),
    (
        "hard links are one node",
        &[&["a", "d/", "d/b => a", "c => d/b"]],
        &["a 0 3", "c 0 3", "d/ 0 2", "d/b 0 3"],
    ),
    (
        "a hard link may come before its file",
        &[&["b => z", "z"]],
        &["b 0 2", "z 0 2"],
    ),
    (
        "a hidden name no longer counts",
        &[&["a", "b => a", "c => a"], &[".wh.a"]],
        &["b 0 2", "c 0 2"],
    ),
    (
        "a replaced name leaves the others alone",
        &[&["a", "b => a"], &["a"]],
        &["a 1 1", "b 0 1"],
    ),
    (
        "subdirectories count as links",
        &[&["d/", "d/a/", "d/b/"], &["d/c/", "d/.wh.a"]],
        &["d/ 0 4", "d/b/ 0 2", "d/c/ 1 2"],
    ),
    (
        "names sort as bytes",
        &[&["a.b", "a/", "a/x"], &["a-b", "Z"]],
        &["Z 1 1", "a/ 0 2", "a/x 0 1", "a-b 1 1", "a.b 0 1"],
    ),
];

#[test]
fn merging_follows_the_oci_rules() {
    for (what, layers, expected) in CASES {
        assert_eq!(listing(&merge(layers)), *expected, "{what}");
    }
}

#[test]
fn names_are_found_and_others_are_not() {
    let tree = merge(&[&["d/", "d/a", "d/c"], &["d/b"]]);
    let root = tree.node(0).unwrap();
    let d = tree.node(tree.look_up(root, b"d").unwrap()).unwrap();
    for name in ["a", "b", "c"] {
        assert!(tree.look_up(d, name.as_bytes()).is_some(), "{name}");
    }
    for name in ["", "0", "ab", "d", "."] {
        assert_eq!(tree.look_up(d, name.as_bytes()), None, "{name}");
    }
    assert!(tree.node(tree.len() as u32).is_none());
}

#[test]
fn a_chain_of_no_layers_and_a_bottomless_tree_are_refused() {
    assert!(Tree::merge(Vec::new()).is_err());
    let deep = "d/".repeat(2040);
    assert!(Tree::merge(vec![layer(&[&deep])]).is_ok());
}

/// A second, simple implementation: apply layer after layer to a map of paths, as an unpacker does.
fn unpack(layers: &[Vec<String>]) -> Vec<String> {
    let mut files: BTreeMap<String, (usize, bool)> = BTreeMap::new();
    let remove = |files: &mut BTreeMap<String, (usize, bool)>, path: &str, below: usize| {
        let inside = format!("{path}/");
        files.retain(|name, (layer, _)| {
            (name != path && !name.starts_with(&inside)) || *layer >= below
        });
    };
    for (number, lines) in layers.iter().enumerate() {
        for line in lines {
            let path = line.trim_end_matches('/');
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            if let Some(hidden) = name.strip_prefix(".wh.") {
                let hidden = match parent {
                    "" => hidden.to_owned(),
                    parent => format!("{parent}/{hidden}"),
                };
                remove(&mut files, &hidden, number);
                continue;
            }
            let directory = line.ends_with('/');
            let old = files.get(path).copied();
            if old.is_some_and(|(_, was)| !was || !directory) {
                remove(&mut files, path, usize::MAX);
            }
            files.insert(path.to_owned(), (number, directory));
        }
    }
    let slash = |directory| if directory { "/" } else { "" };
    let mut all: Vec<String> = files
        .iter()
        .map(|(path, (layer, directory))| format!("{path}{} {layer}", slash(*directory)))
        .collect();
    all.sort();
    all
}

#[test]
fn merging_agrees_with_unpacking_layer_after_layer() {
    for seed in 0..400 {
        let random = crate::formats::estargz::sample::noise(seed, 400);
        let mut bytes = random.into_iter();
        let mut next = |n: u8| usize::from(bytes.next().unwrap_or(0) % n);
        let mut layers: Vec<Vec<String>> = Vec::new();
        for _ in 0..=next(3) {
            let mut lines: Vec<String> = Vec::new();
            for a in ["p", "q", "r"] {
                match next(5) {
                    0 => lines.push(a.to_owned()),
                    1 => lines.push(format!(".wh.{a}")),
                    2 | 3 => {
                        lines.push(format!("{a}/"));
                        for b in ["s", "t"] {
                            match next(5) {
                                0 => lines.push(format!("{a}/{b}")),
                                1 => lines.push(format!("{a}/.wh.{b}")),
                                2 => {
                                    lines.push(format!("{a}/{b}/"));
                                    lines.push(format!("{a}/{b}/u"));
                                }
                                _ => {}
                            }
                        }
                    }
                    _ => {}
                }
            }
            layers.push(lines);
        }
        let borrowed: Vec<Vec<&str>> = layers
            .iter()
            .map(|lines| lines.iter().map(String::as_str).collect())
            .collect();
        let slices: Vec<&[&str]> = borrowed.iter().map(Vec::as_slice).collect();
        let mut merged: Vec<String> = listing(&merge(&slices))
            .into_iter()
            .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
            .collect();
        merged.sort();
        assert_eq!(merged, unpack(&layers), "seed {seed}: {layers:?}");
    }
}

#[test]
fn ten_thousand_files_take_less_than_two_megabytes() {
    let mut builder = LayerBuilder::new(Digest::of(b"l"), Digest::of(b"t"), 1 << 40);
    for i in 0..10_000_u64 {
        let path = format!("usr/lib/python3/d{}/module_{i}.py", i / 50);
        let file = builder.file(&path, &META, 5000).unwrap().unwrap();
        let spec = ChunkSpec {
            file_offset: 0,
            len: 5000,
            unit_offset: i * 2000,
            unit_len: 2000,
            codec: Codec::Gzip,
            inner: 0,
            digest: Digest::of(b"content"),
        };
        builder.chunk(file, spec).unwrap();
    }
    let index = Arc::new(builder.finish().unwrap());
    assert!(
        index.as_bytes().len() < 2_000_000,
        "{}",
        index.as_bytes().len()
    );
    let tree = Tree::merge(vec![index]).unwrap();
    assert!(tree.heap_size() < 160_000, "{}", tree.heap_size());
}

#[test]
fn large_files_become_objects_and_small_ones_share_aligned_places() {
    let mut builder = LayerBuilder::new(Digest::of(b"l"), Digest::of(b"t"), 1 << 40);
    let sizes = [10, OBJECT_MIN, 5000, 0, OBJECT_MIN - 1, 1 << 30];
    for (i, size) in sizes.into_iter().enumerate() {
        let file = builder.file(format!("f{i}"), &META, size).unwrap().unwrap();
        for at in (0..size).step_by(MAX_CHUNK as usize) {
            let spec = ChunkSpec {
                file_offset: at,
                len: MAX_CHUNK.min(size - at),
                unit_offset: (i as u64) * 1_000_000 + at / 10_000,
                unit_len: 100,
                codec: Codec::Plain,
                inner: 0,
                digest: Digest::of(b"content"),
            };
            builder.chunk(file, spec).unwrap();
        }
    }
    let index = builder.finish().unwrap();
    let places: Vec<(u32, u64)> = (1..index.inodes())
        .map(|id| (index.inode(id).segment, index.inode(id).base))
        .collect();
    assert_eq!(
        places,
        [(0, 0), (1, 0), (0, 4096), (0, 0), (0, 12_288), (2, 0)]
    );
    assert_eq!(index.segment_len(0), 12_288 + OBJECT_MIN);
    assert_eq!(index.segment_len(2), 1 << 30);
    let big = index.inode(6);
    assert_eq!(index.chunks_at(&big, MAX_CHUNK - 1, 2).len(), 2);
    assert_eq!(index.chunks_at(&big, 0, u64::MAX).len(), 16);
    assert_eq!(index.chunks_at(&big, 1 << 30, 10).len(), 0);
}

#[test]
fn units_that_overlap_are_refused() {
    let mut builder = LayerBuilder::new(Digest::of(b"l"), Digest::of(b"t"), 1000);
    for (name, unit_offset, unit_len) in [("a", 0, 100), ("b", 50, 100)] {
        let file = builder.file(name, &META, 10).unwrap().unwrap();
        let spec = ChunkSpec {
            file_offset: 0,
            len: 10,
            unit_offset,
            unit_len,
            codec: Codec::Plain,
            inner: 0,
            digest: Digest::of(b"content"),
        };
        builder.chunk(file, spec).unwrap();
    }
    let error: Flaw = builder.finish().unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("entry \"b\"") && text.contains("overlap"),
        "{text}"
    );
}

#[test]
fn a_chunk_must_lie_inside_a_blob_of_the_table() {
    let blobs = [(Digest::of(b"a"), 100), (Digest::of(b"b"), 1000)];
    let mut builder = LayerBuilder::of_blobs(Digest::of(b"l"), Digest::of(b"t"), &blobs).unwrap();
    let file = builder.file("f", &META, 20).unwrap().unwrap();
    let spec = |file_offset, unit_offset| ChunkSpec {
        file_offset,
        len: 10,
        unit_offset,
        unit_len: 10,
        codec: Codec::Plain,
        inner: 0,
        digest: Digest::of(b"content"),
    };
    let refused = builder.chunk_of_blob(file, 0, spec(0, 500)).unwrap_err();
    assert!(refused.to_string().contains("blob of 100"), "{refused}");
    let refused = builder.chunk_of_blob(file, 2, spec(0, 0)).unwrap_err();
    assert!(refused.to_string().contains("blob 2 of 2"), "{refused}");
    // The same place in two blobs is no overlap.
    builder.chunk_of_blob(file, 1, spec(0, 5)).unwrap();
    builder.chunk_of_blob(file, 0, spec(10, 5)).unwrap();
    let index = builder.finish().unwrap();
    let places = (0..index.units()).map(|unit| index.place_among_blobs(&index.unit(unit)));
    assert_eq!(places.collect::<Vec<_>>(), [5, 105]);
    assert_eq!((index.blob_size(), index.blobs().count()), (1100, 2));
}

#[test]
fn blob_tables_without_bound_are_refused() {
    let blob = (Digest::of(b"a"), u64::MAX / 2);
    for blobs in [vec![blob; 3], vec![(blob.0, 1); 5000]] {
        assert!(LayerBuilder::of_blobs(blob.0, blob.0, &blobs).is_err());
    }
}

#[test]
fn holes_lie_between_chunks_and_nowhere_else() {
    let build = |chunks: &[u64], holes: &[(u64, u64)]| {
        let mut builder = LayerBuilder::new(Digest::of(b"l"), Digest::of(b"t"), 1000);
        let file = builder.file("f", &META, 100).unwrap().unwrap();
        for &file_offset in chunks {
            let spec = ChunkSpec {
                file_offset,
                len: 10,
                unit_offset: file_offset,
                unit_len: 10,
                codec: Codec::Plain,
                inner: 0,
                digest: Digest::of(b"content"),
            };
            builder.chunk(file, spec).unwrap();
        }
        for &(offset, len) in holes {
            builder.hole(file, offset, len).unwrap();
        }
        builder.finish()
    };
    let index = build(&[10, 50], &[(20, 30), (0, 10), (60, 40)]).unwrap();
    let file = index.inode(1);
    assert_eq!(index.chunks_at(&file, 0, 10).len(), 0);
    assert_eq!(index.chunks_at(&file, 0, 11).len(), 1);
    assert_eq!(index.chunks_at(&file, 20, 30).len(), 0);
    assert_eq!(index.chunks_at(&file, 0, 100).len(), 2);
    assert_eq!(index.chunks_at(&file, 60, 40).len(), 0);
    assert_eq!(build(&[], &[(0, 100)]).unwrap().chunks(), 0);
    for (chunks, holes) in [
        (&[0_u64][..], &[(20_u64, 80_u64)][..]),
        (&[0], &[(5, 95)]),
        (&[0], &[(10, 90), (10, 90)]),
        (&[0], &[(10, 90), (20, 5)]),
        (&[0, 50], &[(10, 50)]),
        (&[], &[(0, u64::MAX)]),
        (&[0], &[(10, u64::MAX)]),
        (&[], &[(0, 100), (100, 1)]),
    ] {
        assert!(build(chunks, holes).is_err(), "{chunks:?} {holes:?}");
    }
}

#[test]
fn attributes_that_are_the_hosts_to_give_are_not_taken_from_an_image() {
    let attribute = |name: &str| (name.as_bytes().to_vec(), b"/etc".to_vec());
    let meta = Meta {
        xattrs: ["user.a", "trusted.overlay.redirect", "security.b"]
            .map(attribute)
            .into(),
        ..META
    };
    let mut builder = LayerBuilder::new(Digest::of(b"l"), Digest::of(b"t"), 0);
    builder.directory("d", &meta).unwrap();
    let tree = Tree::merge(vec![Arc::new(builder.finish().unwrap())]).unwrap();
    let root = tree.node(0).unwrap();
    let node = tree.node(tree.children(root).next().unwrap().node).unwrap();
    let inode = tree.inode(node);
    let names: Vec<_> = tree
        .layer(node)
        .xattrs(&inode)
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, [&b"user.a"[..], b"security.b"]);
}
