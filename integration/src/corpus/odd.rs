//! Images of what Debian's packages never hold: every type of file, names, attributes, times and
//! sizes at their limits, links, and layers that hide and replace what is below them.
//!
//! They are made by this program, entry by entry: no tar program writes all of this.

use std::io::{self, Read, Write};
use std::path::Path;

use tar::EntryType;

use super::layout::{Layout, Packing};
use crate::error::{Error, Result};

/// Four layers, packed by gzip, zstd, not at all, and gzip.
pub const ODD: &str = "odd";
/// Two layers of names and link targets that are no UTF-8: no format with a JSON table can hold them.
pub const BYTES: &str = "bytes";
/// A layer with a file in GNU's sparse form of PAX, which OCI advises against and containerd unpacks.
pub const SPARSE: &str = "sparse";
/// A name that a layer has twice: the last one counts.
pub const TWICE: &str = "twice";
/// Times that containerd's unpack does not set: before 1970, and after what 64 bits of nanoseconds
/// hold.
pub const TIMES: &str = "times";
/// A file of more than 2³² bytes, most of them zero: some seconds of work for everybody.
pub const HUGE: &str = "huge";

/// Size of the file in [`HUGE`]: its last byte needs 33 bits of offset.
const HUGE_SIZE: u64 = (1 << 32) + 4097;

/// Writes the layout of one of these images into `directory`, which must not exist.
pub fn build(image: &str, directory: &Path) -> Result<()> {
    let layout = Layout::create(directory)?;
    let layers = match image {
        ODD => vec![
            layout.add_archive(Packing::Gzip, |out| archive(out, first()))?,
            layout.add_archive(Packing::Zstd, |out| archive(out, second()))?,
            layout.add_archive(Packing::None, |out| archive(out, third()))?,
            layout.add_archive(Packing::Gzip, |out| archive(out, fourth()))?,
        ],
        BYTES => vec![
            layout.add_archive(Packing::Gzip, |out| archive(out, bytes()))?,
            layout.add_archive(Packing::Gzip, |out| archive(out, hidden_bytes()))?,
        ],
        TWICE => vec![layout.add_archive(Packing::Gzip, |out| archive(out, twice()))?],
        TIMES => vec![layout.add_archive(Packing::Gzip, |out| archive(out, times()))?],
        SPARSE => vec![layout.add_archive(Packing::Gzip, sparse)?],
        HUGE => vec![layout.add_archive(Packing::Gzip, huge)?],
        _ => return Err(Error::invalid(image, "no such crafted image")),
    };
    layout.finish(image, &layers, &["/none"])
}

/// One entry of an archive.
#[derive(Debug, Clone)]
struct Item {
    name: Vec<u8>,
    kind: EntryType,
    mode: u32,
    owner: (u64, u64),
    /// As PAX writes it: decimal seconds.
    modified: &'static str,
    data: Vec<u8>,
    link: Vec<u8>,
    device: (u32, u32),
    attributes: Vec<(&'static str, Vec<u8>)>,
}

impl Item {
    fn new(kind: EntryType, name: impl AsRef<[u8]>) -> Self {
        let mode = match kind {
            EntryType::Directory => 0o755,
            EntryType::Symlink => 0o777,
            _ => 0o644,
        };
        Self {
            name: name.as_ref().to_vec(),
            kind,
            mode,
            owner: (0, 0),
            modified: "1700000000",
            data: Vec::new(),
            link: Vec::new(),
            device: (0, 0),
            attributes: Vec::new(),
        }
    }

    fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        let data = data.as_ref().to_vec();
        Self {
            data,
            ..Self::new(EntryType::Regular, name)
        }
    }

    fn directory(name: impl AsRef<[u8]>) -> Self {
        Self::new(EntryType::Directory, name)
    }

    fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let link = target.as_ref().to_vec();
        Self {
            link,
            ..Self::new(EntryType::Symlink, name)
        }
    }

    fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let link = target.as_ref().to_vec();
        Self {
            link,
            ..Self::new(EntryType::Link, name)
        }
    }

    fn device(kind: EntryType, name: &str, device: (u32, u32)) -> Self {
        Self {
            device,
            ..Self::new(kind, name)
        }
    }

    fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    fn owner(mut self, user: u64, group: u64) -> Self {
        self.owner = (user, group);
        self
    }

    fn modified(mut self, time: &'static str) -> Self {
        self.modified = time;
        self
    }

    fn attribute(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        self.attributes.push((name, value.as_ref().to_vec()));
        self
    }

    /// What the header cannot say: (PAX key, value).
    fn extensions(&self) -> Vec<(String, Vec<u8>)> {
        let mut extensions = Vec::new();
        let mut say = |key: &str, value: &[u8]| extensions.push((key.to_owned(), value.to_vec()));
        if self.name.len() > 100 {
            say("path", &self.name);
        }
        if self.link.len() > 100 {
            say("linkpath", &self.link);
        }
        for (key, id) in [("uid", self.owner.0), ("gid", self.owner.1)] {
            if id > LARGEST_ID {
                say(key, id.to_string().as_bytes());
            }
        }
        if self.plain_time().is_none() {
            say("mtime", self.modified.as_bytes());
        }
        for (name, value) in &self.attributes {
            say(&format!("SCHILY.xattr.{name}"), value);
        }
        extensions
    }

    /// The time if eleven octal digits hold it.
    fn plain_time(&self) -> Option<u64> {
        self.modified.parse().ok().filter(|time| *time < 1 << 33)
    }

    fn header(&self) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        let old = header.as_old_mut();
        let (name, link) = (self.name.len().min(100), self.link.len().min(100));
        old.name[..name].copy_from_slice(&self.name[..name]);
        old.linkname[..link].copy_from_slice(&self.link[..link]);
        header.set_entry_type(self.kind);
        header.set_mode(self.mode);
        header.set_uid(self.owner.0.min(LARGEST_ID));
        header.set_gid(self.owner.1.min(LARGEST_ID));
        header.set_mtime(self.plain_time().unwrap_or(0));
        header.set_size(self.data.len() as u64);
        if let Some(ustar) = header.as_ustar_mut() {
            ustar.set_device_major(self.device.0);
            ustar.set_device_minor(self.device.1);
        }
        header.set_cksum();
        header
    }
}

/// The largest owner that seven octal digits hold.
const LARGEST_ID: u64 = 0o777_7777;

fn archive(output: &mut dyn Write, items: Vec<Item>) -> Result<()> {
    let mut tar = tar::Builder::new(output);
    for item in items {
        let extensions = item.extensions();
        let extensions = extensions.iter().map(|(key, value)| (&**key, &**value));
        tar.append_pax_extensions(extensions)
            .and_then(|()| tar.append(&item.header(), &*item.data))
            .map_err(Error::system("archive an odd layer"))?;
    }
    tar.finish().map_err(Error::system("archive an odd layer"))
}

/// Bytes that do not compress and are the same every time.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// One of everything.
fn first() -> Vec<Item> {
    let mut items = vec![
        Item::directory("./"),
        Item::directory("bin/"),
        Item::directory("types"),
        Item::file("types/file", "text"),
        Item::file("types/empty", ""),
        Item::new(EntryType::Fifo, "types/pipe").mode(0o620),
        Item::device(EntryType::Char, "types/null", (1, 3)).mode(0o666),
        Item::device(EntryType::Char, "types/large-numbers", (511, 300_000)),
        Item::device(EntryType::Block, "types/loop", (7, 1)).mode(0o660),
        Item::symlink("types/relative", "../types/file").owner(7, 8),
        Item::symlink("types/absolute", "/types/file"),
        Item::symlink("types/dangling", "nowhere"),
        Item::symlink("types/loop-a", "loop-b"),
        Item::symlink("types/loop-b", "loop-a"),
        Item::symlink("types/self", "self"),
        Item::symlink("types/up", "../../../../../../etc/passwd"),
        Item::symlink("types/long", "a/".repeat(2000)),
    ];
    items.extend(names());
    items.extend(attributes());
    items.extend(modes_and_times());
    items.extend(links());
    items.extend(sizes());
    items.extend(to_be_changed());
    items
}

