//! RAFS v5: the older layout, a table of inodes each followed by its name, target, attributes and
//! chunks. Directories are ranges of inode numbers. Only read, never written.

use std::collections::{HashMap, HashSet};

use bstr::BString;

use super::assemble::{Assembler, What, child, is_socket};
use super::blobs::{BlobInfo, ContextPlace};
use super::chunk::{self, Record};
use super::view::View;
use crate::digest::{Algorithm, Digest};
use crate::formats::Flaw;
use crate::index::{Codec, FileId, Kind, Meta};

const MAGIC: u32 = 0x5241_4653;
const VERSION: u32 = 0x500;
/// Number of the root directory.
const ROOT: u32 = 1;
/// Alignment of everything behind an inode, and unit of offsets in the inode table.
const ALIGN: u64 = 8;
/// Length of an inode.
const INODE_LEN: u64 = 128;
/// Length of an entry of the extended blob table.
const EXTENDED_LEN: u64 = 64;
/// Most blobs that are listed.
const MAX_BLOBS: usize = 4096;

/// Inode flag: the inode has extended attributes.
const HAS_XATTR: u64 = 4;
/// Inode flag: it is another name of the inode whose number it has.
const HARD_LINK: u64 = 2;

/// A bootstrap whose superblock and blob table were read.
#[derive(Debug)]
pub(super) struct Bootstrap<'a> {
    view: View<'a>,
    inodes: View<'a>,
    prefetch: View<'a>,
    chunk_size: u64,
    algorithm: Algorithm,
    blobs: Vec<BlobInfo>,
}

/// Whether `bytes` begin as a RAFS v5 bootstrap.
pub(super) fn is_v5(bytes: &[u8]) -> bool {
    let view = View::new("bootstrap", bytes);
    (view.u32(0, "magic"), view.u32(4, "version")) == (Ok(MAGIC), Ok(VERSION))
}

impl<'a> Bootstrap<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Flaw> {
        let view = View::new("bootstrap", bytes);
        let field = "a field of the superblock";
        let table = |offset, count, len, what| {
            let at = view.u64(offset, field)?;
            view.part(at, u64::from(view.u32(count, field)?) * len, what)
        };
        let flags = view.u64(16, field)?;
        let algorithm = match flags & 0xc {
            0x4 => Algorithm::Blake3,
            0x8 => Algorithm::Sha256,
            _ => return Err(view.flaw("it does not say how chunks are digested")),
        };
        let codec = match flags & 0xc3 {
            0x1 => Codec::Plain,
            0x2 => Codec::Lz4Block,
            0x40 => Codec::Gzip,
            0x80 => Codec::Zstd,
            _ => return Err(view.flaw("it does not say how chunks are packed")),
        };
        let blobs = table(48, 64, 1, "the blob table")?;
        let extended = match view.u32(68, field)? {
            0 => None,
            _ => Some(table(72, 68, EXTENDED_LEN, "the extended blob table")?),
        };
        Ok(Self {
            view,
            inodes: table(32, 56, 4, "the inode table")?,
            prefetch: match view.u32(60, field)? {
                0 => view.part(0, 0, "no prefetch table")?,
                _ => table(40, 60, 4, "the prefetch table")?,
            },
            chunk_size: u64::from(view.u32(12, field)?),
            algorithm,
            blobs: read_blobs(&blobs, extended.as_ref(), (codec, algorithm))?,
        })
    }

    pub(super) fn blobs(&self) -> &[BlobInfo] {
        &self.blobs
    }

    /// Adds everything to the index in the making.
    pub(super) fn assemble(&self, into: &mut Assembler<'_>) -> Result<(), Flaw> {
        into.algorithm(self.algorithm);
        let mut prefetch = HashMap::new();
        for at in (0..self.prefetch.len()).step_by(4) {
            prefetch.insert(self.prefetch.u32(at, "the prefetch table")?, at as u32 / 4);
        }
        let mut walk = Walk {
            bootstrap: self,
            into,
            met: HashMap::new(),
            links: Vec::new(),
            entered: HashSet::new(),
            prefetch,
            todo: Vec::new(),
        };
        walk.run()
    }

    fn inode(&self, number: u32) -> Result<Inode<'a>, Flaw> {
        let what = "an inode";
        let slot = u64::from(number).checked_sub(1);
        let slot = slot.ok_or_else(|| self.view.flaw("inode number 0"))?;
        let at = u64::from(self.inodes.u32(slot * 4, what)?) * ALIGN;
        let raw = self.view.part(at, INODE_LEN, what)?;
        let (name_len, target_len) = (raw.u16(100, what)?, raw.u16(102, what)?);
        let flags = raw.u64(80, what)?;
        let mut end = at + INODE_LEN;
        let mut take = |len: u64, what| {
            let bytes = self.view.slice(end, len, what);
            end += len.next_multiple_of(ALIGN);
            bytes
        };
        let name = take(u64::from(name_len), "a name")?;
        let target = take(u64::from(target_len), "a symbolic link's target")?;
        let xattrs = if flags & HAS_XATTR == 0 {
            &[][..]
        } else {
            let len = self.view.u64(end, "extended attributes")?;
            end += ALIGN;
            let xattrs = self.view.slice(end, len, "extended attributes")?;
            end += len.next_multiple_of(ALIGN);
            xattrs
        };
        Ok(Inode {
            raw,
            name,
            target,
            xattrs,
            flags,
            chunks_at: end,
        })
    }
}

