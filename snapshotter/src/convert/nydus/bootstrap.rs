//! Writes a RAFS v6 bootstrap: an EROFS image that kernels mount, with Nydus' tables beside it.
//!
//! ```text
//! 1024  superblock, extension, device slots
//!       blob table           at a multiple of 4096, as all that follows but the next
//!       prefetch table       4-byte numbers of the inodes that are wanted first
//!       inodes               each with its attributes, and its entries' last block or chunk indexes
//!       blocks of entries    of directories that do not fit beside their inode
//!       chunk table
//! ```
//!
//! Places are given first, bytes are written then: entries name inodes by their places.

use std::collections::BTreeMap;

use super::blob::{Chunk, Stored};
use super::devices::{BLOCK, Devices};
use super::tree::{Directory, Inode, Tree};
use crate::convert::tar::TarEntry;
use crate::digest::Algorithm;
use crate::formats::Flaw;
use crate::formats::estargz::toc::EntryType;
use crate::formats::nydus::layout::{
    BLOB_LEN, COMPAT_RAFS_V6, DEVICE_LEN, DEVICES_OFFSET, DIRENT_LEN, FLAG_BLAKE3,
    FLAG_EXPLICIT_OWNER, FLAG_SHA256, FLAG_XATTRS, INCOMPAT, MAGIC, SLOT, SUPER_LEN, SUPER_OFFSET,
    XATTR_HEAD, XATTR_PREFIXES,
};

const BLOCK_BITS: u8 = 12;
/// Length of an inode of the long form, the only one that has a time of its own.
const INODE_LEN: u64 = 64;
/// A chunk record's flag: the chunk is packed.
const CHUNK_PACKED: u32 = 1;
/// A file's chunks are given as 8-byte indexes.
const CHUNK_INDEXES: u32 = 0x20;
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;
const CHUNK_BASED: u16 = 4;

/// Where an inode and its data lie.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    at: u64,
    /// Bytes of the inode's attributes.
    xattr_len: u64,
    layout: u16,
    /// First block of the data that is not inline, in bytes.
    blocks: u64,
    /// Bytes of a directory's entries.
    data_len: u64,
}

/// Makes the bootstrap of `tree`, whose files lie in the blobs of `devices`; those at the paths
/// `wanted` are to be fetched first.
pub(super) fn write(
    tree: &Tree,
    directories: &[Directory],
    devices: &Devices<'_>,
    wanted: &[String],
    chunk_size: u64,
) -> Result<Vec<u8>, Flaw> {
    let mut image = Image {
        tree,
        directories,
        devices,
        wanted: tree.files(wanted),
        chunk_size,
        places: Vec::new(),
        meta_at: 0,
        chunks_at: 0,
        bytes: Vec::new(),
    };
    image.lay_out()?;
    image.write()?;
    Ok(image.bytes)
}

struct Image<'a> {
    tree: &'a Tree,
    directories: &'a [Directory],
    devices: &'a Devices<'a>,
    /// Inodes for the prefetch table.
    wanted: Vec<usize>,
    chunk_size: u64,
    places: Vec<Place>,
    meta_at: u64,
    chunks_at: u64,
    bytes: Vec<u8>,
}

