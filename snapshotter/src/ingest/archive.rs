//! The archive in a layer: its entries become the index, its contents go where that says.

use std::io::{self, Read};

use super::Contents;
use super::pipe::Inlet;
use super::spans::Spans;
use crate::convert::tar::{ReadError, Reader, TarEntry};
use crate::digest::Digest;
use crate::error::Error;
use crate::formats::Flaw;
use crate::formats::estargz::toc::EntryType;
use crate::index::{ChunkSpec, Codec, FileId, Kind, LayerBuilder, LayerIndex, Meta};

/// Bytes of content handled at a time.
const PIECE: u64 = 128 << 10;

/// Why an archive cannot be read.
#[derive(Debug)]
pub(crate) enum Refusal {
    Flaw(Flaw),
    /// Its contents cannot be kept.
    Contents(Error),
}

impl Refusal {
    /// The same as the crate's error about `layer`.
    pub(super) fn of(self, layer: Digest) -> Error {
        match self {
            Self::Flaw(flaw) => flaw.of(layer),
            Self::Contents(error) => error,
        }
    }
}

impl From<Flaw> for Refusal {
    fn from(flaw: Flaw) -> Self {
        Self::Flaw(flaw)
    }
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Flaw(flaw) => Self::Flaw(flaw),
            ReadError::Io(error) => Self::Flaw(Flaw::new(error.to_string())),
        }
    }
}

/// Where in the archive the content of a file lies.
struct Extent {
    file: FileId,
    at: u64,
    size: u64,
}

/// All entries of an archive; where its bytes are in the blob is not known yet.
pub(crate) struct Listed {
    builder: LayerBuilder,
    extents: Vec<Extent>,
}

/// Lists an archive of which only the header blocks are there.
pub(super) fn list_headers(headers: impl Read, builder: LayerBuilder) -> Result<Listed, Refusal> {
    let mut reader = Reader::of_headers(headers);
    let mut listed = Listed::new(builder);
    while let Some(entry) = reader.next_entry()? {
        listed.enter(&entry)?;
    }
    Ok(listed)
}

/// Reads the archive to the stream's end; gives the digest of all of it too.
pub(super) fn list(
    mut reader: Reader<Inlet>,
    builder: LayerBuilder,
    contents: &mut dyn Contents,
) -> Result<(Listed, Digest), Refusal> {
    let mut listed = Listed::new(builder);
    let mut buffer = vec![0; PIECE as usize];
    while let Some(entry) = reader.next_entry()? {
        let Some(file) = listed.enter(&entry)? else {
            continue;
        };
        let (segment, base) = listed.builder.place_of(file);
        let mut done = 0;
        while done < entry.size {
            let piece = &mut buffer[..PIECE.min(entry.size - done) as usize];
            reader.read_content(piece)?;
            contents
                .write(segment, base + done, piece)
                .map_err(Refusal::Contents)?;
            done += piece.len() as u64;
        }
    }
    // Whatever follows the archive's end mark belongs to the blob too.
    let mut rest = reader.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(|error| Flaw::new(error.to_string()))?;
    Ok((listed, rest.digest()))
}

impl Listed {
    /// Nothing so far.
    pub(crate) fn new(builder: LayerBuilder) -> Self {
        Self {
            builder,
            extents: Vec::new(),
        }
    }

    /// Adds an entry to the index; gives the file whose content follows.
    pub(crate) fn enter(&mut self, entry: &TarEntry) -> Result<Option<FileId>, Flaw> {
        let meta = meta(entry)?;
        // The reader has cleaned names: the root is the empty one.
        let path: &[u8] = if entry.name.is_empty() {
            b"."
        } else {
            &entry.name
        };
        let numbers = (entry.dev_major, entry.dev_minor);
        let builder = &mut self.builder;
        match entry.kind {
            EntryType::Dir => builder.directory(path, &meta)?,
            EntryType::Symlink => builder.symlink(path, &meta, &entry.link)?,
            EntryType::Hardlink => builder.hard_link(path, &entry.link)?,
            EntryType::Char => builder.special(path, &meta, Kind::CharDevice, numbers)?,
            EntryType::Block => builder.special(path, &meta, Kind::BlockDevice, numbers)?,
            EntryType::Fifo => builder.special(path, &meta, Kind::Fifo, numbers)?,
            EntryType::Reg | EntryType::Chunk => {
                let file = builder.file(path, &meta, entry.size)?;
                self.extents.extend(file.map(|file| Extent {
                    file,
                    at: entry.data_at,
                    size: entry.size,
                }));
                return Ok(file);
            }
        }
        Ok(None)
    }

    /// Says which spans are wanted first, by where they begin in the blob.
    pub(crate) fn prefetch(&mut self, spans: Vec<u64>) {
        self.builder.prefetch_at(spans);
    }

    /// Puts entries and spans together: each file's content is cut where a span begins.
    pub(crate) fn index(mut self, spans: Spans) -> Result<LayerIndex, Flaw> {
        let codec = spans.codec.unwrap_or(Codec::Plain);
        for extent in &self.extents {
            let end = extent.at.saturating_add(extent.size);
            let mut at = extent.at;
            let first = spans.found.partition_point(|span| span.out <= at);
            for which in first.saturating_sub(1).. {
                if at == end {
                    break;
                }
                let span = spans.found.get(which).filter(|span| span.out <= at);
                let span = span.ok_or_else(|| Flaw::new("content before the first span"))?;
                let next = spans.found.get(which + 1).map_or(end, |next| next.out);
                let until = end.min(next);
                let spec = ChunkSpec {
                    file_offset: at - extent.at,
                    len: until - at,
                    unit_offset: span.spec.offset,
                    unit_len: span.spec.len,
                    codec,
                    inner: at - span.out,
                    digest: ChunkSpec::BY_UNIT,
                };
                self.builder.chunk(extent.file, spec)?;
                at = until;
            }
        }
        for span in spans.found {
            self.builder.span(span.spec)?;
        }
        self.builder.finish()
    }
}

fn meta(entry: &TarEntry) -> Result<Meta, Flaw> {
    let id = |id| u32::try_from(id).map_err(|_| Flaw::entry(&entry.name, "bad owner"));
    let xattrs = entry.xattrs.iter();
    Ok(Meta {
        mode: entry.mode as u32,
        uid: id(entry.uid)?,
        gid: id(entry.gid)?,
        mtime: (entry.mtime.seconds, entry.mtime.nanos),
        xattrs: xattrs
            .map(|(name, value)| (name.clone().into_bytes(), value.clone()))
            .collect(),
    })
}
