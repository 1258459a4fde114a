//! RAFS v6: an EROFS image of metadata whose chunks lie in other devices, the data blobs.
//!
//! The tree is walked directory by directory with a list of those still to be read, so that depth
//! costs no stack; a directory that is met twice is refused, which excludes cycles. The format
//! stores of each chunk only where it begins in the unpacked blob; the chunk table that Nydus
//! appends has the rest: digest, and place in the packed blob.

mod dirents;
mod inode;
mod superblock;

use std::collections::{HashMap, HashSet};

/// What a writer of the format needs to know.
pub(crate) mod layout {
    pub(crate) use super::dirents::RECORD as DIRENT_LEN;
    pub(crate) use super::inode::{SLOT, XATTR_HEAD, XATTR_PREFIXES};
    pub(crate) use super::superblock::{
        BLOB_LEN, COMPAT_RAFS_V6, DEVICE_LEN, DEVICES_OFFSET, FLAG_BLAKE3, FLAG_EXPLICIT_OWNER,
        FLAG_GZIP, FLAG_SHA256, FLAG_XATTRS, FLAG_ZSTD, INCOMPAT, MAGIC, SUPER_LEN, SUPER_OFFSET,
    };
}

use bstr::BString;

use self::inode::{RawInode, Source};
use self::superblock::{MAGIC, SUPER_OFFSET, Superblock};
use super::assemble::{Assembler, What, child, is_socket};
use super::blobs::BlobInfo;
use super::chunk::{self, Record};
use super::view::View;
use super::{KnownBlob, KnownChunk, KnownChunks};
use crate::formats::Flaw;
use crate::index::{FileId, Kind, MAX_ENTRIES, Meta};

/// A bootstrap whose superblock and tables were read.
#[derive(Debug)]
pub(super) struct Bootstrap<'a> {
    view: View<'a>,
    superblock: Superblock,
}

/// Whether `bytes` begin as a RAFS v6 bootstrap.
pub(super) fn is_v6(bytes: &[u8]) -> bool {
    let view = View::new("bootstrap", bytes);
    view.u32(SUPER_OFFSET, "the magic number") == Ok(MAGIC)
}

impl<'a> Bootstrap<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Flaw> {
        let view = View::new("bootstrap", bytes);
        let superblock = Superblock::read(&view)?;
        Ok(Self { view, superblock })
    }

    pub(super) fn blobs(&self) -> &[BlobInfo] {
        &self.superblock.blobs
    }

    /// Adds everything to the index in the making.
    pub(super) fn assemble(&self, into: &mut Assembler<'_>) -> Result<(), Flaw> {
        let source = Source {
            view: self.view,
            superblock: &self.superblock,
        };
        into.algorithm(self.superblock.algorithm);
        let mut walk = Walk {
            source,
            chunks: ChunkTable::read(&self.view, &self.superblock)?,
            into,
            met: HashMap::new(),
            entered: HashSet::new(),
            prefetch: self.prefetch()?,
            todo: Vec::new(),
        };
        walk.run(self.superblock.root)
    }

    /// The blobs and chunks that another image can refer to.
    pub(super) fn known_chunks(&self) -> Result<KnownChunks, Flaw> {
        let superblock = &self.superblock;
        let blobs = superblock.blobs.iter().zip(0_u64..).map(|(blob, id)| {
            let at = superblock.blob_table + id * superblock::BLOB_LEN;
            let entry = self.view.part(at, superblock::BLOB_LEN, "a blob's entry")?;
            Ok(KnownBlob {
                digest: blob.digest,
                plain_len: entry.u64(96, "a blob's length")?,
                entry: entry
                    .slice(0, superblock::BLOB_LEN, "a blob's entry")?
                    .to_vec(),
            })
        });
        let (at, len) = superblock.chunks;
        let table = self.view.part(at, len, "the chunk table")?;
        let mut chunks = Vec::new();
        for i in 0..len / chunk::LEN {
            let record = Record::read(&table, i * chunk::LEN)?;
            let blob = record.blob as usize;
            let Some(info) = superblock.blobs.get(blob) else {
                return Err(table.flaw(format_args!("a chunk in blob {blob}")));
            };
            // Lengths tell as well whether it is packed.
            let is_packed = record.flags & chunk::COMPRESSED != 0;
            let is_alone = record.flags & !chunk::COMPRESSED == 0 && info.holds_lone_chunks();
            if is_alone && is_packed == (record.packed_len != record.len) {
                chunks.push(KnownChunk {
                    digest: *record.digest.as_bytes(),
                    blob,
                    number: record.index,
                    packed: (record.packed_offset, record.packed_len),
                    plain: (record.offset, record.len),
                });
            }
        }
        Ok(KnownChunks {
            chunk_size: superblock.chunk_size,
            algorithm: superblock.algorithm,
            blobs: blobs.collect::<Result<_, Flaw>>()?,
            chunks,
        })
    }

    /// The inodes that are wanted first, with their places in the prefetch table.
    fn prefetch(&self) -> Result<HashMap<u64, u32>, Flaw> {
        let (at, len) = self.superblock.prefetch;
        // Old writers gave a length but no table for an empty file system.
        if at == 0 || len == 0 {
            return Ok(HashMap::new());
        }
        let table = self.view.slice(at, len, "the prefetch table")?;
        let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let words = table.chunks_exact(4).zip(0..);
        // Unused entries are 0, which no file has: the root is never in front of the table's end.
        Ok(words
            .map(|(word, i)| (u64::from(number(word)), i))
            .collect())
    }
}