impl Image<'_> {
    fn blob_table_at(&self) -> u64 {
        (DEVICES_OFFSET + self.devices.len() as u64 * DEVICE_LEN).next_multiple_of(BLOCK)
    }

    fn prefetch_at(&self) -> u64 {
        self.blob_table_at() + self.devices.len() as u64 * BLOB_LEN
    }

    fn lay_out(&mut self) -> Result<(), Flaw> {
        let tables = self.prefetch_at() + self.wanted.len() as u64 * 4;
        // Inode number 0 is no file for some programs, so numbers count from a block before.
        self.meta_at = tables.next_multiple_of(BLOCK) - BLOCK;
        let mut at = self.meta_at + BLOCK;
        self.places = vec![Place::default(); self.tree.inodes.len()];
        let mut sizes = vec![0; self.tree.inodes.len()];
        for directory in self.directories {
            sizes[directory.inode] = entries_len(directory);
        }
        // The root comes first: its number has 16 bits only. Inodes without a name are left out.
        for (inode, (node, entries)) in self.tree.inodes.iter().zip(sizes).enumerate() {
            if node.links == 0 {
                continue;
            }
            let xattr_len = xattrs_len(&node.entry)?;
            let (layout, inline) = self.shape(node, entries, xattr_len);
            let whole = INODE_LEN + xattr_len + inline;
            at = at.next_multiple_of(SLOT);
            // What is inline must not cross a block's end.
            if layout == FLAT_INLINE && at % BLOCK + whole > BLOCK {
                at = at.next_multiple_of(BLOCK);
            }
            self.places[inode] = Place {
                at,
                xattr_len,
                layout,
                blocks: 0,
                data_len: entries,
            };
            at += whole;
        }
        at = at.next_multiple_of(BLOCK);
        for directory in self.directories {
            let place = &mut self.places[directory.inode];
            place.blocks = at;
            at += blocks_len(entries_len(directory), place.layout);
        }
        for (place, inode) in self.places.iter_mut().zip(&self.tree.inodes) {
            if inode.entry.kind == EntryType::Symlink && inode.links > 0 {
                place.blocks = at;
                at += blocks_len(inode.entry.link.len() as u64, place.layout);
            }
        }
        self.chunks_at = at;
        if at / BLOCK > u64::from(u32::MAX) {
            return Err(Flaw::new("the bootstrap exceeds 16 TiB"));
        }
        Ok(())
    }

    /// The layout of an inode's data, and the bytes of it that lie behind the inode.
    fn shape(&self, inode: &Inode, entries: u64, xattr_len: u64) -> (u16, u64) {
        let data = match inode.entry.kind {
            EntryType::Dir => entries,
            EntryType::Symlink => inode.entry.link.len() as u64,
            EntryType::Reg => {
                let count = inode.entry.size.div_ceil(self.chunk_size);
                let gap = (INODE_LEN + xattr_len).next_multiple_of(8) - INODE_LEN - xattr_len;
                return (CHUNK_BASED, gap + count * 8);
            }
            _ => return (FLAT_PLAIN, 0),
        };
        let tail = data % BLOCK;
        if tail > 0 && INODE_LEN + xattr_len + tail <= BLOCK {
            (FLAT_INLINE, tail)
        } else {
            (FLAT_PLAIN, 0)
        }
    }

    fn write(&mut self) -> Result<(), Flaw> {
        let records = self.records();
        let end = self.chunks_at + records.len() as u64;
        self.bytes = vec![0; end.next_multiple_of(BLOCK) as usize];
        self.put(self.chunks_at, &records);
        for (number, inode) in self.tree.inodes.iter().enumerate() {
            if inode.links > 0 {
                self.inode(number, inode)?;
            }
        }
        for directory in self.directories {
            let place = self.places[directory.inode];
            let data = self.entries(directory)?;
            self.data(place, &data);
        }
        self.tables(records.len() as u64);
        Ok(())
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn number(&self, inode: usize) -> u64 {
        (self.places[inode].at - self.meta_at) / SLOT
    }

    fn inode(&mut self, number: usize, inode: &Inode) -> Result<(), Flaw> {
        let (entry, place) = (&inode.entry, self.places[number]);
        let refuse = |what: &str| Flaw::entry(&entry.name, what);
        let union = match entry.kind {
            EntryType::Reg => CHUNK_INDEXES | (self.chunk_size.ilog2() - u32::from(BLOCK_BITS)),
            EntryType::Char | EntryType::Block => device(entry)?,
            _ => (place.blocks / BLOCK) as u32,
        };
        let size = match entry.kind {
            EntryType::Reg => entry.size,
            EntryType::Symlink => entry.link.len() as u64,
            EntryType::Dir => place.data_len,
            _ => 0,
        };
        let id = |id: u64| u32::try_from(id).map_err(|_| refuse("bad owner"));
        let xattr_words = match place.xattr_len {
            0 => 0,
            len => (len - XATTR_HEAD) / 4 + 1,
        };
        let mode = type_bits(entry.kind) | (entry.mode & 0o7777) as u16;
        let mut raw = Vec::with_capacity(INODE_LEN as usize);
        for half in [1 | place.layout << 1, xattr_words as u16, mode, 0] {
            raw.extend_from_slice(&half.to_le_bytes());
        }
        raw.extend_from_slice(&size.to_le_bytes());
        let serial = self.number(number) as u32;
        for word in [union, serial, id(entry.uid)?, id(entry.gid)?] {
            raw.extend_from_slice(&word.to_le_bytes());
        }
        raw.extend_from_slice(&entry.mtime.seconds.to_le_bytes());
        for word in [entry.mtime.nanos, inode.links] {
            raw.extend_from_slice(&word.to_le_bytes());
        }
        self.put(place.at, &raw);
        let xattrs = xattrs(entry)?;
        self.put(place.at + INODE_LEN, &xattrs);
        match entry.kind {
            EntryType::Symlink => self.data(place, &entry.link),
            EntryType::Reg => {
                let indexes = self.indexes(inode);
                let at = (INODE_LEN + place.xattr_len).next_multiple_of(8);
                self.put(place.at + at, &indexes);
            }
            _ => {}
        }
        Ok(())
    }

    /// Puts the data of a directory or symbolic link where its layout says.
    fn data(&mut self, place: Place, data: &[u8]) {
        let tail = match place.layout {
            FLAT_INLINE => data.len() % BLOCK as usize,
            _ => 0,
        };
        let (blocks, tail) = data.split_at(data.len() - tail);
        self.put(place.blocks, blocks);
        self.put(place.at + INODE_LEN + place.xattr_len, tail);
    }

    /// A directory's entries, block after block; each begins with the records of its names.
    fn entries(&self, directory: &Directory) -> Result<Vec<u8>, Flaw> {
        let mut data = Vec::new();
        for block in blocks(directory) {
            data.resize(data.len().next_multiple_of(BLOCK as usize), 0);
            let mut name_at = block.len() as u64 * DIRENT_LEN;
            for (name, inode) in &block {
                data.extend_from_slice(&self.number(*inode).to_le_bytes());
                data.extend_from_slice(&(name_at as u16).to_le_bytes());
                data.extend_from_slice(&[file_type(self.tree.inodes[*inode].entry.kind), 0]);
                name_at += name.len() as u64;
            }
            if name_at > BLOCK {
                return Err(Flaw::new("a name is longer than a block"));
            }
            for (name, _) in &block {
                data.extend_from_slice(name);
            }
        }
        Ok(data)
    }

    /// The indexes of a file's chunks.
    fn indexes(&self, inode: &Inode) -> Vec<u8> {
        let index = |stored: &Stored| {
            let (blob, number, chunk) = self.devices.locate(inode.layer, *stored)?;
            let [low, lower, high, _] = number.to_le_bytes();
            let block = (chunk.plain.0 / BLOCK) as u32;
            let mut index = [low, lower, blob as u8 + 1, high, 0, 0, 0, 0];
            index[4..].copy_from_slice(&block.to_le_bytes());
            Some(index)
        };
        inode.chunks.iter().filter_map(index).flatten().collect()
    }

    /// The chunk table: of each chunk that a file of the image has.
    fn records(&self) -> Vec<u8> {
        let mut used = BTreeMap::new();
        for inode in self.tree.inodes.iter().filter(|inode| inode.links > 0) {
            for (i, stored) in inode.chunks.iter().enumerate() {
                if let Some((blob, number, chunk)) = self.devices.locate(inode.layer, *stored) {
                    let offset = i as u64 * self.chunk_size;
                    used.entry((blob, number)).or_insert((chunk, offset));
                }
            }
        }
        let mut records = Vec::new();
        for (place, (chunk, offset)) in used {
            record(&mut records, place, chunk, offset);
        }
        records
    }

    fn tables(&mut self, records_len: u64) {
        let tables = self.devices.tables(self.bytes.len() as u64);
        self.put(DEVICES_OFFSET, &tables.slots);
        self.put(self.blob_table_at(), &tables.blobs);
        let wanted = self.wanted.iter();
        let wanted: Vec<u8> = wanted
            .flat_map(|inode| (self.number(*inode) as u32).to_le_bytes())
            .collect();
        self.put(self.prefetch_at(), &wanted);
        let superblock = self.superblock(tables.blocks);
        self.put(SUPER_OFFSET, &superblock);
        let extension = self.extension(records_len);
        self.put(SUPER_OFFSET + SUPER_LEN, &extension);
    }

    fn superblock(&self, blocks: u32) -> Vec<u8> {
        let mut sb = Vec::with_capacity(SUPER_LEN as usize);
        for word in [MAGIC, 0, COMPAT_RAFS_V6] {
            sb.extend_from_slice(&word.to_le_bytes());
        }
        sb.extend_from_slice(&[BLOCK_BITS, 0]);
        sb.extend_from_slice(&(self.number(0) as u16).to_le_bytes());
        let inodes = self.tree.inodes.iter().filter(|inode| inode.links > 0);
        sb.extend_from_slice(&(inodes.count() as u64).to_le_bytes());
        sb.extend_from_slice(&[0; 12]);
        sb.extend_from_slice(&blocks.to_le_bytes());
        sb.extend_from_slice(&((self.meta_at / BLOCK) as u32).to_le_bytes());
        sb.resize(80, 0);
        sb.extend_from_slice(&INCOMPAT.to_le_bytes());
        let slot = (DEVICES_OFFSET / DEVICE_LEN) as u16;
        for half in [0, self.devices.len() as u16, slot] {
            sb.extend_from_slice(&half.to_le_bytes());
        }
        sb
    }

    fn extension(&self, records_len: u64) -> Vec<u8> {
        let form = self.devices.form();
        let digest = match form.algorithm {
            Algorithm::Blake3 => FLAG_BLAKE3,
            Algorithm::Sha256 => FLAG_SHA256,
        };
        let mut flags = form.flag | FLAG_EXPLICIT_OWNER | digest;
        if self.places.iter().any(|place| place.xattr_len > 0) {
            flags |= FLAG_XATTRS;
        }
        let mut extension = Vec::new();
        for long in [flags, self.blob_table_at()] {
            extension.extend_from_slice(&long.to_le_bytes());
        }
        for word in [
            self.devices.len() as u32 * BLOB_LEN as u32,
            self.chunk_size as u32,
        ] {
            extension.extend_from_slice(&word.to_le_bytes());
        }
        for long in [self.chunks_at, records_len] {
            extension.extend_from_slice(&long.to_le_bytes());
        }
        if !self.wanted.is_empty() {
            extension.extend_from_slice(&self.prefetch_at().to_le_bytes());
            extension.extend_from_slice(&(self.wanted.len() as u32 * 4).to_le_bytes());
        }
        extension
    }
}