/// Name and value of an extended attribute.
type Xattr = (Vec<u8>, Vec<u8>);

struct Inode<'a> {
    raw: View<'a>,
    name: &'a [u8],
    target: &'a [u8],
    xattrs: &'a [u8],
    flags: u64,
    chunks_at: u64,
}

impl Inode<'_> {
    fn mode(&self) -> Result<u32, Flaw> {
        self.raw.u32(60, "a mode")
    }

    fn size(&self) -> Result<u64, Flaw> {
        self.raw.u64(64, "a size")
    }

    /// The number by which hard links are known to belong together.
    fn number(&self) -> Result<u64, Flaw> {
        self.raw.u64(40, "an inode number")
    }

    /// First number and count of a directory's entries; of a file only the count means something.
    fn children(&self) -> Result<(u32, u32), Flaw> {
        Ok((self.raw.u32(92, "children")?, self.raw.u32(96, "children")?))
    }

    fn meta(&self) -> Result<Meta, Flaw> {
        let what = "an inode";
        let nanos = self.raw.u32(108, what)?;
        if nanos >= 1_000_000_000 {
            return Err(self.raw.flaw("a time has too many nanoseconds"));
        }
        Ok(Meta {
            mode: self.mode()? & 0o7777,
            uid: self.raw.u32(48, what)?,
            gid: self.raw.u32(52, what)?,
            mtime: (self.raw.u64(112, what)? as i64, nanos),
            xattrs: self.xattrs()?,
        })
    }

    fn xattrs(&self) -> Result<Vec<Xattr>, Flaw> {
        let view = View::new("bootstrap", self.xattrs);
        let what = "an extended attribute";
        let mut xattrs = Vec::new();
        let mut at = 0;
        while at < view.len() {
            let len = u64::from(view.u32(at, what)?);
            let pair = view.slice(at + 4, len, what)?;
            let end = pair.iter().position(|byte| *byte == 0);
            let end = end.ok_or_else(|| view.flaw("an extended attribute without a name"))?;
            xattrs.push((pair[..end].to_vec(), pair[end + 1..].to_vec()));
            at += 4 + len;
        }
        Ok(xattrs)
    }

    fn device(&self) -> Result<(u64, u64), Flaw> {
        let number = u64::from(self.raw.u32(104, "a device number")?);
        Ok((
            (number >> 8) & 0xfff,
            (number & 0xff) | ((number >> 12) & 0xf_ff00),
        ))
    }
}

/// The blob table: two words and the name of each blob, separated by zeros.
fn read_blobs(
    table: &View<'_>,
    extended: Option<&View<'_>>,
    (codec, algorithm): (Codec, Algorithm),
) -> Result<Vec<BlobInfo>, Flaw> {
    let mut blobs = Vec::new();
    let mut at = 0;
    while at + 8 < table.len() {
        let rest = table.slice(at + 8, table.len() - at - 8, "a blob's name")?;
        let end = rest
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(rest.len());
        let digest: Digest = std::str::from_utf8(&rest[..end])
            .ok()
            .and_then(|hex| format!("sha256:{hex}").parse().ok())
            .ok_or_else(|| table.flaw("a blob's name is not a SHA-256 digest"))?;
        let id = blobs.len() as u64;
        if blobs.len() == MAX_BLOBS {
            return Err(table.flaw(format_args!("more than {MAX_BLOBS} blobs")));
        }
        let field = "the extended blob table";
        let features = match extended {
            Some(extended) => extended.u32(id * EXTENDED_LEN + 4, field)?,
            None => 0,
        };
        blobs.push(BlobInfo {
            digest,
            codec,
            algorithm,
            features,
            chunks: 0,
            meta: None,
            context: ContextPlace {
                codec: Codec::Plain,
                offset: 0,
                packed_len: 0,
                len: 0,
            },
        });
        at += 8 + end as u64 + 1;
    }
    Ok(blobs)
}

