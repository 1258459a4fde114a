//! Images that the kernel mounts, compared with the tree they were made of. Needs root, as the
//! daemon does.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use super::*;
use crate::digest::Digest;
use crate::formats::estargz::sample::noise;
use crate::index::{ALIGN, ChunkSpec, Codec, Kind, LayerBuilder, Meta, Node, OBJECT_MIN};

/// A layer's index and the contents of its files.
type Described = (Arc<LayerIndex>, Vec<(String, Vec<u8>)>);

/// Layers with one chunk a file, and what their files hold.
struct Layer {
    builder: LayerBuilder,
    contents: Vec<(String, Vec<u8>)>,
    blob: u64,
}

const BLOB: u64 = 1 << 40;

fn meta(mtime: (i64, u32)) -> Meta {
    Meta {
        mode: 0o755,
        mtime,
        ..Meta::default()
    }
}

impl Layer {
    fn new(name: &str) -> Self {
        let digest = Digest::of(name.as_bytes());
        Self {
            builder: LayerBuilder::new(digest, digest, BLOB),
            contents: Vec::new(),
            blob: 0,
        }
    }

    fn file(&mut self, path: &str, meta: &Meta, content: Vec<u8>) {
        let len = content.len() as u64;
        let file = self.builder.file(path, meta, len).unwrap().unwrap();
        if len > 0 {
            let spec = ChunkSpec {
                file_offset: 0,
                len,
                unit_offset: self.blob,
                unit_len: len,
                codec: Codec::Plain,
                inner: 0,
                digest: Digest::of(&content),
            };
            self.builder.chunk(file, spec).unwrap();
            self.blob += len;
        }
        self.contents.push((path.to_owned(), content));
    }

    fn finish(self) -> Described {
        (Arc::new(self.builder.finish().unwrap()), self.contents)
    }
}

/// A mounted image over segments with all of their data; unmounted at the end.
struct Mounted {
    dir: tempfile::TempDir,
    tree: Tree,
}

impl Mounted {
    fn new(layers: &[Described]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let indexes: Vec<_> = layers.iter().map(|layer| Arc::clone(&layer.0)).collect();
        let devices = devices(&indexes);
        for (layer, (index, contents)) in layers.iter().enumerate() {
            for device in devices.iter().filter(|d| usize::from(d.layer) == layer) {
                let file = File::create(segment(dir.path(), device)).unwrap();
                file.set_len(device.len.next_multiple_of(ALIGN)).unwrap();
                write_contents(index, contents, device, &file);
            }
        }
        let tree = Tree::merge(indexes).unwrap();
        let image = dir.path().join("image");
        fs::write(&image, super::image(&tree).unwrap()).unwrap();
        let point = dir.path().join("mnt");
        fs::create_dir(&point).unwrap();
        let options: Vec<_> = devices
            .iter()
            .map(|device| format!("device={}", segment(dir.path(), device).display()))
            .collect();
        let options = std::ffi::CString::new(options.join(",")).unwrap();
        rustix::mount::mount(&image, &point, "erofs", MountFlags::RDONLY, &*options).unwrap();
        Self { dir, tree }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("mnt").join(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(self.dir.path().join("mnt"), UnmountFlags::empty()).unwrap();
    }
}

fn segment(dir: &Path, device: &Device) -> PathBuf {
    dir.join(format!("{}-{}", device.layer, device.segment))
}

fn write_contents(
    index: &LayerIndex,
    contents: &[(String, Vec<u8>)],
    device: &Device,
    file: &File,
) {
    for id in 0..index.inodes() {
        let inode = index.inode(id);
        if inode.kind() != Kind::File || inode.segment != device.segment || inode.size == 0 {
            continue;
        }
        // Each content in these tests has a length of its own.
        let mut of_size = contents
            .iter()
            .filter(|(_, content)| content.len() as u64 == inode.size);
        let content = &of_size.next().unwrap().1;
        assert!(of_size.next().is_none());
        file.write_all_at(content, inode.base).unwrap();
    }
}

/// Compares everything that `stat`, `readlink` and the directory show with the tree.
fn compare(mounted: &Mounted, node: Node, path: &Path) -> usize {
    let inode = mounted.tree.inode(node);
    let seen = fs::symlink_metadata(path).unwrap();
    assert_eq!(seen.mode(), inode.mode, "{}", path.display());
    assert_eq!((seen.uid(), seen.gid()), (inode.uid, inode.gid));
    let time = (seen.mtime(), seen.mtime_nsec() as u32);
    assert_eq!(time, (inode.mtime, inode.mtime_nsec), "{}", path.display());
    assert_eq!(seen.nlink(), u64::from(node.nlink), "{}", path.display());
    match inode.kind() {
        Kind::Directory => {}
        Kind::Symlink => {
            let target = mounted.tree.layer(node).link_target(&inode);
            let seen = fs::read_link(path).unwrap();
            assert_eq!(seen.as_os_str().as_encoded_bytes(), target);
            return 1;
        }
        _ => {
            assert_eq!(seen.size(), inode.size);
            let (major, minor) = inode.rdev();
            assert_eq!(seen.rdev(), rustix::fs::makedev(major, minor));
            return 1;
        }
    }
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_encoded_bytes())
        .collect();
    names.sort();
    let children = || mounted.tree.children(node);
    let expected: Vec<_> = children()
        .map(|child| mounted.tree.name(child).to_vec())
        .collect();
    assert_eq!(names, expected, "{}", path.display());
    let below = children().map(|child| {
        let name = String::from_utf8(mounted.tree.name(child).to_vec()).unwrap();
        let node = mounted.tree.node(child.node).unwrap();
        compare(mounted, node, &path.join(name))
    });
    1 + below.sum::<usize>()
}