/// The chunk table: places in it by the 8 bytes by which a file names a chunk.
struct ChunkTable<'a> {
    table: View<'a>,
    /// Sorted.
    places: Vec<(u64, u32)>,
}

/// What a file says of a chunk: the blob, its number there, and the block where it begins.
fn chunk_key(blob: u32, index: u32, block: u64) -> u64 {
    u64::from(blob & 0xff) << 56 | u64::from(index & 0xff_ffff) << 32 | (block & 0xffff_ffff)
}

impl<'a> ChunkTable<'a> {
    fn read(view: &View<'a>, superblock: &Superblock) -> Result<Self, Flaw> {
        let (at, len) = superblock.chunks;
        let table = view.part(at, len, "the chunk table")?;
        let count = len / chunk::LEN;
        if !len.is_multiple_of(chunk::LEN) || count > MAX_ENTRIES as u64 {
            return Err(view.flaw(format_args!("a chunk table of {len} bytes")));
        }
        let mut places = Vec::with_capacity(count as usize);
        for i in 0..count {
            let record = Record::read(&table, i * chunk::LEN)?;
            let block = record.offset >> superblock.block_bits;
            places.push((chunk_key(record.blob, record.index, block), i as u32));
        }
        places.sort_unstable();
        Ok(Self { table, places })
    }

    /// The record of the chunk that 8 bytes of a file name.
    fn look_up(&self, index: [u8; 8]) -> Result<Record, Flaw> {
        let [low, lower, device, high, block @ ..] = index;
        let number = u32::from_le_bytes([low, lower, high, 0]);
        let block = u32::from_le_bytes(block);
        let refuse = || {
            let table = &self.table;
            table.flaw(format_args!(
                "no chunk {number} at block {block} of device {device}"
            ))
        };
        // Device 0 is the bootstrap itself.
        let blob = device.checked_sub(1).ok_or_else(refuse)?;
        let key = chunk_key(u32::from(blob), number, u64::from(block));
        let at = self.places.binary_search_by_key(&key, |(key, _)| *key);
        let (_, place) = self.places[at.map_err(|_| refuse())?];
        Record::read(&self.table, u64::from(place) * chunk::LEN)
    }
}

/// A directory that is still to be read.
struct Directory {
    number: u64,
    path: BString,
    /// Its place in the prefetch table, or that of a directory above it.
    wanted: Option<u32>,
}