/// A directory that is still to be read.
struct Directory {
    number: u32,
    path: BString,
    /// Its place in the prefetch table, or that of a directory above it.
    wanted: Option<u32>,
}

struct Walk<'a, 'b, 'c> {
    bootstrap: &'b Bootstrap<'a>,
    into: &'b mut Assembler<'c>,
    /// Inodes that were met, for hard links.
    met: HashMap<u64, FileId>,
    /// Links, whose own attributes mean nothing: numbers and paths, for the end.
    links: Vec<(u32, BString)>,
    entered: HashSet<u32>,
    prefetch: HashMap<u32, u32>,
    todo: Vec<Directory>,
}

impl Walk<'_, '_, '_> {
    fn run(&mut self) -> Result<(), Flaw> {
        let root = self.bootstrap.inode(ROOT)?;
        if Kind::of_mode(root.mode()?) != Kind::Directory {
            return Err(self.bootstrap.view.flaw("the root is no directory"));
        }
        self.directory(ROOT, BString::default(), &root, None)?;
        while let Some(directory) = self.todo.pop() {
            let inode = self.bootstrap.inode(directory.number)?;
            let (first, count) = inode.children()?;
            for number in first..first.saturating_add(count) {
                self.entry(&directory, number)?;
            }
        }
        // By now the inode that a link belongs to was met, unless an upper layer has removed it:
        // then the first link takes its place.
        for (number, path) in std::mem::take(&mut self.links) {
            let inode = self.bootstrap.inode(number)?;
            self.leaf(&path, &inode, (Kind::of_mode(inode.mode()?), None))?;
        }
        Ok(())
    }

    fn entry(&mut self, directory: &Directory, number: u32) -> Result<(), Flaw> {
        let in_directory = |flaw| Flaw::entry(&directory.path, flaw);
        let inode = self.bootstrap.inode(number).map_err(in_directory)?;
        let path = child(&directory.path, inode.name)?;
        let wanted = self.prefetch.get(&number).copied().or(directory.wanted);
        let mode = inode.mode()?;
        match Kind::of_mode(mode) {
            _ if is_socket(mode) => Ok(()),
            Kind::Directory => self.directory(number, path, &inode, wanted),
            _ if inode.flags & HARD_LINK != 0 => {
                self.links.push((number, path));
                Ok(())
            }
            kind => self.leaf(&path, &inode, (kind, wanted)),
        }
    }

    fn directory(
        &mut self,
        number: u32,
        path: BString,
        inode: &Inode<'_>,
        wanted: Option<u32>,
    ) -> Result<(), Flaw> {
        if !self.entered.insert(number) {
            return Err(Flaw::entry(&path, "the directory has another name already"));
        }
        let meta = inode.meta().map_err(|flaw| Flaw::entry(&path, flaw))?;
        self.into.directory(&path, &meta)?;
        self.todo.push(Directory {
            number,
            path,
            wanted,
        });
        Ok(())
    }

    fn leaf(
        &mut self,
        path: &[u8],
        inode: &Inode<'_>,
        (kind, wanted): (Kind, Option<u32>),
    ) -> Result<(), Flaw> {
        let number = inode.number()?;
        match self.met.get(&number) {
            Some(&file) if inode.flags & HARD_LINK != 0 => return self.into.link(path, file),
            _ => {}
        }
        let meta = inode.meta().map_err(|flaw| Flaw::entry(path, flaw))?;
        let what = match kind {
            Kind::Symlink => What::Symlink(inode.target),
            Kind::File | Kind::Directory => What::File(inode.size()?),
            special => What::Special(special, inode.device()?),
        };
        let Some(file) = self.into.leaf(path, &meta, &what)? else {
            return Ok(());
        };
        self.met.insert(number, file);
        if kind == Kind::File {
            self.contents(path, file, inode)?;
            if let Some(order) = wanted {
                self.into.want(order, file);
            }
        }
        Ok(())
    }

    fn contents(&mut self, path: &[u8], file: FileId, inode: &Inode<'_>) -> Result<(), Flaw> {
        let (size, (_, count)) = (inode.size()?, inode.children()?);
        let len = u64::from(count) * chunk::LEN;
        let view = self
            .bootstrap
            .view
            .part(inode.chunks_at, len, "a file's chunks");
        let view = view.map_err(|flaw| Flaw::entry(path, flaw))?;
        for at in (0..len).step_by(chunk::LEN as usize) {
            let record = Record::read(&view, at)?;
            let left = size.saturating_sub(record.file_offset);
            let place = (record.file_offset, left.min(self.bootstrap.chunk_size));
            self.into.chunk(path, file, place, &record)?;
        }
        Ok(())
    }
}
