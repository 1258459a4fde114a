//! A layer's contents as a data blob: packed chunks, the table of compression contexts, and a tar
//! header behind each of both.
//!
//! Chunks are packed by several threads, a batch at a time, and written in the layer's order, so
//! that the same layer gives the same blob on every machine. A chunk that the layer has twice is
//! stored once.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::contexts::Contexts;
use super::dictionary::Dictionary;
use crate::convert::order::order;
use crate::convert::spool::Spool;
use crate::convert::tar::{BLOCK, TarEntry, encode_regular};
use crate::digest::{Algorithm, Digest, HashingWriter};
use crate::error::{Error, Result};
use crate::formats::estargz::toc::EntryType;
use crate::formats::nydus::layout::{FLAG_GZIP, FLAG_ZSTD};

/// Alignment of chunks in the unpacked blob: the EROFS block.
const ALIGN: u64 = 4096;
/// Bytes that one thread packs before its batch is written.
const BATCH: u64 = 4 << 20;
/// Number of zstd among the compression algorithms.
pub(super) const ZSTD: u32 = 3;
/// Number of gzip among them.
const GZIP: u32 = 2;
/// Features: chunks are aligned, tar headers separate the parts, the blob is from Nydus 2.2 or later.
const FEATURES: u32 = 0x5000_0001;
/// Features: entries of 24 bytes, inflate contexts, and all of that in a blob of its own.
const REFERENCE_FEATURES: u32 = 0x4 | 0x8 | 0x10;
/// Most bytes of the chunks of a blob: a tar header's size field ends there.
pub(super) const MAX_BLOB: u64 = 8 << 30;
/// Most chunks of a blob: files refer to them by 24 bits.
const MAX_CHUNKS: usize = 1 << 24;

/// What blobs are, in the words of the format.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    /// How chunks are digested: the defaults of Nydus' own tools.
    pub(super) algorithm: Algorithm,
    /// Number of the compression algorithm.
    pub(super) codec: u32,
    pub(super) features: u32,
    /// The bootstrap's flag for that algorithm.
    pub(super) flag: u64,
}

impl Form {
    /// Chunks that are packed one by one.
    pub(super) const PACKED: Self = Self {
        algorithm: Algorithm::Blake3,
        codec: ZSTD,
        features: FEATURES,
        flag: FLAG_ZSTD,
    };
    /// Chunks of unchanged gzip layers.
    pub(super) const REFERENCE: Self = Self {
        algorithm: Algorithm::Sha256,
        codec: GZIP,
        features: FEATURES | REFERENCE_FEATURES,
        flag: FLAG_GZIP,
    };
}

/// A chunk of the blob.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    pub(super) digest: [u8; 32],
    /// Offset and length in the blob.
    pub(super) packed: (u64, u32),
    /// Offset and length when the blob is unpacked.
    pub(super) plain: (u64, u32),
    /// Whether it is compressed at all.
    pub(super) is_packed: bool,
}

/// Which chunk a piece of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// A chunk of the layer's own blob, by its number.
    Own(u32),
    /// A chunk of the dictionary, by its number there.
    Known(u32),
}

/// A layer, converted.
#[derive(Debug)]
pub(super) struct Layer {
    /// The entries of its archive, with the chunks of each.
    pub(super) entries: Vec<(TarEntry, Vec<Stored>)>,
    pub(super) chunks: Vec<Chunk>,
    /// None if no file of the layer has any content.
    pub(super) blob: Option<Blob>,
}

/// A written blob.
#[derive(Debug)]
pub(super) struct Blob {
    /// A nameless file, until it is stored.
    pub(super) file: Option<File>,
    /// What that file is, if it is not the blob itself: its compression contexts.
    pub(super) beside: Option<(Digest, u64)>,
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// Bytes when it is unpacked, every chunk at a multiple of 4096.
    pub(super) plain_len: u64,
    pub(super) contexts: Contexts,
}

impl Blob {
    /// Digest and length of what is stored for it.
    pub(super) fn stored(&self) -> (Digest, u64) {
        self.beside.unwrap_or((self.digest, self.size))
    }
}

/// How chunks are made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style<'a> {
    pub(super) form: Form,
    /// Paths of files whose contents go first, without leading slash.
    pub(super) wanted: &'a [String],
    /// Chunks that are stored already.
    pub(super) dictionary: Option<&'a Dictionary>,
    /// Largest chunk in bytes, a power of two.
    pub(super) chunk_size: u64,
    /// Level of zstd.
    pub(super) level: i32,
    pub(super) threads: usize,
}