fn names() -> Vec<Item> {
    let long = "n".repeat(255);
    let mut items = vec![Item::directory("names")];
    let names: [&[u8]; 13] = [
        "日本語 ✓".as_bytes(),
        b" leading and trailing ",
        b"new\nline\ttab",
        b"back\\slash",
        b"\"quoted' $(x) *?",
        b"-rf",
        b"...",
        b".hidden",
        b".whx",
        b"x.wh.y",
        b"trailing.",
        b"\x01\x7f",
        long.as_bytes(),
    ];
    for name in names {
        items.push(Item::file([b"names/", name].concat(), name));
    }
    // A path near PATH_MAX, and a directory of many names.
    let mut deep = "names".to_owned();
    for level in 0..15 {
        deep = format!("{deep}/{level:03}{}", "d".repeat(197));
        items.push(Item::directory(&deep));
    }
    items.push(Item::file(deep + "/bottom", "deep"));
    items.push(Item::directory("names/many"));
    for number in 0..600 {
        let name = format!("names/many/{number}-{}", "m".repeat(number % 200));
        items.push(Item::file(name, number.to_string()));
    }
    items
}

fn bytes() -> Vec<Item> {
    vec![
        Item::directory("./"),
        Item::directory(b"caf\xe9"),
        Item::file(b"caf\xe9/\xff\xfe\x80", "in latin-1"),
        Item::file([b"caf\xe9/".as_slice(), &[0xe9; 200]].concat(), "long"),
        Item::symlink("bytes", b"caf\xe9/\xff\xfe\x80"),
        Item::hard_link(b"\x80", b"caf\xe9/\xff\xfe\x80"),
        Item::file("attribute", "").attribute("user.bytes", b"\xff\xfe"),
    ]
}

fn hidden_bytes() -> Vec<Item> {
    vec![
        Item::directory(b"caf\xe9"),
        Item::file([b"caf\xe9/.wh.".as_slice(), &[0xe9; 200]].concat(), ""),
        Item::file(b"caf\xe9/new\xff", "new"),
    ]
}

fn twice() -> Vec<Item> {
    vec![
        Item::directory("./"),
        Item::file("twice", noise(5000, 10)),
        Item::file("other", "other"),
        Item::file("twice", "again").mode(0o600),
    ]
}

fn times() -> Vec<Item> {
    vec![
        Item::directory("./"),
        Item::file("before", "").modified("-86400"),
        Item::file("before-with-part", "").modified("-1.25"),
        Item::file("2300", "").modified("10413792000"),
    ]
}

