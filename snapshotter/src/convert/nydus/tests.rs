//! Images converted in OCI layouts, read back by the parser of the format.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::convert::{Format, Place, Undo, convert};
use crate::fetch::manifest::{Document, Manifest};
use crate::fetch::{Registry, RegistryConfig};
use crate::fill::unpack::unpack;
use crate::formats::nydus::{Bootstrap, unpack_bootstrap};
use crate::index::{Kind, LayerIndex, Prefetch, Span, Tree as Merged};
use crate::sys::{Blocks, Inflater};

mod reference;

struct Silent;

impl Observer for Silent {
    fn planned(&self, _: &[(Digest, u64)]) {}
    fn read(&self, _: &Digest, _: u64) {}
    fn finished(&self, _: &Digest, _: &LayerReport) {}
    fn note(&self, _: &str) {}
}

/// A tar archive of lines: `d NAME MODE`, `f NAME CONTENT…`, `l NAME TARGET`, `h NAME TARGET`,
/// `c NAME`, `x NAME ATTRIBUTE`.
fn layer(lines: &[(&str, &str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for &(kind, name, data) in lines {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o4755);
        header.set_uid(70_000);
        header.set_gid(7);
        header.set_mtime(1_600_000_000);
        header.set_size(0);
        let text = std::str::from_utf8(data);
        match kind {
            "d" => header.set_entry_type(tar::EntryType::Directory),
            "l" => header.set_entry_type(tar::EntryType::Symlink),
            "h" => header.set_entry_type(tar::EntryType::Link),
            "p" => header.set_entry_type(tar::EntryType::Fifo),
            "c" => {
                header.set_entry_type(tar::EntryType::Char);
                header.set_device_major(259).unwrap();
                header.set_device_minor(300).unwrap();
            }
            _ => header.set_size(data.len() as u64),
        }
        match kind {
            "l" | "h" => builder
                .append_link(&mut header, name, text.unwrap())
                .unwrap(),
            "x" => {
                let attributes = [("SCHILY.xattr.user.note", data)];
                builder.append_pax_extensions(attributes).unwrap();
                builder.append_data(&mut header, name, data).unwrap();
            }
            _ => builder
                .append_data(&mut header, name, if kind == "f" { data } else { &[] })
                .unwrap(),
        }
    }
    builder.into_inner().unwrap()
}

/// An OCI layout at `dir` with an image of these layers.
fn layout(dir: &Path, layers: &[Vec<u8>]) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({"digest": digest.to_string(), "size": bytes.len()})
    };
    let typed = |mut descriptor: Value, media_type: &str| {
        descriptor["mediaType"] = media_type.into();
        descriptor
    };
    let ids: Vec<String> = layers
        .iter()
        .map(|one| Digest::of(one).to_string())
        .collect();
    let config = json!({"os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": ids}, "history": [{"created_by": "us"}]});
    let tar = "application/vnd.oci.image.layer.v1.tar";
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": typed(put(config.to_string().as_bytes()), OCI_CONFIG),
        "layers": layers.iter().map(|one| typed(put(one), tar)).collect::<Vec<_>>()});
    let manifest = typed(put(manifest.to_string().as_bytes()), OCI_MANIFEST);
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// A converted image, read back.
struct Converted {
    report: Report,
    manifest: Manifest,
    index: LayerIndex,
    blobs: BTreeMap<Digest, Vec<u8>>,
    bootstrap: Vec<u8>,
}

fn convert_layers(layers: &[Vec<u8>], chunk_size: u64) -> Result<Converted> {
    convert_prioritized(layers, chunk_size, &[])
}

fn convert_prioritized(
    layers: &[Vec<u8>],
    chunk_size: u64,
    prioritized: &[&str],
) -> Result<Converted> {
    let root = tempfile::tempdir().unwrap();
    let options = |options: &mut Options| {
        options.chunk_size = Some(chunk_size);
        options.prioritized = prioritized.iter().map(ToString::to_string).collect();
    };
    convert_in(root.path(), layers, options)
}