fn record(out: &mut Vec<u8>, (blob, number): (usize, u32), chunk: &Chunk, file_offset: u64) {
    let flags = if chunk.is_packed { CHUNK_PACKED } else { 0 };
    out.extend_from_slice(&chunk.digest);
    for word in [blob as u32, flags, chunk.packed.1, chunk.plain.1] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for long in [
        chunk.packed.0,
        chunk.plain.0,
        file_offset,
        u64::from(number),
    ] {
        out.extend_from_slice(&long.to_le_bytes());
    }
}

/// The entries of a directory with `.` and `..`, by block.
fn blocks(directory: &Directory) -> Vec<Vec<(&[u8], usize)>> {
    let own = [(&b"."[..], directory.inode), (b"..", directory.parent)];
    let children = directory.entries.iter();
    let children = children.map(|(name, inode)| (name.as_slice(), *inode));
    let mut all: Vec<(&[u8], usize)> = own.into_iter().chain(children).collect();
    all.sort_unstable();
    let mut blocks: Vec<Vec<(&[u8], usize)>> = Vec::new();
    let mut used = BLOCK;
    for entry in all {
        let len = DIRENT_LEN + entry.0.len() as u64;
        match blocks.last_mut() {
            Some(block) if used + len <= BLOCK => block.push(entry),
            _ => {
                used = 0;
                blocks.push(vec![entry]);
            }
        }
        used += len;
    }
    blocks
}