struct Walk<'a, 'b, 'c> {
    source: Source<'a>,
    chunks: ChunkTable<'a>,
    into: &'b mut Assembler<'c>,
    /// Inodes of everything but directories that were met, for further names.
    met: HashMap<u64, FileId>,
    entered: HashSet<u64>,
    prefetch: HashMap<u64, u32>,
    todo: Vec<Directory>,
}

impl Walk<'_, '_, '_> {
    fn run(&mut self, root: u64) -> Result<(), Flaw> {
        let inode = self.source.inode(root)?;
        if Kind::of_mode(inode.mode) != Kind::Directory {
            return Err(self.source.view.flaw("the root is no directory"));
        }
        self.directory(root, BString::default(), &inode, None)?;
        while let Some(directory) = self.todo.pop() {
            let inode = self.source.inode(directory.number)?;
            let source = self.source;
            for block in source.blocks(&inode)? {
                dirents::for_each(block?, |number, name| self.entry(&directory, number, name))
                    .map_err(|flaw| Flaw::entry(&directory.path, flaw))?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, directory: &Directory, number: u64, name: &[u8]) -> Result<(), Flaw> {
        let path = child(&directory.path, name)?;
        let inode = self.source.inode(number)?;
        let wanted = self.prefetch.get(&number).copied().or(directory.wanted);
        match Kind::of_mode(inode.mode) {
            _ if is_socket(inode.mode) => Ok(()),
            Kind::Directory => self.directory(number, path, &inode, wanted),
            kind => self.leaf(number, &path, &inode, (kind, wanted)),
        }
    }

    fn directory(
        &mut self,
        number: u64,
        path: BString,
        inode: &RawInode,
        wanted: Option<u32>,
    ) -> Result<(), Flaw> {
        if !self.entered.insert(number) {
            return Err(Flaw::entry(&path, "the directory has another name already"));
        }
        self.into.directory(&path, &self.meta(&path, inode)?)?;
        self.todo.push(Directory {
            number,
            path,
            wanted: self.prefetch.get(&number).copied().or(wanted),
        });
        Ok(())
    }

    fn leaf(
        &mut self,
        number: u64,
        path: &[u8],
        inode: &RawInode,
        (kind, wanted): (Kind, Option<u32>),
    ) -> Result<(), Flaw> {
        if let Some(&file) = self.met.get(&number) {
            return self.into.link(path, file);
        }
        let meta = self.meta(path, inode)?;
        let mut target = Vec::new();
        let what = match kind {
            Kind::Symlink => {
                for block in self.source.blocks(inode)? {
                    target.extend_from_slice(block?);
                }
                What::Symlink(&target)
            }
            Kind::File | Kind::Directory => What::File(inode.size),
            special => What::Special(special, inode.device()),
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

    fn contents(&mut self, path: &[u8], file: FileId, inode: &RawInode) -> Result<(), Flaw> {
        if inode.size == 0 {
            return Ok(());
        }
        let indexes = self.source.chunk_indexes(inode)?;
        let chunk_size = self.source.superblock.chunk_size;
        for at in (0..indexes.len()).step_by(8) {
            let record = self.chunks.look_up(indexes.array(at, "a chunk index")?);
            let record = record.map_err(|flaw| Flaw::entry(path, flaw))?;
            let offset = at / 8 * chunk_size;
            let len = chunk_size.min(inode.size - offset);
            self.into.chunk(path, file, (offset, len), &record)?;
        }
        Ok(())
    }

    fn meta(&self, path: &[u8], inode: &RawInode) -> Result<Meta, Flaw> {
        if inode.mtime.1 >= 1_000_000_000 {
            return Err(Flaw::entry(path, "its time has too many nanoseconds"));
        }
        let xattrs = self.source.xattrs(inode);
        Ok(Meta {
            mode: inode.mode & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs: xattrs.map_err(|flaw| Flaw::entry(path, flaw))?,
        })
    }
}
