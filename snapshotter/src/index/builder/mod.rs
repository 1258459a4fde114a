//! Building a [`LayerIndex`] from entries in any order, refusing what no honest layer holds.

mod hash;
mod names;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, RandomState};

use self::hash::{Hashed, NameHash};
use super::MAX_ENTRIES;
use super::content::{self, Content, Hole, Placed};
use super::layer::LayerIndex;
use super::layout::{
    BlobEntry, Codec, Dirent, Head, INODE_IMPLIED, INODE_OPAQUE, Inode, Kind, MAGIC, Record, Span,
    Xattr,
};
use super::name;
use super::place::Places;
use super::span::{SpanSpec, Spans};
use crate::digest::{Algorithm, Digest};
use crate::formats::Flaw;

/// No dirent: end of a hash chain, or an inode without a name.
const NONE: u32 = u32::MAX;
/// Longest chain of hard links to hard links.
const MAX_LINK_HOPS: usize = 64;
/// Most blobs of one index.
const MAX_BLOBS: usize = 4096;
/// Why a chunk beyond [`MAX_ENTRIES`] is refused.
const TOO_MANY_CHUNKS: &str = "more than 10000000 chunks";
/// Longest value of an extended attribute (`XATTR_SIZE_MAX`).
const MAX_XATTR: usize = 64 << 10;

/// Attributes that every kind of entry has.
#[derive(Debug, Clone, Default)]
pub struct Meta {
    /// Permissions with setuid, setgid and sticky; other bits are dropped.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A regular file whose chunks are still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId(pub(super) u32);

/// A chunk as a format describes it.
#[derive(Debug, Clone)]
pub struct ChunkSpec {
    /// Offset in the file.
    pub file_offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Offset in its blob of the unit that holds it.
    pub unit_offset: u64,
    /// Packed length of that unit.
    pub unit_len: u64,
    /// How the unit is packed.
    pub codec: Codec,
    /// Offset in what the unit unpacks to.
    pub inner: u64,
    /// Digest of the chunk: its 32 bytes, by the algorithm that [`LayerBuilder::algorithm`] sets.
    /// Not looked at in a layer of spans ([`LayerBuilder::span`]).
    pub digest: Digest,
}

impl ChunkSpec {
    /// Stands for the digest of a chunk that is verified with its unit: no bytes have it.
    pub const BY_UNIT: Digest = Digest::from_bytes([0; 32]);
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Nothing,
    Inode(u32),
    /// Another path, by its place among the strings; resolved at the end.
    Link(u32, u32),
}

struct Name {
    parent: u32,
    text: u32,
    len: u16,
    flags: u16,
    target: Target,
    /// Next name with the same hash.
    next: u32,
}

/// Collects one layer.
pub struct LayerBuilder {
    head: Head,
    blobs: Vec<BlobEntry>,
    strings: Vec<u8>,
    inodes: Vec<Inode>,
    /// The first name of each inode, for messages.
    named_by: Vec<u32>,
    names: Vec<Name>,
    by_hash: HashMap<NameHash, u32, BuildHasherDefault<Hashed>>,
    hasher: RandomState,
    xattrs: Vec<u8>,
    chunks: Vec<Placed>,
    holes: Vec<Hole>,
    spans: Spans,
    places: Places,
    prefetch_before: Option<u64>,
    prefetch_files: Vec<FileId>,
    prefetch_at: Vec<u64>,
    /// The directory looked up last: entries come sorted by path.
    last_directory: (Vec<u8>, u32),
}

/// Where an entry goes.
enum Place<'a> {
    Root,
    Child(u32, &'a [u8]),
    /// A whiteout, an opaque marker or something to ignore: handled, nothing to add.
    Handled,
}

impl LayerBuilder {
    /// Begins the index of the blob `layer` of `blob_size` bytes, described by the TOC `toc`.
    pub fn new(layer: Digest, toc: Digest, blob_size: u64) -> Self {
        Self::with_blobs(layer, toc, table(&[(layer, blob_size)]))
    }