/// The place that is an OCI layout.
fn place(path: &Path) -> Place {
    format!("oci:{}", path.display()).parse().unwrap()
}

/// Converts an image of these layers at `from` in `root` to one at `to`, with the options changed.
fn convert_in(
    root: &Path,
    layers: &[Vec<u8>],
    change: impl FnOnce(&mut Options),
) -> Result<Converted> {
    let (from, to) = (root.join("from"), root.join("to"));
    layout(&from, layers);
    let mut options = Options {
        source: place(&from),
        destination: place(&to),
        format: Format::Nydus,
        platforms: Vec::new(),
        chunk_size: None,
        level: None,
        prioritized: Vec::new(),
        rewrite: false,
        chunk_dict: None,
        oci_ref: false,
        temp_dir: root.to_owned(),
    };
    change(&mut options);
    let registry = Registry::new(RegistryConfig::default()).unwrap();
    let report = convert(&registry, &options, &Silent, &Undo::new())?;
    let read = |digest: &Digest| std::fs::read(to.join("blobs/sha256").join(digest.hex())).unwrap();
    let document = Document::parse(&read(&report.digest), OCI_MANIFEST, "it").unwrap();
    let Document::Manifest(manifest) = document else {
        panic!("an index");
    };
    let (top, blobs) = manifest.layers.split_last().unwrap();
    let bootstrap = unpack_bootstrap(&read(&top.digest)).unwrap();
    let sizes = |parsed: &Bootstrap<'_>| {
        let blobs = parsed.blobs().iter();
        blobs
            .map(|blob| read(&blob.digest).len() as u64)
            .collect::<Vec<_>>()
    };
    let parsed = Bootstrap::read(&bootstrap).unwrap();
    let contexts = parsed.blobs().iter().map(|blob| {
        let range = blob.contexts().unwrap()?;
        let bytes = read(&range.blob);
        let bytes = &bytes[range.offset as usize..][..range.len as usize];
        Some(blob.read_contexts(bytes).unwrap())
    });
    let contexts: Vec<_> = contexts.collect();
    let index = parsed
        .index(top.digest, &sizes(&parsed), &contexts)
        .unwrap();
    let referred = parsed.blobs().iter().map(|blob| blob.digest);
    let blobs = blobs.iter().map(|blob| blob.digest).chain(referred);
    let blobs = blobs.map(|digest| (digest, read(&digest))).collect();
    Ok(Converted {
        report,
        manifest,
        index,
        blobs,
        bootstrap,
    })
}

impl Converted {
    /// Every path with its kind, attributes and content, each chunk verified.
    fn listing(self) -> Vec<String> {
        let blobs: Vec<Digest> = self.index.blobs().map(|(digest, _)| digest).collect();
        let tree = Merged::merge(vec![Arc::new(self.index)]).unwrap();
        let mut lines = Vec::new();
        let mut todo = vec![(0, String::new())];
        while let Some((node, above)) = todo.pop() {
            for child in tree.children(tree.node(node).unwrap()) {
                let path = format!("{above}{}", String::from_utf8_lossy(tree.name(child)));
                let node = tree.node(child.node).unwrap();
                let (index, inode) = (tree.layer(node), tree.inode(node));
                let mut content = Vec::new();
                for id in index
                    .file_chunks(&inode)
                    .filter(|_| inode.kind() == Kind::File)
                {
                    let chunk = index.chunk(id);
                    let unit = index.unit(chunk.unit);
                    let blob = &self.blobs[&blobs[usize::from(unit.blob)]];
                    let packed = &blob[unit.offset as usize..unit.end() as usize];
                    let needed = (chunk.inner + chunk.len) as usize;
                    let plain = match index.span(chunk.unit) {
                        Some(span) => inflate(index, &span, packed, needed),
                        None => unpack(unit.codec(), packed, needed).unwrap(),
                    };
                    let plain = &plain[chunk.inner as usize..];
                    index
                        .algorithm()
                        .verify(plain, &chunk.digest, &path)
                        .unwrap();
                    content.extend(plain);
                }
                let what = match inode.kind() {
                    Kind::Directory => {
                        todo.push((child.node, format!("{path}/")));
                        "directory".to_owned()
                    }
                    Kind::Symlink => {
                        String::from_utf8_lossy(index.link_target(&inode)).into_owned()
                    }
                    Kind::File => format!("{} {}", inode.size, Digest::of(&content).hex()),
                    other => format!("{other:?} {:?}", inode.rdev()),
                };
                let xattrs: Vec<_> = index.xattrs(&inode).collect();
                lines.push(format!(
                    "{path}: {what} {:o} {}:{} {} {} {xattrs:?}",
                    inode.mode & 0o7777,
                    inode.uid,
                    inode.gid,
                    inode.mtime,
                    if inode.kind() == Kind::Directory {
                        1
                    } else {
                        node.nlink
                    },
                ));
            }
        }
        lines.sort();
        lines
    }
}