/// A piece of the archive that becomes a chunk, and the entry that it belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) entry: usize,
    pub(super) at: u64,
    pub(super) len: u64,
}

/// A chunk that is ready to be written.
struct Packed {
    digest: [u8; 32],
    /// None if it was stored before.
    bytes: Option<Vec<u8>>,
    plain_len: u32,
}

/// Chunks that need not be stored.
struct Known<'a> {
    dictionary: Option<&'a Dictionary>,
    /// Numbers of the blob's chunks by their digests.
    own: HashMap<[u8; 32], u32>,
}

impl Known<'_> {
    fn find(&self, digest: &[u8; 32], len: u32) -> Option<Stored> {
        let known = self.dictionary.and_then(|known| known.find(digest, len));
        let own = || self.own.get(digest).copied().map(Stored::Own);
        known.map(Stored::Known).or_else(own)
    }
}

/// Writes the spooled layer's contents into a nameless file in `dir`.
pub(super) fn write(spool: Spool, style: Style<'_>, dir: &Path) -> Result<Layer> {
    let file = tempfile::tempfile_in(dir).map_err(Error::io("create temporary file in", dir))?;
    let pieces = pieces(&spool.entries, style.wanted, style.chunk_size);
    let mut writer = Writer {
        out: HashingWriter::new(BufWriter::with_capacity(1 << 20, file)),
        chunks: Vec::new(),
        known: Known {
            dictionary: style.dictionary,
            own: HashMap::new(),
        },
        plain_len: 0,
    };
    let entries = spool.entries.into_iter();
    let mut entries: Vec<_> = entries.map(|entry| (entry, Vec::new())).collect();
    for batch in batches(&pieces, BATCH * style.threads as u64) {
        let packed = pack(batch, &spool.file, &writer.known, style)?;
        for (piece, packed) in batch.iter().zip(packed) {
            let chunk = writer.chunk(&packed).map_err(Error::io("write", dir))?;
            entries[piece.entry].1.push(chunk);
        }
    }
    check_count(writer.chunks.len())?;
    let (chunks, blob) = writer.finish().map_err(Error::io("write", dir))?;
    Ok(Layer {
        entries,
        chunks,
        blob,
    })
}

/// Refuses more chunks than a blob can have.
pub(super) fn check_count(chunks: usize) -> Result<()> {
    if chunks < MAX_CHUNKS {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "the layer has {chunks} chunks, more than a blob can hold; larger chunks help"
    )))
}

/// The contents of all regular files, in pieces of at most a chunk.
pub(super) fn pieces(entries: &[TarEntry], wanted: &[String], chunk_size: u64) -> Vec<Piece> {
    let files = order(entries, wanted).0.into_iter();
    let files = files.map(|entry| (entry, &entries[entry]));
    let files = files.filter(|(_, file)| file.kind == EntryType::Reg);
    files
        .flat_map(|(entry, file)| {
            let starts = (0..file.size).step_by(chunk_size as usize);
            starts.map(move |offset| Piece {
                entry,
                at: file.data_at + offset,
                len: chunk_size.min(file.size - offset),
            })
        })
        .collect()
}

/// Cuts `pieces` so that each part has at most `limit` bytes or one piece.
fn batches(pieces: &[Piece], limit: u64) -> impl Iterator<Item = &[Piece]> {
    let mut rest = pieces;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |piece: &&Piece| {
            sum += piece.len;
            sum <= limit
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (batch, more) = rest.split_at(count.min(rest.len()));
        rest = more;
        (!batch.is_empty()).then_some(batch)
    })
}

/// Packs a batch on all threads, in its order.
fn pack(
    batch: &[Piece],
    archive: &File,
    known: &Known<'_>,
    style: Style<'_>,
) -> Result<Vec<Packed>> {
    let total: u64 = batch.iter().map(|piece| piece.len).sum();
    let share = (total / style.threads as u64).max(64 << 10);
    let mut packed = Vec::with_capacity(batch.len());
    std::thread::scope(|scope| {
        let work = |share| move || pack_share(share, archive, known, style.level);
        let threads: Vec<_> = batches(batch, share)
            .map(|share| scope.spawn(work(share)))
            .collect();
        for thread in threads {
            let share = thread
                .join()
                .map_err(|_| Error::Internal("a thread that packs chunks has died".to_owned()))?;
            packed.extend(share?);
        }
        Ok(packed)
    })
}