    /// Begins the index of `layer`, whose chunks lie in `blobs`, described by the document `toc`.
    pub fn of_blobs(layer: Digest, toc: Digest, blobs: &[(Digest, u64)]) -> Result<Self, Flaw> {
        if blobs.len() > MAX_BLOBS {
            return Err(Flaw::new(format!("{} blobs", blobs.len())));
        }
        let sum = blobs
            .iter()
            .try_fold(0_u64, |sum, (_, size)| sum.checked_add(*size));
        if sum.is_none_or(|sum| sum > i64::MAX as u64) {
            return Err(Flaw::new("the blobs together exceed 2^63 bytes"));
        }
        Ok(Self::with_blobs(layer, toc, table(blobs)))
    }

    fn with_blobs(layer: Digest, toc: Digest, blobs: Vec<BlobEntry>) -> Self {
        let head = Head {
            magic: MAGIC,
            layer: *layer.as_bytes(),
            toc: *toc.as_bytes(),
            blob_size: blobs.last().map_or(0, |last| last.before + last.size),
            data_size: 0,
            prefetch_units: 0,
            prefetch_known: 0,
            prefetch_list: 0,
            algorithm: Algorithm::default().to_byte(),
            blobs: blobs.len() as u32,
            inodes: 0,
            dirents: 0,
            xattrs: 0,
            chunks: 0,
            units: 0,
            unit_chunks: 0,
            segments: 0,
            spans: 0,
            windows: 0,
            strings: 0,
        };
        let mut builder = Self {
            head,
            blobs,
            strings: Vec::new(),
            inodes: Vec::new(),
            named_by: Vec::new(),
            names: Vec::new(),
            by_hash: HashMap::default(),
            hasher: RandomState::new(),
            xattrs: Vec::new(),
            chunks: Vec::new(),
            holes: Vec::new(),
            spans: Spans::default(),
            places: Places::new(),
            prefetch_before: None,
            prefetch_files: Vec::new(),
            prefetch_at: Vec::new(),
            last_directory: (Vec::new(), 0),
        };
        builder.inodes.push(implied_directory());
        builder.named_by.push(NONE);
        builder
    }

    /// Makes room for so many entries: growing by and by would move all of them several times.
    pub fn expect(&mut self, entries: usize) {
        let entries = entries.min(MAX_ENTRIES);
        self.by_hash.reserve(entries);
        self.names.reserve(entries);
        self.inodes.reserve(entries);
        self.named_by.reserve(entries);
        self.chunks.reserve(entries);
    }

    /// Adds a directory; one that only entries below it named so far gets these attributes.
    pub fn directory(&mut self, path: impl AsRef<[u8]>, meta: &Meta) -> Result<(), Flaw> {
        let path = path.as_ref();
        let inode = match self.place(path)? {
            Place::Handled => return Ok(()),
            Place::Root => 0,
            Place::Child(parent, name) => match self.find(parent, name) {
                Ok(at) => match self.names[at as usize].target {
                    Target::Inode(id) if self.inodes[id as usize].kind() == Kind::Directory => id,
                    Target::Nothing => self.attach(at, implied_directory(), path)?,
                    _ => return Err(duplicate(path)),
                },
                Err(free) => self.add(free, name, implied_directory(), path)?,
            },
        };
        let opaque = self.inodes[inode as usize].flags & INODE_OPAQUE;
        let filled = self.filled(Kind::Directory, meta, path)?;
        self.inodes[inode as usize] = Inode {
            flags: opaque,
            ..filled
        };
        Ok(())
    }

    /// Hides everything of lower layers.
    pub fn opaque_root(&mut self) {
        self.inodes[0].flags |= INODE_OPAQUE;
    }

    /// Adds a regular file. `None` means that the name is a whiteout or not part of the file
    /// system, and that there is nothing to add chunks to.
    pub fn file(
        &mut self,
        path: impl AsRef<[u8]>,
        meta: &Meta,
        size: u64,
    ) -> Result<Option<FileId>, Flaw> {
        let path = path.as_ref();
        let inode = self.filled(Kind::File, meta, path)?;
        let inode = Inode { size, ..inode };
        let Some(id) = self.insert(path, inode)? else {
            return Ok(None);
        };
        let place = self.places.place(size);
        let (segment, base) = place.map_err(|reason| Flaw::entry(path, reason))?;
        let inode = &mut self.inodes[id as usize];
        (inode.segment, inode.base) = (segment, base);
        Ok(Some(FileId(id)))
    }