fn attributes() -> Vec<Item> {
    // VFS_CAP_REVISION_2 with the effective bit: cap_net_bind_service, cap_net_raw.
    let capability: [u8; 20] = [
        1, 0, 0, 2, 0, 0x24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let mut many = Item::file("attributes/many", "many");
    for name in ["user.a", "user.b", "user.c", "user.d", "user.e", "user.f"] {
        many = many.attribute(name, name.repeat(20));
    }
    vec![
        Item::directory("attributes").attribute("user.directory", "yes"),
        Item::file("attributes/capable", "#!")
            .mode(0o755)
            .attribute("security.capability", capability),
        Item::file("attributes/empty", "").attribute("user.empty", ""),
        Item::file("attributes/binary", "x").attribute("user.binary", b"\0\xff\n=\0"),
        Item::file("attributes/large", "x").attribute("user.large", noise(2000, 3)),
        Item::file("attributes/trusted", "x").attribute("trusted.mine", "t"),
        many,
    ]
}

fn modes_and_times() -> Vec<Item> {
    vec![
        Item::directory("modes").mode(0o700).owner(1000, 1000),
        Item::file("modes/setuid", "s")
            .mode(0o4755)
            .owner(12345, 54321),
        Item::file("modes/setgid", "s").mode(0o2711),
        Item::file("modes/none", "s").mode(0),
        Item::file("modes/all", "s").mode(0o7777),
        Item::directory("modes/sticky").mode(0o1777),
        Item::directory("modes/inherit").mode(0o2775).owner(0, 50),
        Item::file("modes/large-owner", "s").owner(4_000_000_000, 2_097_152),
        Item::directory("times").modified("1234567890.5"),
        Item::file("times/nanoseconds", "t").modified("1600000000.123456789"),
        Item::file("times/epoch", "t").modified("0"),
        Item::file("times/2040", "t").modified("2208988800"),
        Item::file("times/2200", "t").modified("7258118400"),
        Item::symlink("times/link", "epoch").modified("1500000000.000000001"),
    ]
}

fn links() -> Vec<Item> {
    vec![
        Item::directory("links"),
        Item::directory("links/sub"),
        Item::file("links/z-first", "shared"),
        Item::hard_link("links/a-second", "links/z-first"),
        Item::hard_link("links/sub/third", "links/a-second"),
        Item::symlink("links/symlink", "z-first"),
        Item::hard_link("links/symlink-again", "links/symlink"),
        Item::new(EntryType::Fifo, "links/pipe"),
        Item::hard_link("links/pipe-again", "./links/pipe"),
        Item::file("links/large", noise(300_000, 4)),
        Item::hard_link("links/large-again", "links/large"),
        Item::file("links/partly-gone", "two names below, one above"),
        Item::hard_link("links/stays", "links/partly-gone"),
    ]
}

/// Around blocks, packed files and chunks.
fn sizes() -> Vec<Item> {
    let mut items = vec![Item::directory("sizes")];
    let edges = [1, 4096, 8192, 65536, 128 << 10, 1 << 20];
    for (seed, edge) in edges.into_iter().enumerate() {
        for size in [edge - 1, edge, edge + 1] {
            items.push(Item::file(
                format!("sizes/{size}"),
                noise(size, seed as u64),
            ));
        }
    }
    items.push(Item::file("sizes/chunks", noise((4 << 20) + 1, 8)));
    let mut holes = noise(3 << 20, 9);
    holes[100_000..2_500_000].fill(0);
    items.push(Item::file("sizes/holes", holes));
    items.push(Item::file("sizes/zeros", vec![0; (2 << 20) + 17]));
    items
}

/// What the layers above hide and replace.
fn to_be_changed() -> Vec<Item> {
    let mut items = vec![Item::directory("hide")];
    for name in ["gone", "back", "kept", "gone-twice"] {
        items.push(Item::file(format!("hide/{name}"), name));
    }
    for name in [
        "hide/tree",
        "hide/tree/deep",
        "hide/again",
        "opaque",
        "opaque/a",
        "opaque/a/b",
    ] {
        items.push(Item::directory(name));
        items.push(Item::file(format!("{name}/below"), name));
    }
    items.push(Item::directory("swap"));
    for name in ["file-to-directory", "file-to-link", "file-to-pipe"] {
        items.push(Item::file(format!("swap/{name}"), name));
    }
    for name in [
        "directory-to-file",
        "directory-to-link",
        "directory-to-mode",
    ] {
        items.push(Item::directory(format!("swap/{name}")));
        items.push(Item::file(format!("swap/{name}/below"), name));
    }
    items.push(Item::symlink("swap/link-to-directory", "directory-to-mode"));
    items.push(Item::symlink("swap/link-to-file", "file-to-link"));
    items.push(Item::new(EntryType::Fifo, "swap/pipe-to-file"));
    items
}

/// Hides, makes opaque and changes types.
fn second() -> Vec<Item> {
    vec![
        Item::directory("./").modified("1700000001"),
        Item::directory("hide").modified("1700000002.5"),
        Item::file("hide/.wh.gone", ""),
        Item::file("hide/.wh.gone-twice", ""),
        Item::file("hide/.wh.back", ""),
        Item::file("hide/.wh.tree", ""),
        Item::file("hide/.wh.never-there", ""),
        Item::file("hide/.wh.again", ""),
        Item::directory("opaque").mode(0o711),
        Item::directory("opaque/a").attribute("user.opaque", "too"),
        Item::file("opaque/a/.wh..wh..opq", ""),
        Item::file("opaque/a/new", "new"),
        Item::directory("opaque/a/b"),
        Item::file("opaque/a/b/new", "new"),
        Item::directory("swap"),
        Item::file("swap/.wh.file-to-directory", ""),
        Item::directory("swap/file-to-directory"),
        Item::file("swap/file-to-directory/inside", "inside"),
        Item::symlink("swap/file-to-link", "nowhere"),
        Item::new(EntryType::Fifo, "swap/file-to-pipe"),
        Item::file("swap/directory-to-file", "now a file"),
        Item::symlink("swap/directory-to-link", "directory-to-mode"),
        Item::directory("swap/directory-to-mode")
            .mode(0o3750)
            .owner(3, 4),
        Item::directory("swap/link-to-directory"),
        Item::file("swap/link-to-directory/inside", "inside"),
        Item::file("swap/link-to-file", "now a file"),
        Item::file("swap/pipe-to-file", "now a file"),
        Item::directory("links"),
        Item::file("links/.wh.partly-gone", ""),
        Item::directory("upper"),
        Item::file("upper/one", "of two").modified("1.000000001"),
        Item::hard_link("upper/two", "upper/one").modified("1.000000001"),
    ]
}

/// Brings back, and hides what the second layer added.
fn third() -> Vec<Item> {
    vec![
        Item::directory("./").modified("1700000003"),
        Item::directory("hide"),
        Item::file("hide/back", "back again"),
        Item::directory("hide/again").mode(0o700),
        Item::file("hide/again/new", "and only this"),
        Item::file("hide/.wh.gone-twice", ""),
        Item::directory("opaque"),
        Item::directory("opaque/a"),
        Item::directory("opaque/a/b"),
        Item::file("opaque/a/b/.wh.new", ""),
        Item::directory("upper"),
        Item::file("upper/.wh.one", ""),
        Item::file("upper/large", noise(700_000, 11)),
        Item::directory("swap"),
        Item::file("swap/.wh.file-to-directory", ""),
        Item::file("swap/file-to-directory", "a file after all"),
    ]
}

/// Opaque in an opaque directory, and a change of nothing but metadata.
fn fourth() -> Vec<Item> {
    vec![
        Item::directory("./").mode(0o555).modified("1700000004.25"),
        Item::directory("opaque").owner(9, 9),
        Item::file("opaque/.wh..wh..opq", ""),
        Item::directory("opaque/a").mode(0o1700),
        Item::file("opaque/a/last", "last"),
        Item::directory("names").mode(0o750),
        Item::directory("names/many").modified("5"),
        Item::file("names/many/.wh.7-mmmmmmm", ""),
        Item::file("names/many/0-", "zero"),
    ]
}

/// A file of 1 MiB with data at both ends and in the middle, as GNU tar writes it with
/// `--format=pax --sparse`: a map in decimal lines up to the next block, then the data.
fn sparse(output: &mut dyn Write) -> Result<()> {
    const SIZE: usize = 1 << 20;
    let segments = [(0, 512), (512 << 10, 1024), (SIZE - 100, 100)];
    let mut data = format!("{}\n", segments.len());
    for (offset, length) in segments {
        data = format!("{data}{offset}\n{length}\n");
    }
    let mut data = data.into_bytes();
    data.resize(512, 0);
    data.extend(noise(512 + 1024 + 100, 12));
    let size = SIZE.to_string();
    let extensions = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "sparse"),
        ("GNU.sparse.realsize", &size),
    ];
    let mut tar = tar::Builder::new(output);
    tar.append(&Item::directory("./").header(), io::empty())
        .and_then(|()| {
            tar.append_pax_extensions(extensions.map(|(key, value)| (key, value.as_bytes())))
        })
        .and_then(|()| {
            let item = Item::file("GNUSparseFile.0/sparse", data);
            tar.append(&item.header(), &*item.data)
        })
        .and_then(|()| tar.finish())
        .map_err(Error::system("archive a sparse file"))
}

