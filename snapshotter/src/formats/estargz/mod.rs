//! eStargz and legacy stargz: gzip members that a TOC at the blob's end makes seekable.
//!
//! The blob is a valid gzip file. Each chunk of a file begins a member of its own (or shares one
//! with other small files, `innerOffset`); the TOC says where. The TOC's digest stands in the
//! image manifest, the chunks' digests in the TOC: so every byte is vouched for by the manifest.

pub mod entry;
pub mod footer;
mod pull;
pub mod toc;

use std::io::Read;

use self::entry::Entry;
use self::toc::{EntryType, NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME, ZEROS};
use super::{Flaw, timestamp};
use crate::digest::Digest;
use crate::index::{ChunkSpec, Codec, FileId, Kind, LayerBuilder, LayerIndex, Meta};

/// Longest TOC in bytes, unpacked: some two million entries.
pub const MAX_TOC: u64 = 512 << 20;
/// Longest TOC in bytes, packed.
pub const MAX_PACKED_TOC: u64 = 128 << 20;

/// Unpacks the TOC's JSON out of its gzip member, `packed`.
pub fn unpack_toc(packed: &[u8]) -> Result<Vec<u8>, Flaw> {
    let broken = |error: std::io::Error| Flaw::new(format!("TOC: {error}"));
    // Room for the tar header and its padding; more than the limit can only be a bomb.
    let unpacked = flate2::read::GzDecoder::new(packed).take(MAX_TOC + 4096);
    let mut archive = tar::Archive::new(unpacked);
    let mut entry = archive
        .entries()
        .map_err(broken)?
        .next()
        .ok_or_else(|| Flaw::new("TOC: its archive is empty"))?
        .map_err(broken)?;
    if entry.path_bytes().as_ref() != TOC_NAME.as_bytes() {
        return Err(Flaw::new(format!(
            "TOC: its archive does not begin with {TOC_NAME}"
        )));
    }
    let size = entry.size();
    if size > MAX_TOC {
        return Err(Flaw::new(format!("TOC: {size} bytes, more than {MAX_TOC}")));
    }
    let mut json = Vec::new();
    entry.read_to_end(&mut json).map_err(broken)?;
    if json.len() as u64 != size {
        return Err(Flaw::new(format!(
            "TOC: {} of {size} bytes are there",
            json.len()
        )));
    }
    Ok(json)
}

/// Makes the index of `layer`, a blob of `blob_size` bytes, from its TOC's JSON.
///
/// `toc_offset` ends the last chunk's member. The caller has checked `toc`, the JSON's digest.
pub fn index(
    json: &[u8],
    layer: Digest,
    toc: Digest,
    blob_size: u64,
    toc_offset: u64,
) -> Result<LayerIndex, Flaw> {
    let builder = LayerBuilder::new(layer, toc, blob_size);
    read(json, builder, Codec::Gzip, toc_offset)
}

/// Bytes of JSON that an entry takes, about, as converters write it.
const ENTRY: usize = 300;

/// Fills `builder` from a TOC whose chunks are packed by `codec` and end before `end` in the blob.
pub(super) fn read(
    json: &[u8],
    mut builder: LayerBuilder,
    codec: Codec,
    end: u64,
) -> Result<LayerIndex, Flaw> {
    builder.expect(json.len() / ENTRY);
    let mut reader = Reader {
        builder,
        codec,
        name: String::new(),
        current: None,
        offsets: vec![end],
    };
    toc::for_each_entry(json, |entry| reader.entry(entry))?;
    reader.finish()
}

/// What writers put into JSON for bytes that are not UTF-8: the file has another name in the layer,
/// or it has just this one. An ordinary pull knows.
const LOST: char = char::REPLACEMENT_CHARACTER;

struct Reader {
    builder: LayerBuilder,
    codec: Codec,
    /// Name of the file whose further chunks may follow, and what else is to be known of it.
    name: String,
    current: Option<Current>,
    /// Where members (or frames) begin, and where a file's last one ends if the TOC says so: each
    /// ends at the next of these.
    offsets: Vec<u64>,
}

#[derive(Clone, Copy)]
struct Current {
    size: u64,
    /// `None` for what is not part of the file system: a landmark or a whiteout.
    file: Option<FileId>,
}