/// Bytes of a directory's entries: whole blocks, and what the last one has.
fn entries_len(directory: &Directory) -> u64 {
    let blocks = blocks(directory);
    let last = blocks.last().into_iter().flatten();
    let last: u64 = last.map(|(name, _)| DIRENT_LEN + name.len() as u64).sum();
    (blocks.len() as u64 - 1) * BLOCK + last
}

/// Bytes of blocks that data of `len` bytes takes beside what is inline.
fn blocks_len(len: u64, layout: u16) -> u64 {
    match layout {
        FLAT_INLINE => len - len % BLOCK,
        _ => len.next_multiple_of(BLOCK),
    }
}

/// An inode's attributes as they lie behind it; nothing if there are none.
fn xattrs(entry: &TarEntry) -> Result<Vec<u8>, Flaw> {
    let mut out = Vec::new();
    for (name, value) in &entry.xattrs {
        let prefix = XATTR_PREFIXES
            .iter()
            .find_map(|(number, prefix)| Some((number, name.strip_prefix(prefix)?)));
        let fits = |(_, rest): &(&u8, &str)| rest.len() < 256 && u16::try_from(value.len()).is_ok();
        let Some((number, rest)) = prefix.filter(fits) else {
            let reason = format!("RAFS cannot hold its extended attribute {name:?}");
            return Err(Flaw::entry(&entry.name, reason));
        };
        if out.is_empty() {
            out.resize(XATTR_HEAD as usize, 0);
        }
        out.extend_from_slice(&[rest.len() as u8, *number]);
        out.extend_from_slice(&(value.len() as u16).to_le_bytes());
        out.extend_from_slice(rest.as_bytes());
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    Ok(out)
}

fn xattrs_len(entry: &TarEntry) -> Result<u64, Flaw> {
    let len = xattrs(entry)?.len() as u64;
    if len / 4 > u64::from(u16::MAX) {
        return Err(Flaw::entry(
            &entry.name,
            "its extended attributes are too long",
        ));
    }
    Ok(len)
}

/// A device number as Linux encodes it in 32 bits.
fn device(entry: &TarEntry) -> Result<u32, Flaw> {
    let (major, minor) = (entry.dev_major, entry.dev_minor);
    if major > 0xfff || minor > 0xf_ffff {
        return Err(Flaw::entry(&entry.name, "bad device number"));
    }
    Ok((minor & 0xff | major << 8 | (minor & 0xf_ff00) << 12) as u32)
}

const fn type_bits(kind: EntryType) -> u16 {
    match kind {
        EntryType::Dir => 0o040_000,
        EntryType::Symlink => 0o120_000,
        EntryType::Char => 0o020_000,
        EntryType::Block => 0o060_000,
        EntryType::Fifo => 0o010_000,
        EntryType::Reg | EntryType::Hardlink | EntryType::Chunk => 0o100_000,
    }
}

const fn file_type(kind: EntryType) -> u8 {
    match kind {
        EntryType::Reg | EntryType::Hardlink | EntryType::Chunk => 1,
        EntryType::Dir => 2,
        EntryType::Char => 3,
        EntryType::Block => 4,
        EntryType::Fifo => 5,
        EntryType::Symlink => 7,
    }
}