/// One file of [`HUGE_SIZE`] bytes: noise at both ends and across 2³², zeros between.
fn huge(output: &mut dyn Write) -> Result<()> {
    let end = noise(1 << 20, 13);
    let zeros = HUGE_SIZE - 2 * end.len() as u64;
    let data = (&*end).chain(io::repeat(0).take(zeros)).chain(&*end);
    let mut header = Item::file("huge", "").header();
    header.set_size(HUGE_SIZE);
    header.set_cksum();
    let mut tar = tar::Builder::new(output);
    tar.append(&Item::directory("./").header(), io::empty())
        .and_then(|()| tar.append(&header, data))
        .and_then(|()| tar.finish())
        .map_err(Error::system("archive a huge file"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn crafted_images_are_the_same_every_time() {
        let work = tempfile::tempdir().unwrap();
        for image in [ODD, BYTES, TWICE, TIMES, SPARSE] {
            let [one, two] = [1, 2].map(|number| {
                let directory = work.path().join(format!("{image}-{number}"));
                build(image, &directory).unwrap();
                fs::read(directory.join("index.json")).unwrap()
            });
            assert_eq!(one, two);
        }
        assert!(build("nothing", &work.path().join("x")).is_err());
    }

    #[test]
    fn what_a_header_cannot_say_is_said_in_its_extensions() {
        let item = Item::file("f", "").owner(4_000_000_000, 1).modified("-1.5");
        let said = item.extensions();
        let keys: Vec<_> = said.iter().map(|(key, _)| &**key).collect();
        assert_eq!(keys, ["uid", "mtime"]);
        assert_eq!(said[1].1, b"-1.5");
        assert!(Item::file("f", "").extensions().is_empty());
    }
}
