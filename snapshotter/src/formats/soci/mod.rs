//! SOCI: a *ztoc* describes an ordinary gzip layer: its files, and places where inflating may begin,
//! with the digest of each span of the blob. It lies beside the image, in an artifact that names a
//! ztoc for each layer of 10 MiB and more (`docs/soci-index-manifest-v2.md` of SOCI's repository).

mod flat;
pub mod prefetch;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use self::flat::{Buffer, Table};
use super::{Flaw, timestamp};
use crate::convert::tar::{Raw, TarEntry, Time};
use crate::digest::Digest;
use crate::formats::estargz::toc::EntryType;
use crate::index::{Codec, LayerBuilder, LayerIndex, MAX_ENTRIES, SpanSpec};
use crate::ingest::{Found, Listed, Spans};

/// Type of the first version's index, which refers to the image.
pub const INDEX_V1: &str = "application/vnd.amazon.soci.index.v1+json";
/// Annotation of an image's manifest: the digest of its index of the second version.
pub const INDEX_ANNOTATION: &str = "com.amazon.soci.index-digest";
/// Annotation of a ztoc in an index: the digest of its layer.
pub const LAYER_ANNOTATION: &str = "com.amazon.soci.image-layer-digest";
/// Longest ztoc that is read: that of a layer of 8 GiB in spans of 4 MiB.
pub const MAX_ZTOC: u64 = 96 << 20;

/// Length of a window.
const WINDOW: usize = 32 << 10;
/// Length of a checkpoint: offsets in blob and archive, bits, window.
const CHECKPOINT: usize = 8 + 8 + 1 + WINDOW;
/// Where deflate data begins in a gzip blob whose header has no optional parts; the first version of
/// checkpoints takes this for granted.
const PLAIN_HEADER: u64 = 10;
const WINDOW_LEVEL: i32 = 1;
/// Namespaces of extended attributes; a ztoc mixes them with an archive's other PAX records.
const XATTRS: [&str; 4] = ["user.", "trusted.", "security.", "system."];

/// Makes the index of the layer `layer` of `size` bytes from its ztoc.
pub fn index(ztoc: &[u8], layer: Digest, size: u64) -> Result<LayerIndex, Flaw> {
    index_prefetched(ztoc, layer, size, &[])
}

/// The same; `wanted` are the spans that are wanted first, in their order.
pub fn index_prefetched(
    ztoc: &[u8],
    layer: Digest,
    size: u64,
    wanted: &[RangeInclusive<u32>],
) -> Result<LayerIndex, Flaw> {
    let buffer = Buffer::new(ztoc);
    let root = buffer.root()?;
    if root.size(2)? != size {
        return Err(Flaw::new("ztoc: of a layer of another length"));
    }
    let missing = |what: &str| Flaw::new(format!("ztoc: without {what}"));
    let info = root.table(5)?.ok_or_else(|| missing("compression"))?;
    let spans = spans(info, size)?;
    let mut listed = Listed::new(LayerBuilder::new(layer, Digest::of(ztoc), size));
    let toc = root.table(4)?.ok_or_else(|| missing("contents"))?;
    let entries = toc.vector(0)?.ok_or_else(|| missing("entries"))?;
    if entries.len() > MAX_ENTRIES {
        return Err(Flaw::new("ztoc: more than 10000000 entries"));
    }
    for entry in entries.tables() {
        listed.enter(&describe(entry?)?)?;
    }
    let wanted = wanted.iter().cloned().flat_map(|range| {
        let (first, last) = (*range.start() as usize, *range.end() as usize);
        spans.found.iter().skip(first).take(last - first + 1)
    });
    listed.prefetch(wanted.map(|span| span.spec.offset).collect());
    listed.index(spans)
}

fn describe(entry: Table<'_>) -> Result<TarEntry, Flaw> {
    let name = entry.bytes(0)?;
    let kind = match entry.string(1)? {
        "reg" => EntryType::Reg,
        "dir" => EntryType::Dir,
        "symlink" => EntryType::Symlink,
        "hardlink" => EntryType::Hardlink,
        "char" => EntryType::Char,
        "block" => EntryType::Block,
        "fifo" => EntryType::Fifo,
        other => return Err(Flaw::entry(name, format!("unknown type {other:?}"))),
    };
    let time = entry.string(10)?;
    let (seconds, nanos) =
        timestamp::parse(time).ok_or_else(|| Flaw::entry(name, format!("bad time {time:?}")))?;
    Ok(TarEntry {
        name: name.into(),
        kind,
        link: entry.bytes(4)?.into(),
        mode: entry.size(5)? & 0o7777,
        uid: entry.u32(6)?.into(),
        gid: entry.u32(7)?.into(),
        user_name: String::new(),
        group_name: String::new(),
        mtime: Time { seconds, nanos },
        dev_major: entry.size(11)?,
        dev_minor: entry.size(12)?,
        xattrs: xattrs(entry)?,
        header_at: 0,
        raw: Raw::default(),
        data_at: entry.size(2)?,
        size: if kind == EntryType::Reg {
            entry.size(3)?
        } else {
            0
        },
    })
}

