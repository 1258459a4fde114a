//! A gzip layer that stays as it is ("OCI-ref"): its chunks lie in what it unpacks to, and a small blob
//! beside it holds the *inflate contexts*, the places where unpacking can begin with the windows
//! that this needs.
//!
//! Chunks are told in the archive's order. Each belongs to the context before its first byte; what
//! a context unpacks reaches to the end of its last chunk, so two of them may overlap, and never to
//! the end of a gzip member: readers of Nydus take that for a failure.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::blob::{Blob, Chunk, Form, Layer, MAX_BLOB, Piece, Stored, Style, check_count, pieces};
use super::contexts::{Contexts, InflatePart};
use crate::convert::spool::spool_unpacked;
use crate::convert::tar::{TarEntry, encode_regular};
use crate::digest::HashingWriter;
use crate::error::{Error, Result};
use crate::fetch::manifest::Descriptor;
use crate::formats::Flaw;
use crate::formats::nydus::MAX_CONTEXTS;
use crate::index::MAX_UNIT;
use crate::ingest::{self, Refusal, Sink, Spans, Trace};

/// Alignment of chunks in the unpacked blob: the EROFS block.
const ALIGN: u64 = 4096;
/// Bytes of the layer handed on at once.
const BUFFER: usize = 256 << 10;
/// First bytes of a gzip member.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Longest window.
const WINDOW: usize = 32 << 10;
/// Flags of a chunk: it is compressed, by an inflate context.
const CHUNK_FLAGS: u64 = 0x3 << 56;

/// Reads the gzip layer `layer` from `source`, and describes it.
pub(super) fn write(
    layer: &Descriptor,
    source: impl Read,
    style: Style<'_>,
    dir: &Path,
) -> Result<Layer> {
    let what = layer.digest.to_string();
    if layer.size >= MAX_BLOB {
        return Err(Flaw::new("the layer exceeds 8 GiB").of(what));
    }
    let feed = |sink: Sink<'_>| feed(source, &what, sink);
    let consume = |inlet| spool_unpacked(inlet, dir, &what).map_err(Refusal::Contents);
    let (spool, spans) = ingest::unpack(layer.digest, feed, Spans::traced(), consume)?;
    let mut pieces = pieces(&spool.entries, &[], style.chunk_size);
    pieces.sort_by_key(|piece| piece.at);
    let trace = spans.trace.as_ref();
    let trace = trace.ok_or_else(|| Error::Internal("a way that was not noted".to_owned()))?;
    let mut described = Description::new(&spans, trace);
    let mut entries: Vec<_> = spool
        .entries
        .into_iter()
        .map(|one| (one, Vec::new()))
        .collect();
    for piece in &pieces {
        let (entry, chunks) = &mut entries[piece.entry];
        let number = described.piece(piece, entry, &spool.file);
        chunks.push(Stored::Own(number.map_err(|fault| fault.of(&what))?));
    }
    check_count(described.chunks.len())?;
    let blob = described
        .blob(layer, dir)
        .map_err(|fault| fault.of(&what))?;
    Ok(Layer {
        entries,
        chunks: described.chunks,
        blob,
    })
}

/// Hands the layer on, if it is one of gzip.
fn feed(mut source: impl Read, what: &str, sink: Sink<'_>) -> Result<()> {
    let failed = |error: std::io::Error| match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Flaw::new(error.to_string()).of(what),
    };
    let mut first = [0; GZIP.len()];
    let is_whole = source.read_exact(&mut first);
    if is_whole.is_err() || first != GZIP {
        let reason =
            "it is not packed by gzip, which a reference needs: convert it without --oci-ref";
        is_whole.or_else(cut_short).map_err(failed)?;
        return Err(Flaw::new(reason).of(what));
    }
    sink(&first)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match source.read(&mut buffer).map_err(failed)? {
            0 => return Ok(()),
            count => sink(&buffer[..count])?,
        }
    }
}

/// A blob that is shorter than its first bytes is no failure of the transfer.
fn cut_short(error: std::io::Error) -> std::io::Result<()> {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Ok(()),
        _ => Err(error),
    }
}

/// Why a layer cannot be described.
#[derive(Debug)]
enum Fault {
    Flaw(Flaw),
    Io(std::io::Error),
}

impl Fault {
    fn of(self, what: &str) -> Error {
        match self {
            Self::Flaw(flaw) => flaw.of(what),
            Self::Io(error) => Error::io("use a temporary file for", Path::new(what))(error),
        }
    }
}

impl From<Flaw> for Fault {
    fn from(flaw: Flaw) -> Self {
        Self::Flaw(flaw)
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// A place where unpacking can begin, and how far it is needed.
#[derive(Debug)]
struct Inflate {
    /// Number of its span.
    span: usize,
    /// Where its chunks end, in what the layer unpacks to.
    end: u64,
}

/// What is said of a layer, chunk by chunk.
struct Description<'a> {
    spans: &'a Spans,
    trace: &'a Trace,
    chunks: Vec<Chunk>,
    /// The table's entries, one a chunk.
    entries: Vec<u8>,
    inflate: Vec<Inflate>,
    known: HashMap<[u8; 32], u32>,
    plain_len: u64,
    buffer: Vec<u8>,
}

impl<'a> Description<'a> {
    fn new(spans: &'a Spans, trace: &'a Trace) -> Self {
        Self {
            spans,
            trace,
            chunks: Vec::new(),
            entries: Vec::new(),
            inflate: Vec::new(),
            known: HashMap::new(),
            plain_len: 0,
            buffer: Vec::new(),
        }
    }