fn pack_share(
    pieces: &[Piece],
    archive: &File,
    known: &Known<'_>,
    level: i32,
) -> Result<Vec<Packed>> {
    let failed = Error::io("pack chunks of", Path::new("a temporary file"));
    let work = || {
        let mut compressor = zstd::bulk::Compressor::new(level)?;
        // Both are as long as the longest piece needs, and used again for each.
        let longest = pieces.iter().map(|piece| piece.len as usize).max();
        let mut room = vec![0; longest.unwrap_or(0)];
        let mut packed = vec![0; zstd::zstd_safe::compress_bound(room.len())];
        pieces
            .iter()
            .map(|piece| {
                let plain = &mut room[..piece.len as usize];
                archive.read_exact_at(plain, piece.at)?;
                let digest = Form::PACKED.algorithm.of(plain);
                let plain_len = piece.len as u32;
                let bytes = if known.find(&digest, plain_len).is_some() {
                    None
                } else {
                    let len = compressor.compress_to_buffer(plain, &mut packed[..])?;
                    // What does not become smaller is stored as it is; equal lengths say so.
                    let is_smaller = len < plain.len();
                    Some(if is_smaller { &packed[..len] } else { plain }.to_vec())
                };
                Ok(Packed {
                    digest,
                    bytes,
                    plain_len,
                })
            })
            .collect::<std::io::Result<Vec<_>>>()
    };
    work().map_err(failed)
}

struct Writer<'a> {
    out: HashingWriter<BufWriter<File>>,
    chunks: Vec<Chunk>,
    known: Known<'a>,
    plain_len: u64,
}

impl Writer<'_> {
    /// Writes a chunk unless it is stored already; tells which it is.
    fn chunk(&mut self, packed: &Packed) -> std::io::Result<Stored> {
        if let Some(known) = self.known.find(&packed.digest, packed.plain_len) {
            return Ok(known);
        }
        let bytes = packed.bytes.as_deref().unwrap_or_default();
        let number = self.chunks.len() as u32;
        self.chunks.push(Chunk {
            digest: packed.digest,
            packed: (self.out.count(), bytes.len() as u32),
            plain: (self.plain_len, packed.plain_len),
            is_packed: bytes.len() != packed.plain_len as usize,
        });
        self.known.own.insert(packed.digest, number);
        self.plain_len += u64::from(packed.plain_len).next_multiple_of(ALIGN);
        self.out.write_all(bytes)?;
        Ok(Stored::Own(number))
    }

    fn finish(mut self) -> std::io::Result<(Vec<Chunk>, Option<Blob>)> {
        if self.chunks.is_empty() {
            return Ok((self.chunks, None));
        }
        if self.out.count() >= MAX_BLOB {
            return Err(std::io::Error::other("the layer's blob exceeds 8 GiB"));
        }
        self.out
            .write_all(&encode_regular("image.blob", self.out.count()))?;
        let table: Vec<u8> = self.chunks.iter().flat_map(context).collect();
        let offset = self.out.count();
        let (count, features) = (self.chunks.len(), Form::PACKED.features);
        let (contexts, rest) = Contexts::pack(&table, count, offset, features, None)?;
        self.out.write_all(&rest)?;
        let (out, digest, size) = self.out.finish();
        let blob = Blob {
            file: Some(
                out.into_inner()
                    .map_err(std::io::IntoInnerError::into_error)?,
            ),
            beside: None,
            digest,
            size,
            plain_len: self.plain_len,
            contexts,
        };
        Ok((self.chunks, Some(blob)))
    }
}

/// An entry of the table of compression contexts, version 1: 16 bytes.
fn context(chunk: &Chunk) -> [u8; 16] {
    let (packed_len, plain_len) = (u64::from(chunk.packed.1) - 1, u64::from(chunk.plain.1) - 1);
    let plain = (plain_len & 0xf_ffff) << 44 | (plain_len & 0xf0_0000) >> 12 | chunk.plain.0;
    let packed = (packed_len & 0xf_ffff) << 44 | (packed_len & 0xf0_0000) << 20 | chunk.packed.0;
    let mut entry = [0; 16];
    entry[..8].copy_from_slice(&plain.to_le_bytes());
    entry[8..].copy_from_slice(&packed.to_le_bytes());
    entry
}

const _: () = assert!(
    BLOCK == 512,
    "tar headers are as long as Nydus expects them"
);
