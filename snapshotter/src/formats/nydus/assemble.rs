//! From inodes and chunk records, as both versions of RAFS have them, to an index.

use bstr::{BString, ByteSlice};

use super::blobs::{BlobInfo, FEATURE_ENCRYPTED, FEATURE_ZRAN};
use super::chunk::{BATCH, COMPRESSED, ENCRYPTED, HOLE, Record};
use super::context::Contexts;
use crate::digest::{Algorithm, Digest};
use crate::formats::Flaw;
use crate::index::{ChunkSpec, Codec, FileId, Kind, LayerBuilder, LayerIndex, Meta};

/// `S_IFSOCK`: sockets are of no use in an image and no archive can hold them.
const SOCKET: u32 = 0o140_000;

/// An index in the making.
pub(super) struct Assembler<'a> {
    builder: LayerBuilder,
    blobs: &'a [BlobInfo],
    /// One for each blob that needs them.
    contexts: &'a [Option<Contexts>],
    /// Files that are wanted first, by their place in the prefetch table.
    wanted: Vec<(u32, FileId)>,
}

/// What an inode is, with what its kind needs.
pub(super) enum What<'a> {
    Symlink(&'a [u8]),
    Special(Kind, (u64, u64)),
    File(u64),
}

impl<'a> Assembler<'a> {
    /// Begins the index of the layer `layer`, whose bootstrap has the digest `toc`. `sizes` are the
    /// lengths of the blobs in the registry.
    pub(super) fn new(
        layer: Digest,
        toc: Digest,
        blobs: &'a [BlobInfo],
        sizes: &[u64],
        contexts: &'a [Option<Contexts>],
    ) -> Result<Self, Flaw> {
        let table: Vec<_> = blobs
            .iter()
            .zip(sizes)
            .map(|(blob, size)| (blob.digest, *size))
            .collect();
        if let Some(blob) = blobs
            .iter()
            .find(|blob| blob.features & FEATURE_ENCRYPTED != 0)
        {
            return Err(Flaw::new(format!("blob {} is encrypted", blob.digest)));
        }
        let mut builder = LayerBuilder::of_blobs(layer, toc, &table)?;
        // It is the whole tree: whatever lies below it is of no concern.
        builder.opaque_root();
        for (blob, contexts) in contexts.iter().enumerate() {
            for span in contexts.iter().flat_map(Contexts::spans) {
                builder.span_of_blob(blob as u16, span?)?;
            }
        }
        Ok(Self {
            builder,
            blobs,
            contexts,
            wanted: Vec::new(),
        })
    }

    pub(super) fn algorithm(&mut self, algorithm: Algorithm) {
        self.builder.algorithm(algorithm);
    }

    pub(super) fn directory(&mut self, path: &[u8], meta: &Meta) -> Result<(), Flaw> {
        // The root directory's path is empty, which only `.` says in a layer.
        self.builder
            .directory(if path.is_empty() { b"." } else { path }, meta)
    }

    /// Adds anything but a directory. `None` means that the name is no part of the file system.
    pub(super) fn leaf(
        &mut self,
        path: &[u8],
        meta: &Meta,
        what: &What<'_>,
    ) -> Result<Option<FileId>, Flaw> {
        let before = self.builder.newest();
        match *what {
            What::File(size) => return self.builder.file(path, meta, size),
            What::Symlink(target) => self.builder.symlink(path, meta, target)?,
            What::Special(kind, device) => self.builder.special(path, meta, kind, device)?,
        }
        Ok(Some(self.builder.newest()).filter(|newest| *newest != before))
    }

    /// Adds another name of `file`.
    pub(super) fn link(&mut self, path: &[u8], file: FileId) -> Result<(), Flaw> {
        self.builder.link_to(path, file)
    }

    /// Says that `file` is wanted as the entry number `order` of the prefetch table says.
    pub(super) fn want(&mut self, order: u32, file: FileId) {
        self.wanted.push((order, file));
    }

    /// Adds the chunk of `file`, of which `len` bytes are expected at `offset`.
    pub(super) fn chunk(
        &mut self,
        path: &[u8],
        file: FileId,
        (offset, len): (u64, u64),
        record: &Record,
    ) -> Result<(), Flaw> {
        let refuse = |reason: String| Flaw::entry(path, reason);
        if u64::from(record.len) != len {
            return Err(refuse(format!(
                "a chunk of {} bytes where {len} are expected",
                record.len
            )));
        }
        let blob = record.blob as usize;
        let Some(info) = self.blobs.get(blob) else {
            return Err(refuse(format!(
                "a chunk in blob {blob} of {}",
                self.blobs.len()
            )));
        };
        if record.flags & (HOLE | ENCRYPTED) != 0 {
            return Err(refuse(format!("a chunk with flags {:#x}", record.flags)));
        }
        let contexts = self.contexts.get(blob).and_then(Option::as_ref);
        let place = if record.flags & BATCH == 0 && info.features & FEATURE_ZRAN == 0 {
            own_unit(info, record)
        } else {
            let contexts = contexts.ok_or_else(|| refuse("a chunk without contexts".to_owned()))?;
            contexts.place(record.index, info.codec).map_err(refuse)?
        };
        let spec = ChunkSpec {
            file_offset: offset,
            len,
            unit_offset: place.offset,
            unit_len: place.len,
            codec: place.codec,
            inner: place.inner,
            digest: record.digest,
        };
        self.builder.chunk_of_blob(file, record.blob, spec)
    }

    pub(super) fn finish(mut self) -> Result<LayerIndex, Flaw> {
        self.wanted.sort_by_key(|(order, _)| *order);
        if !self.wanted.is_empty() {
            let files = self.wanted.iter().map(|(_, file)| *file);
            self.builder.prefetch_files(files.collect());
        }
        self.builder.finish()
    }
}

/// Where in its blob a chunk's unit lies, and the chunk in what the unit unpacks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnitPlace {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) codec: Codec,
    pub(super) inner: u64,
}

/// The place of a chunk that is packed alone.
fn own_unit(info: &BlobInfo, record: &Record) -> UnitPlace {
    UnitPlace {
        offset: record.packed_offset,
        len: u64::from(record.packed_len),
        codec: match record.flags & COMPRESSED {
            0 => Codec::Plain,
            _ => info.codec,
        },
        inner: 0,
    }
}

/// The path of the entry `name` of the directory `above`.
pub(super) fn child(above: &[u8], name: &[u8]) -> Result<BString, Flaw> {
    if matches!(name, b"" | b"." | b"..") || name.find_byteset(b"/\0").is_some() {
        let reason = format!("the name {:?} in it is not valid", name.as_bstr());
        return Err(Flaw::entry(above, reason));
    }
    let path = match above {
        b"" => name.to_vec(),
        above => [above, b"/", name].concat(),
    };
    Ok(path.into())
}

/// Whether `mode` is that of a socket.
pub(super) const fn is_socket(mode: u32) -> bool {
    mode & 0o170_000 == SOCKET
}