    /// Takes the next piece of the `archive`; the number of its chunk.
    fn piece(&mut self, piece: &Piece, entry: &TarEntry, archive: &File) -> Result<u32, Fault> {
        self.buffer.resize(piece.len as usize, 0);
        archive.read_exact_at(&mut self.buffer, piece.at)?;
        let digest = Form::REFERENCE.algorithm.of(&self.buffer);
        let length = piece.len as u32;
        if let Some(&number) = self.known.get(&digest) {
            return Ok(number);
        }
        let (begin, end) = (piece.at, piece.at + piece.len);
        let trace = self.trace;
        if trace.ends_within(begin, end) {
            let reason =
                "a piece of it reaches the end of a gzip member, where Nydus stops reading";
            return Err(Flaw::entry(&entry.name, reason).into());
        }
        let (context, inner) = self.context(begin, end)?;
        let (packed, packed_end) = (trace.about(begin), trace.about(end));
        let chunk = Chunk {
            digest,
            packed: (packed, (packed_end - packed) as u32),
            plain: (self.plain_len, length),
            is_packed: true,
        };
        for word in [
            CHUNK_FLAGS | u64::from(length - 1) << 32 | (chunk.plain.0 / ALIGN),
            u64::from(chunk.packed.1) << 40 | packed,
            u64::from(context) << 32 | inner,
        ] {
            self.entries.extend_from_slice(&word.to_le_bytes());
        }
        let number = self.chunks.len() as u32;
        self.chunks.push(chunk);
        self.known.insert(digest, number);
        self.plain_len += piece.len.next_multiple_of(ALIGN);
        Ok(number)
    }

    /// The context for these bytes, and where in what it unpacks to they begin.
    fn context(&mut self, begin: u64, end: u64) -> Result<(u32, u64), Flaw> {
        let spans = &self.spans.found;
        let span = spans
            .partition_point(|span| span.out <= begin)
            .checked_sub(1);
        let span = span.ok_or_else(|| Flaw::new("no place to begin unpacking"))?;
        match self.inflate.last_mut() {
            Some(last) if last.span == span => last.end = end,
            _ => self.inflate.push(Inflate { span, end }),
        }
        Ok((self.inflate.len() as u32 - 1, begin - spans[span].out))
    }

    /// The inflate contexts and their windows, as the table ends.
    fn inflate_contexts(&self) -> Result<Vec<u8>, Fault> {
        let (mut records, mut windows) = (Vec::new(), Vec::new());
        for context in &self.inflate {
            let found = &self.spans.found[context.span];
            let window = match &found.spec.window[..] {
                [] => Vec::new(),
                frame => zstd::bulk::decompress(frame, WINDOW)?,
            };
            // The byte that is shared with what is before is told by itself.
            let begin = found.spec.offset + u64::from(found.spec.bits > 0);
            let packed_len = self.trace.needed(context.end).saturating_sub(begin);
            let len = context.end - found.out;
            if packed_len.max(len) >= MAX_UNIT {
                let reason = format!("behind byte {begin} there is no place to begin for too long");
                return Err(Flaw::new(reason).into());
            }
            for long in [begin, found.out, windows.len() as u64] {
                records.extend_from_slice(&long.to_le_bytes());
            }
            for word in [packed_len as u32, len as u32, window.len() as u32] {
                records.extend_from_slice(&word.to_le_bytes());
            }
            records.extend_from_slice(&[self.trace.before(context.span), found.spec.bits, 0, 0]);
            windows.extend_from_slice(&window);
        }
        records.extend_from_slice(&windows);
        Ok(records)
    }

    /// Writes the contexts into a nameless file in `dir`; none for a layer without contents.
    fn blob(&self, layer: &Descriptor, dir: &Path) -> Result<Option<Blob>, Fault> {
        if self.chunks.is_empty() {
            return Ok(None);
        }
        let inflate = self.inflate_contexts()?;
        let part = InflatePart {
            at: self.entries.len() as u64,
            len: inflate.len() as u64,
            count: self.inflate.len() as u32,
        };
        let table = [&self.entries[..], &inflate].concat();
        if table.len() as u64 > MAX_CONTEXTS {
            return Err(Flaw::new("its inflate contexts are too long; larger chunks help").into());
        }
        let head = encode_regular("image.blob", layer.size);
        let (count, features) = (self.chunks.len(), Form::REFERENCE.features);
        let (contexts, rest) =
            Contexts::pack(&table, count, head.len() as u64, features, Some(part))?;
        let mut out = HashingWriter::new(tempfile::tempfile_in(dir)?);
        out.write_all(&head)?;
        out.write_all(&rest)?;
        let (file, digest, size) = out.finish();
        Ok(Some(Blob {
            file: Some(file),
            beside: Some((digest, size)),
            digest: layer.digest,
            size: layer.size,
            plain_len: self.plain_len,
            contexts,
        }))
    }
}