fn xattrs(entry: Table<'_>) -> Result<BTreeMap<String, Vec<u8>>, Flaw> {
    let mut xattrs = BTreeMap::new();
    let Some(records) = entry.vector(13)? else {
        return Ok(xattrs);
    };
    for record in records.tables() {
        let record = record?;
        let key = record.string(0)?;
        let name = key.strip_prefix("SCHILY.xattr.").unwrap_or(key);
        if XATTRS.iter().any(|namespace| name.starts_with(namespace)) {
            xattrs.insert(name.to_owned(), record.bytes(1)?.to_vec());
        }
    }
    Ok(xattrs)
}

/// A place where inflating may begin.
struct Checkpoint<'a> {
    /// First byte of the blob of which nothing has been consumed.
    at: u64,
    out: u64,
    /// Bits of the byte before `at` that have not been consumed.
    bits: u8,
    window: &'a [u8],
}

/// The spans, each from one checkpoint to the next.
fn spans(info: Table<'_>, size: u64) -> Result<Spans, Flaw> {
    const GZIP: u8 = 1;
    if info.byte(0)?.unwrap_or(GZIP) != GZIP {
        return Err(Flaw::new("ztoc: of a layer that is not gzip"));
    }
    let checkpoints = checkpoints(info.bytes(3)?)?;
    let digests = info
        .vector(2)?
        .ok_or_else(|| Flaw::new("ztoc: without digests"))?;
    if digests.len() != checkpoints.len() {
        return Err(Flaw::new(format!(
            "ztoc: {} digests of {} spans",
            digests.len(),
            checkpoints.len()
        )));
    }
    let mut spans = Spans::of(Codec::Deflate);
    for (id, digest) in digests.strings().enumerate() {
        let digest = digest?
            .parse()
            .map_err(|_| Flaw::new("ztoc: no valid digest"))?;
        let here = &checkpoints[id];
        let end = checkpoints.get(id + 1).map_or(size, |next| next.at);
        let offset = here.at.checked_sub(u64::from(here.bits > 0));
        let (offset, len) = offset
            .and_then(|offset| Some((offset, end.checked_sub(offset)?)))
            .ok_or_else(|| Flaw::new("ztoc: spans are not in order"))?;
        if spans.found.last().is_some_and(|last| last.out > here.out) {
            return Err(Flaw::new("ztoc: spans are not in order"));
        }
        let window = match here.out {
            0 => Vec::new(),
            _ => zstd::bulk::compress(here.window, WINDOW_LEVEL)
                .map_err(|error| Flaw::new(format!("ztoc: a window cannot be kept: {error}")))?,
        };
        spans.found.push(Found {
            out: here.out,
            spec: SpanSpec {
                offset,
                len,
                digest,
                bits: here.bits,
                window,
            },
        });
    }
    Ok(spans)
}

/// The checkpoints: a count, the distance they were made at, and the records. The first version left
/// out the one at the stream's start.
fn checkpoints(bytes: &[u8]) -> Result<Vec<Checkpoint<'_>>, Flaw> {
    let bad = || Flaw::new("ztoc: checkpoints of no valid length");
    let (head, records) = bytes.split_at_checked(12).ok_or_else(bad)?;
    let count = head.first_chunk().map(|count| u32::from_le_bytes(*count));
    let count = count.ok_or_else(bad)? as usize;
    let written = records.len() / CHECKPOINT;
    if records.len() % CHECKPOINT != 0 || (written != count && written + 1 != count) {
        return Err(bad());
    }
    let mut checkpoints = Vec::with_capacity(count);
    if written != count {
        checkpoints.push(Checkpoint {
            at: PLAIN_HEADER,
            out: 0,
            bits: 0,
            window: &[],
        });
    }
    for record in records.chunks_exact(CHECKPOINT) {
        let number = |at: usize| {
            let bytes = record[at..].first_chunk();
            bytes
                .map(|bytes| u64::from_le_bytes(*bytes))
                .ok_or_else(bad)
        };
        checkpoints.push(Checkpoint {
            at: number(0)?,
            out: number(8)?,
            bits: record[16],
            window: &record[17..],
        });
    }
    Ok(checkpoints)
}