    /// File of the store and offset there at which the content of `file` will lie.
    pub fn place_of(&self, file: FileId) -> (u32, u64) {
        let inode = &self.inodes[file.0 as usize];
        (inode.segment, inode.base)
    }

    /// Adds a symbolic link.
    pub fn symlink(
        &mut self,
        path: impl AsRef<[u8]>,
        meta: &Meta,
        target: impl AsRef<[u8]>,
    ) -> Result<(), Flaw> {
        let (path, target) = (path.as_ref(), target.as_ref());
        if target.is_empty() || target.len() > name::MAX_PATH || target.contains(&0) {
            return Err(Flaw::entry(path, "the symbolic link has no valid target"));
        }
        let mut inode = self.filled(Kind::Symlink, meta, path)?;
        inode.data_first = self.string(target, path)?;
        inode.data_count = target.len() as u32;
        inode.size = target.len() as u64;
        self.insert(path, inode).map(drop)
    }

    /// Adds a device or a named pipe.
    pub fn special(
        &mut self,
        path: impl AsRef<[u8]>,
        meta: &Meta,
        kind: Kind,
        (major, minor): (u64, u64),
    ) -> Result<(), Flaw> {
        let path = path.as_ref();
        let number = |n| u32::try_from(n).map_err(|_| Flaw::entry(path, "bad device number"));
        let mut inode = self.filled(kind, meta, path)?;
        if kind != Kind::Fifo {
            (inode.data_first, inode.data_count) = (number(major)?, number(minor)?);
        }
        self.insert(path, inode).map(drop)
    }

    /// Adds another name of a file of the same layer, which may come later.
    pub fn hard_link(
        &mut self,
        path: impl AsRef<[u8]>,
        target: impl AsRef<[u8]>,
    ) -> Result<(), Flaw> {
        let path = path.as_ref();
        let target = name::clean(target.as_ref())
            .map_err(|_| Flaw::entry(path, "the hard link has no valid target"))?;
        let link = Target::Link(self.string(target, path)?, target.len() as u32);
        match self.place(path)? {
            Place::Handled => Ok(()),
            Place::Root => Err(duplicate(path)),
            Place::Child(parent, name) => match self.find(parent, name) {
                Ok(at) if self.names[at as usize].target == Target::Nothing => {
                    self.names[at as usize].target = link;
                    Ok(())
                }
                Ok(_) => Err(duplicate(path)),
                Err(free) => self.name(free, name, link, 0, path).map(drop),
            },
        }
    }

    /// Sets how chunks are digested; SHA-256 unless this is called.
    pub fn algorithm(&mut self, algorithm: Algorithm) {
        self.head.algorithm = algorithm.to_byte();
    }

    /// The inode that was added last.
    pub fn newest(&self) -> FileId {
        FileId(self.inodes.len() as u32 - 1)
    }

    /// Adds another name of an inode that is there already and is no directory.
    pub fn link_to(&mut self, path: impl AsRef<[u8]>, inode: FileId) -> Result<(), Flaw> {
        let path = path.as_ref();
        let target = Target::Inode(inode.0);
        match self.place(path)? {
            Place::Handled => return Ok(()),
            Place::Root => return Err(duplicate(path)),
            Place::Child(parent, name) => match self.find(parent, name) {
                Ok(at) if self.names[at as usize].target == Target::Nothing => {
                    self.names[at as usize].target = target;
                }
                Ok(_) => return Err(duplicate(path)),
                Err(free) => self.name(free, name, target, 0, path).map(drop)?,
            },
        }
        self.inodes[inode.0 as usize].nlink += 1;
        Ok(())
    }

    /// Adds a chunk of `file` that lies in the first blob.
    pub fn chunk(&mut self, file: FileId, spec: ChunkSpec) -> Result<(), Flaw> {
        self.chunk_of_blob(file, 0, spec)
    }

    /// Adds a chunk of `file` that lies in the first blob, in a unit whose length is not known yet:
    /// [`LayerBuilder::end_units`] finds and checks it.
    pub fn chunk_without_end(&mut self, file: FileId, spec: ChunkSpec) -> Result<(), Flaw> {
        if self.chunks.len() >= MAX_ENTRIES {
            return Err(Flaw::entry(self.path_of(file.0), TOO_MANY_CHUNKS));
        }
        self.chunks.push(Placed {
            inode: file.0,
            blob: 0,
            spec,
        });
        Ok(())
    }