#[test]
fn the_kernel_shows_the_merged_tree() {
    let (early, late) = ((1_700_000_000, 0), (-5, 999_999_999));
    let mut lower = Layer::new("lower");
    let big = OBJECT_MIN as usize;
    lower.file("small", &meta(early), noise(1, 5000));
    lower.file("big", &meta(early), noise(2, 3 * big + 77));
    lower.file("gone", &meta(early), noise(3, 300));
    lower.builder.hard_link("d/again", "big").unwrap();
    lower
        .builder
        .symlink("link", &meta(early), "small")
        .unwrap();
    let long = "x/".repeat(2000) + "end";
    lower.builder.symlink("long", &meta(late), &long).unwrap();
    let owner = Meta {
        uid: 100_000,
        gid: 70_000,
        mode: 0o4711,
        ..meta(late)
    };
    lower.file("owned", &owner, noise(4, 1));
    for kind in [Kind::CharDevice, Kind::BlockDevice, Kind::Fifo] {
        let name = format!("special{kind:?}");
        let number = if kind == Kind::Fifo {
            (0, 0)
        } else {
            (8, 0x123)
        };
        lower
            .builder
            .special(&name, &meta(early), kind, number)
            .unwrap();
    }
    let mut upper = Layer::new("upper");
    let whiteout = upper.builder.file(".wh.gone", &meta(early), 0).unwrap();
    assert!(whiteout.is_none());
    upper.file("empty", &meta(late), Vec::new());
    upper.file("d/new", &meta(late), noise(5, 4096));
    upper.file("d/object", &meta(late), noise(6, big));
    let mounted = Mounted::new(&[lower.finish(), upper.finish()]);

    let root = mounted.tree.node(0).unwrap();
    assert_eq!(compare(&mounted, root, &mounted.at("")), 14);
    for (path, content) in [
        ("small", noise(1, 5000)),
        ("big", noise(2, 3 * big + 77)),
        ("d/again", noise(2, 3 * big + 77)),
        ("owned", noise(4, 1)),
        ("empty", Vec::new()),
        ("d/new", noise(5, 4096)),
        ("d/object", noise(6, big)),
        ("link", noise(1, 5000)),
    ] {
        let read = fs::read(mounted.at(path));
        assert!(read.unwrap_or_else(|error| panic!("{path}: {error}")) == content);
    }
    let inode = |path| fs::metadata(mounted.at(path)).unwrap().ino();
    assert_eq!(inode("big"), inode("d/again"));
    let fifo = fs::metadata(mounted.at("specialFifo")).unwrap();
    assert!(fifo.file_type().is_fifo());
}