impl Reader {
    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), Flaw> {
        let path: &str = entry.name.as_ref();
        if path.contains(LOST) || entry.link_name.contains(LOST) {
            let reason = "a name with U+FFFD, which the layer's writer put where it was no UTF-8";
            return Err(Flaw::entry(path, reason));
        }
        if entry.kind == EntryType::Chunk {
            return self.chunk(entry);
        }
        self.current = None;
        if entry.kind == EntryType::Reg && self.hidden(entry) {
            return Ok(());
        }
        let meta = meta(entry)?;
        let numbers = (entry.dev_major, entry.dev_minor);
        match entry.kind {
            EntryType::Dir => self.builder.directory(path, &meta),
            EntryType::Symlink => self.builder.symlink(path, &meta, entry.link_name.as_ref()),
            EntryType::Hardlink => self.builder.hard_link(path, entry.link_name.as_ref()),
            EntryType::Char => self.builder.special(path, &meta, Kind::CharDevice, numbers),
            EntryType::Block => self
                .builder
                .special(path, &meta, Kind::BlockDevice, numbers),
            EntryType::Fifo => self.builder.special(path, &meta, Kind::Fifo, numbers),
            EntryType::Reg | EntryType::Chunk => {
                let file = self.builder.file(path, &meta, entry.size)?;
                self.begin(entry, file);
                match entry.size {
                    0 => Ok(()),
                    _ => self.chunk(entry),
                }
            }
        }
    }

    /// Takes note of a landmark; neither it nor the TOC itself is part of the file system.
    fn hidden(&mut self, entry: &Entry<'_>) -> bool {
        let name = entry.name.strip_prefix("./").unwrap_or(&entry.name);
        match name {
            PREFETCH_LANDMARK => self.builder.prefetch_before(entry.offset),
            NO_PREFETCH_LANDMARK => self.builder.prefetch_before(0),
            TOC_NAME => {}
            _ => return false,
        }
        self.offsets.push(entry.offset);
        self.begin(entry, None);
        true
    }

    /// Lets the chunks of `file` follow.
    fn begin(&mut self, entry: &Entry<'_>, file: Option<FileId>) {
        self.name.clear();
        self.name.push_str(&entry.name);
        let size = entry.size;
        self.current = Some(Current { size, file });
    }

    fn chunk(&mut self, entry: &Entry<'_>) -> Result<(), Flaw> {
        let refuse = |reason: &str| Err(Flaw::entry(entry.name.as_ref(), reason));
        let Some(current) = self.current.filter(|_| self.name == entry.name) else {
            return refuse("a chunk that does not follow its file");
        };
        self.offsets.push(entry.offset);
        if entry.end_offset > 0 {
            self.offsets.push(entry.end_offset);
        }
        let Some(file) = current.file else {
            return Ok(());
        };
        if entry.chunk_offset >= current.size {
            return refuse("a chunk behind the end of the file");
        }
        let len = match entry.chunk_size {
            0 => current.size - entry.chunk_offset,
            size => size,
        };
        match entry.chunk_type.as_ref() {
            "" => {}
            ZEROS => return self.builder.hole(file, entry.chunk_offset, len),
            other => return refuse(&format!("a chunk of type {other:?}")),
        }
        let whole = entry.chunk_offset == 0 && len == current.size;
        let digest = match entry.chunk_digest.as_ref() {
            "" if whole => entry.digest.as_ref(),
            digest => digest,
        };
        let Ok(digest) = digest.parse() else {
            return refuse("a chunk without a valid digest");
        };
        let spec = ChunkSpec {
            file_offset: entry.chunk_offset,
            len,
            unit_offset: entry.offset,
            unit_len: 0,
            codec: self.codec,
            inner: entry.inner_offset,
            digest,
        };
        self.builder.chunk_without_end(file, spec)
    }

    fn finish(mut self) -> Result<LayerIndex, Flaw> {
        // A member behind the TOC has no end and is refused as one of no length.
        self.builder.end_units(self.offsets)?;
        self.builder.finish()
    }
}

fn meta(entry: &Entry<'_>) -> Result<Meta, Flaw> {
    let id = |id| u32::try_from(id).map_err(|_| Flaw::entry(entry.name.as_ref(), "bad owner"));
    let mtime = match entry.mod_time.as_ref() {
        "" => (0, 0),
        text => timestamp::parse(text)
            .ok_or_else(|| Flaw::entry(entry.name.as_ref(), format!("bad time {text:?}")))?,
    };
    let xattrs = entry.xattrs.iter();
    Ok(Meta {
        mode: (entry.mode & 0o7777) as u32,
        uid: id(entry.uid)?,
        gid: id(entry.gid)?,
        mtime,
        xattrs: xattrs
            .map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()))
            .collect(),
    })
}

#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;