    /// Lets the unit of each chunk so far end at the next of `ends` in the first blob.
    pub fn end_units(&mut self, mut ends: Vec<u64>) -> Result<(), Flaw> {
        ends.sort_unstable();
        ends.dedup();
        let blob_size = self.blobs.first().map_or(0, |blob| blob.size);
        let mut next = 0;
        for placed in &mut self.chunks {
            let at = placed.spec.unit_offset;
            // Chunks mostly come in the blob's order.
            next = match ends[next..] {
                [here, ..] if here == at => next + 1,
                _ => ends.partition_point(|end| *end <= at),
            };
            placed.spec.unit_len = ends.get(next).map_or(0, |end| end - at);
        }
        for placed in &self.chunks {
            content::check_chunk(&placed.spec, blob_size)
                .map_err(|reason| Flaw::entry(self.path_of(placed.inode), reason))?;
        }
        Ok(())
    }

    /// Adds a chunk of `file` that lies in the blob number `blob`.
    pub fn chunk_of_blob(&mut self, file: FileId, blob: u32, spec: ChunkSpec) -> Result<(), Flaw> {
        let checked = match (self.chunks.len(), self.blobs.get(blob as usize)) {
            (MAX_ENTRIES.., _) => Err(TOO_MANY_CHUNKS.to_owned()),
            (_, None) => Err(format!("a chunk in blob {blob} of {}", self.blobs.len())),
            (_, Some(entry)) => content::check_chunk(&spec, entry.size),
        };
        checked.map_err(|reason| Flaw::entry(self.path_of(file.0), reason))?;
        self.chunks.push(Placed {
            inode: file.0,
            blob: blob as u16,
            spec,
        });
        Ok(())
    }

    /// Adds a piece of the blob that is verified as it lies there. In a layer that has any, every
    /// chunk's unit must be one of them; they come in the blob's order.
    pub fn span(&mut self, spec: SpanSpec) -> Result<(), Flaw> {
        self.spans.add(0, spec)
    }

    /// Adds a piece of the blob number `blob`; see [`LayerBuilder::span`]. Blobs come in their order.
    pub fn span_of_blob(&mut self, blob: u16, spec: SpanSpec) -> Result<(), Flaw> {
        self.spans.add(blob, spec)
    }

    /// Says that `len` bytes at `offset` of `file` are zeros: they are neither fetched nor stored.
    pub fn hole(&mut self, file: FileId, offset: u64, len: u64) -> Result<(), Flaw> {
        if self.holes.len() >= MAX_ENTRIES {
            return Err(Flaw::entry(
                self.path_of(file.0),
                "more than 10000000 holes",
            ));
        }
        if len > 0 {
            self.holes.push(Hole {
                inode: file.0,
                offset,
                len,
            });
        }
        Ok(())
    }

    /// Says which bytes of the blob are wanted first: everything in units before `offset`.
    pub fn prefetch_before(&mut self, offset: u64) {
        self.prefetch_before = Some(offset);
    }

    /// Says which files are wanted first, in this order.
    pub fn prefetch_files(&mut self, files: Vec<FileId>) {
        self.prefetch_files = files;
    }

    /// Says which units are wanted first, by where they begin in the only blob; where none begins
    /// there is nothing to be fetched.
    pub fn prefetch_at(&mut self, offsets: Vec<u64>) {
        self.prefetch_at = offsets;
    }