/// The first `needed` bytes that a span unpacks to.
fn inflate(index: &LayerIndex, span: &Span, packed: &[u8], needed: usize) -> Vec<u8> {
    let window = match index.window(span) {
        [] => Vec::new(),
        frame => zstd::bulk::decompress(frame, 32 << 10).unwrap(),
    };
    let shared = usize::from(span.bits > 0);
    let mut inflater = Inflater::resume(span.bits, packed[0], &window).unwrap();
    let mut out = vec![0; needed];
    let step = inflater.step(&packed[shared..], &mut out, Blocks::Pass);
    assert_eq!(step.unwrap().written, needed);
    out
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    crate::formats::estargz::sample::noise(seed, len)
}

fn line(path: &str, what: &str, links: u32) -> String {
    format!("{path}: {what} 4755 70000:7 1600000000 {links} []")
}

fn file(path: &str, content: &[u8], links: u32) -> String {
    let what = format!("{} {}", content.len(), Digest::of(content).hex());
    line(path, &what, links)
}

#[test]
fn a_converted_image_has_every_file_of_its_layers() {
    let big = noise(1, 3_000_000);
    let long = "x/".repeat(1500) + "end";
    let mut base = vec![
        ("d", "bin", &b""[..]),
        ("f", "bin/big", &big),
        ("h", "bin/again", b"bin/big"),
        ("f", "bin/copy", &big[..5000]),
        ("f", "implied/deep/file", b"deep"),
        ("f", "empty", b""),
        ("l", "short", b"bin/big"),
        ("l", "long", long.as_bytes()),
        ("c", "disk", b""),
        ("p", "pipe", b""),
        ("x", "noted", b"note"),
        ("f", "gone", b"gone"),
        ("d", "opq", b""),
        ("f", "opq/below", b"below"),
        ("d", "many", b""),
    ];
    let names: Vec<String> = (0..500)
        .map(|i| format!("many/a-name-of-some-length-{i}"))
        .collect();
    base.extend(names.iter().map(|name| ("f", name.as_str(), &b"many"[..])));
    let top = [
        ("f", "opq/.wh..wh..opq", &b""[..]),
        ("f", ".wh.gone", b""),
        ("f", "opq/above", b"above"),
        ("f", "bin/copy", b"replaced"),
        ("h", "linked", b"opq/above"),
    ];
    let layers = [layer(&base), layer(&top)];
    let converted = convert_layers(&layers, CHUNK_SIZE).unwrap();
    let root = "directory 755 0:0 0 1 []";
    let mut expected = vec![
        line("bin", "directory", 1),
        file("bin/big", &big, 2),
        file("bin/again", &big, 2),
        file("bin/copy", b"replaced", 1),
        file("implied/deep/file", b"deep", 1),
        file("empty", b"", 1),
        line("short", "bin/big", 1),
        line("long", &long, 1),
        line("disk", "CharDevice (259, 300)", 1),
        line("pipe", "Fifo (0, 0)", 1),
        file("noted", b"note", 1).replace("[]", &format!("{:?}", [(b"user.note", b"note")])),
        line("opq", "directory", 1),
        file("opq/above", b"above", 2),
        file("linked", b"above", 2),
        line("many", "directory", 1),
        format!("implied: {root}"),
        format!("implied/deep: {root}"),
    ];
    expected.extend(names.iter().map(|name| file(name, b"many", 1)));
    expected.sort();
    assert_eq!(converted.listing(), expected);
}