#[test]
fn directories_of_many_blocks_are_listed_and_searched_whatever_their_names() {
    let mut layer = Layer::new("many");
    // Before and between the entries that every directory has, and after them.
    let odd = ["!", "-", ".!", ".-x", "..-", "...", ".a", "0", "~", "ü"];
    for name in odd {
        layer.builder.symlink(name, &meta((0, 0)), "t").unwrap();
    }
    let name = |n: usize| format!("many/{n:05}-{}", "n".repeat(n % 240));
    for n in 0..3000 {
        layer.builder.symlink(name(n), &meta((0, 0)), "t").unwrap();
    }
    // A directory that fills a block to the last byte: 12 bytes an entry, 3 of the dots.
    for n in 0..17 {
        let len = if n == 0 { 12 } else { 228 };
        let name = format!("full/{}", char::from(b'a' + n).to_string().repeat(len));
        layer.builder.symlink(&name, &meta((0, 0)), "t").unwrap();
    }
    let mounted = Mounted::new(&[layer.finish()]);
    let root = mounted.tree.node(0).unwrap();
    assert_eq!(
        compare(&mounted, root, &mounted.at("")),
        odd.len() + 3000 + 17 + 3
    );
    for n in (0..3000).step_by(37) {
        assert!(fs::symlink_metadata(mounted.at(&name(n))).is_ok(), "{n}");
        assert!(!mounted.at(&(name(n) + "x")).exists());
    }
}

#[test]
fn extended_attributes_are_those_of_the_layer() {
    let mut layer = Layer::new("xattrs");
    let capability = vec![
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let pairs: Vec<(&str, Vec<u8>)> = vec![
        ("security.capability", capability),
        ("user.empty", Vec::new()),
        ("user.long", noise(1, 6000)),
        ("security.t", b"abc".to_vec()),
    ];
    let xattrs = |names: &[usize]| Meta {
        xattrs: names
            .iter()
            .map(|n| (pairs[*n].0.as_bytes().to_vec(), pairs[*n].1.clone()))
            .collect(),
        ..meta((1, 2))
    };
    layer.file("all", &xattrs(&[0, 1, 2, 3]), noise(1, 100));
    layer.builder.symlink("link", &xattrs(&[3]), "all").unwrap();
    layer.builder.directory("dir", &xattrs(&[1, 2])).unwrap();
    let mounted = Mounted::new(&[layer.finish()]);
    let value = |path: &str, name: &str| {
        let mut value = vec![0; 8000];
        let len = rustix::fs::lgetxattr(mounted.at(path), name, &mut value);
        len.map(|len| value[..len].to_vec())
    };
    for (name, expected) in &pairs {
        assert!(value("all", name).unwrap() == *expected, "{name}");
    }
    assert_eq!(value("link", "security.t").unwrap(), b"abc");
    assert!(value("dir", "user.long").unwrap() == noise(1, 6000));
    assert!(value("dir", "security.t").is_err());
    assert!(fs::read(mounted.at("all")).unwrap() == noise(1, 100));
}

#[test]
fn attributes_that_erofs_cannot_hold_are_refused_by_name() {
    for (name, value) in [("system.nfs4_acl", 10), ("user.huge", 64 << 10)] {
        let mut layer = Layer::new("refused");
        let meta = Meta {
            xattrs: vec![(name.as_bytes().to_vec(), vec![1; value])],
            ..meta((0, 0))
        };
        layer.builder.directory("d", &meta).unwrap();
        let tree = Tree::merge(vec![layer.finish().0]).unwrap();
        let flaw = image(&tree).unwrap_err().to_string();
        assert!(flaw.contains(name), "{flaw}");
    }
}

#[test]
fn the_same_tree_is_the_same_image_and_most_inodes_are_short() {
    let make = || {
        let mut layer = Layer::new("same");
        for n in 0..1000 {
            let time = (1_700_000_000, 0);
            layer
                .builder
                .symlink(format!("{n}"), &meta(time), "t")
                .unwrap();
        }
        image(&Tree::merge(vec![layer.finish().0]).unwrap()).unwrap()
    };
    let image = make();
    assert!(image == make());
    // A slot of 32 bytes and one of the tail for each, and the directory.
    assert!(
        image.len() < 1000 * 64 + 1000 * 16 + 3 * 4096,
        "{}",
        image.len()
    );
}