    /// Number of entries so far.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether nothing but the root directory is there.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Checks what only the whole can show and makes the index.
    pub fn finish(mut self) -> Result<LayerIndex, Flaw> {
        self.resolve_links()?;
        let (chunks, holes) = (
            std::mem::take(&mut self.chunks),
            std::mem::take(&mut self.holes),
        );
        let places = std::mem::replace(&mut self.places, Places::new());
        let content = Content::lay_out(&mut self.inodes, chunks, holes, places)
            .map_err(|(inode, reason)| Flaw::entry(self.path_of(inode), reason))?;
        let spans = self.spans.seal(&content.units)?;
        let dirents = self.sorted_dirents();
        if let Some(offset) = self.prefetch_before {
            let wanted = content.units.iter().take_while(|unit| unit.offset < offset);
            self.head.prefetch_known = 1;
            self.head.prefetch_units = wanted.count() as u32;
        }
        let files = self
            .prefetch_files
            .iter()
            .map(|file| &self.inodes[file.0 as usize]);
        let mut prefetch_list = content.units_of(files);
        prefetch_list.extend(content.units_at(&self.prefetch_at));
        self.head.prefetch_list = prefetch_list.len() as u32;
        self.head.inodes = self.inodes.len() as u32;
        self.head.dirents = (dirents.len() / Dirent::LEN) as u32;
        self.head.xattrs = (self.xattrs.len() / Xattr::LEN) as u32;
        self.head.strings = self.strings.len() as u32;
        self.head.spans = (spans.records.len() / Span::LEN) as u32;
        self.head.windows = spans.windows.len() as u32;
        content.describe(&mut self.head);

        Ok(LayerIndex::write(self.head, |image| {
            self.blobs.iter().for_each(|blob| blob.put(image));
            for unit in &prefetch_list {
                image.extend_from_slice(&unit.to_le_bytes());
            }
            self.inodes.iter().for_each(|inode| inode.put(image));
            image.extend_from_slice(&dirents);
            image.extend_from_slice(&self.xattrs);
            content.put(image);
            image.extend_from_slice(&spans.records);
            image.extend_from_slice(&spans.windows);
            image.extend_from_slice(&self.strings);
        }))
    }

    /// An inode with the attributes of `meta`, its extended attributes stored.
    fn filled(&mut self, kind: Kind, meta: &Meta, path: &[u8]) -> Result<Inode, Flaw> {
        let xattr_first = (self.xattrs.len() / Xattr::LEN) as u32;
        for (name, value) in &meta.xattrs {
            if name.is_empty() || name.len() > 255 || name.contains(&0) || value.len() > MAX_XATTR {
                return Err(Flaw::entry(path, "an extended attribute is not valid"));
            }
            let xattr = Xattr {
                name: self.string(name, path)?,
                name_len: name.len() as u16,
                value: self.string(value, path)?,
                value_len: value.len() as u32,
            };
            xattr.put(&mut self.xattrs);
        }
        Ok(Inode {
            mode: kind.mode_bits() | (meta.mode & 0o7777),
            flags: 0,
            uid: meta.uid,
            gid: meta.gid,
            mtime: meta.mtime.0,
            mtime_nsec: meta.mtime.1,
            nlink: 1,
            xattr_first,
            xattr_count: meta.xattrs.len() as u32,
            ..implied_directory()
        })
    }

    /// Gives `path` to `inode`, unless the name says something else.
    fn insert(&mut self, path: &[u8], inode: Inode) -> Result<Option<u32>, Flaw> {
        match self.place(path)? {
            Place::Handled => Ok(None),
            Place::Root => Err(Flaw::entry(path, "the root is not a directory")),
            Place::Child(parent, name) => match self.find(parent, name) {
                Ok(at) if self.names[at as usize].target == Target::Nothing => {
                    self.attach(at, inode, path).map(Some)
                }
                Ok(_) => Err(duplicate(path)),
                Err(free) => self.add(free, name, inode, path).map(Some),
            },
        }
    }
}

/// The blob table, each entry with what lies before it; sums were checked or cannot overflow.
fn table(blobs: &[(Digest, u64)]) -> Vec<BlobEntry> {
    let mut before = 0;
    let entry = |&(digest, size): &(Digest, u64)| {
        let entry = BlobEntry {
            digest: *digest.as_bytes(),
            size,
            before,
        };
        before += size;
        entry
    };
    blobs.iter().map(entry).collect()
}

fn duplicate(path: &[u8]) -> Flaw {
    Flaw::entry(path, "the name is there already")
}

/// A directory that the layer does not describe: attributes as `mkdir -p` by root gives them.
const fn implied_directory() -> Inode {
    Inode {
        mode: Kind::Directory.mode_bits() | 0o755,
        flags: INODE_IMPLIED,
        uid: 0,
        gid: 0,
        nlink: 1,
        mtime_nsec: 0,
        mtime: 0,
        size: 0,
        xattr_first: 0,
        xattr_count: 0,
        data_first: 0,
        data_count: 0,
        segment: 0,
        base: 0,
    }
}