/// A tar archive of empty files, links (`*`) and whiteouts with names of any bytes.
fn raw_layer(entries: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, target) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o600);
        let name = OsStr::from_bytes(name);
        match target.split_first() {
            None => builder.append_data(&mut header, name, &[][..]).unwrap(),
            Some((kind, target)) => {
                header.set_entry_type(tar::EntryType::new(*kind));
                let target = OsStr::from_bytes(target);
                builder.append_link(&mut header, name, target).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

#[test]
fn names_and_targets_of_any_bytes_stay_what_they_are() {
    const HARD: &[u8] = b"1d/\xe9";
    const SYMBOLIC: &[u8] = b"2d/\xff";
    let below = raw_layer(&[(b"d/\xe9", b""), (b"d/\xfe", b""), (b"\x80", HARD)]);
    let above = raw_layer(&[(b"d/.wh.\xfe", b""), (b"d/link", SYMBOLIC)]);
    let converted = convert_layers(&[below, above], 1 << 20).unwrap();
    let tree = Merged::merge(vec![Arc::new(converted.index)]).unwrap();
    let look_up = |above, name: &[u8]| tree.look_up(tree.node(above).unwrap(), name);
    let directory = look_up(0, b"d").unwrap();
    let file = look_up(directory, b"\xe9").unwrap();
    assert_eq!(look_up(0, b"\x80"), Some(file), "a hard link");
    assert_eq!(look_up(directory, b"\xfe"), None, "a whiteout");
    let link = tree.node(look_up(directory, b"link").unwrap()).unwrap();
    let target = tree.layer(link).link_target(&tree.inode(link)).to_vec();
    assert_eq!(target, b"d/\xff");
}

#[test]
fn the_manifest_is_that_of_a_nydus_image() {
    let one = layer(&[("f", "a", &b"content"[..])]);
    let nothing = layer(&[("d", "empty", &b""[..])]);
    let converted = convert_layers(&[one.clone(), nothing, one], 4096).unwrap();
    let layers = &converted.manifest.layers;
    assert_eq!(
        layers.len(),
        2,
        "layers without contents have no blob, equal ones share one"
    );
    assert_eq!(layers[0].media_type, BLOB_MEDIA_TYPE);
    assert_eq!(layers[0].annotations[BLOB_ANNOTATION], "true");
    assert_eq!(layers[1].media_type, OCI_GZIP);
    assert_eq!(layers[1].annotations[BOOTSTRAP_ANNOTATION], "true");
    assert_eq!(converted.report.images[0].layers.len(), 3);
}

#[test]
fn the_same_image_gives_the_same_bytes_and_equal_chunks_are_stored_once() {
    let twice = noise(5, 40_000);
    let one = layer(&[("f", "a", &twice), ("f", "b", &twice)]);
    let first = convert_layers(std::slice::from_ref(&one), 8192).unwrap();
    let second = convert_layers(&[one], 8192).unwrap();
    assert_eq!(first.report.digest, second.report.digest);
    assert_eq!(first.bootstrap, second.bootstrap);
    let blob = first.blobs.values().next().unwrap();
    assert!(blob.len() < 50_000, "{}", blob.len());
    assert_eq!((first.index.units(), first.index.chunks()), (5, 10));
}

#[test]
fn prioritized_files_lie_first_in_their_blobs_and_are_fetched_first() {
    let contents = [noise(1, 9000), noise(2, 5000), noise(3, 7000)];
    let below = layer(&[
        ("d", "d", &b""[..]),
        ("f", "d/one", &contents[0]),
        ("f", "d/two", &contents[1]),
    ]);
    let above = layer(&[("h", "d/again", b"d/three"), ("f", "d/three", &contents[2])]);
    // A directory is no wish for all that is in it.
    let wanted = ["d", "d/again", "not/here", "d/two", "d/three"];
    let converted = convert_prioritized(&[below, above], 4096, &wanted).unwrap();
    let index = &converted.index;
    assert_eq!(index.prefetch(), Prefetch::Listed);
    let fetched = index.prefetch_units().map(|unit| index.unit(unit));
    let fetched: Vec<_> = fetched.map(|unit| (unit.blob, unit.offset)).collect();
    let stored = [(1, 0), (1, 4096), (0, 0), (0, 4096)];
    assert_eq!(fetched, stored, "noise is stored as it is");
}

#[test]
fn chunks_of_a_dictionary_are_not_stored_again() {
    let root = tempfile::tempdir().unwrap();
    let (old, new) = (noise(1, 30_000), noise(2, 10_000));
    let below = layer(&[("f", "unused", &noise(9, 5000))]);
    let image = [below, layer(&[("f", "old", &old), ("f", "more", b"more")])];
    let known = root.path().join("known");
    std::fs::create_dir(&known).unwrap();
    let small = |options: &mut Options| options.chunk_size = Some(8192);
    let known_image = convert_in(&known, &image, small).unwrap();
    let dictionary = place(&known.join("to"));
    let layers = [
        layer(&[("f", "same", &old[..]), ("f", "new", &new)]),
        layer(&[("f", "as-before", &old[..16384]), ("d", "more", b"")]),
    ];
    let converted = convert_in(root.path(), &layers, |options| {
        options.chunk_size = Some(8192);
        options.chunk_dict = Some(dictionary.clone());
    });
    let converted = converted.unwrap();
    // One blob of its own for what is new, and that one of the dictionary which it needs.
    let borrowed = known_image.manifest.layers[1].digest;
    let blobs: Vec<Digest> = converted.index.blobs().map(|(digest, _)| digest).collect();
    assert_eq!(blobs.len(), 2);
    assert_eq!(blobs[1], borrowed);
    assert_eq!(converted.manifest.layers.len(), 3);
    assert_eq!(converted.manifest.layers[1].digest, borrowed);
    let own = converted.blobs[&blobs[0]].len();
    assert!((new.len()..new.len() + 8000).contains(&own), "{own}");
    let mut expected = vec![
        file("same", &old, 1),
        file("new", &new, 1),
        file("as-before", &old[..16384], 1),
        line("more", "directory", 1),
    ];
    expected.sort();
    assert_eq!(converted.listing(), expected);

    // The same image once more needs no blob of its own.
    let again = convert_in(root.path(), &image, |options| {
        options.chunk_size = Some(8192);
        options.chunk_dict = Some(dictionary.clone());
    });
    assert_eq!(again.unwrap().manifest.layers.len(), 3);
    let other = convert_in(root.path(), &image, |options| {
        options.chunk_size = Some(4096);
        options.chunk_dict = Some(dictionary);
    });
    let other = other.err().unwrap().to_string();
    assert!(other.contains("chunks of 8192 bytes"), "{other}");
    let plain = convert_in(root.path(), &image, |options| {
        options.chunk_dict = Some(options.source.clone());
    });
    let plain = plain.err().unwrap().to_string();
    assert!(plain.contains("is no Nydus image"), "{plain}");
}

#[test]
fn what_cannot_be_stored_is_named() {
    let cases = [
        (layer(&[("h", "link", &b"nowhere"[..])]), "link"),
        (layer(&[("f", "a", &b""[..]), ("f", "a/b", b"")]), "\"a\""),
        (b"no archive".to_vec(), "sha256:"),
    ];
    let odd = convert_layers(&[layer(&[])], 5000).err().unwrap();
    assert!(odd.to_string().contains("power of two"), "{odd}");
    for (archive, word) in cases {
        let error = convert_layers(&[archive], 4096).err().unwrap().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}
