//! The table of compression contexts of a data blob (`blob.meta`): where each chunk is packed.
//!
//! ```text
//! entries        24 bytes a chunk
//! batch: what is said of each batch, 40 bytes
//! zran:  inflate contexts, 40 bytes each, then the windows that they name
//! header         4096 bytes, not packed; the number of inflate contexts is there alone
//! ```
//!
//! A bootstrap's own chunk table says the same of chunks that are packed alone, so this is read only
//! for blobs that pack several small chunks together (*batch*), and for those that are an unchanged
//! gzip layer (*zran*, "OCI-ref"). Nobody vouches for it, nor need anybody: chunks have digests.

use super::assemble::UnitPlace;
use super::blobs::{BlobInfo, FEATURE_BATCH, FEATURE_SEPARATE, FEATURE_ZRAN};
use super::view::View;
use crate::digest::Digest;
use crate::formats::Flaw;
use crate::index::{Codec, SpanSpec};

/// Longest table, unpacked.
pub(crate) const MAX_LEN: u64 = 256 << 20;
/// Feature: entries of 24 bytes instead of 16.
const FEATURE_V2: u32 = 0x4;
/// Bytes of an entry.
const ENTRY: u64 = 24;
/// Bytes of what is said of a batch.
const BATCH: u64 = 40;
/// Bytes of an inflate context.
const INFLATE: u64 = 40;
/// Bytes of the header.
const HEADER: u64 = 4096;
/// The header's first and last field.
const MAGIC: u32 = 0xb10b_b10b;
/// Longest window: how far deflate data refers back.
const WINDOW: u32 = 32 << 10;
const WINDOW_LEVEL: i32 = 1;
/// Flags of an entry: where the chunk is packed.
const FLAG_ZRAN: u64 = 2 << 56;
const FLAG_BATCH: u64 = 4 << 56;
const OFFSET_MASK: u64 = (1 << 40) - 1;

/// Where a table of contexts lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextRange {
    /// The blob that holds it.
    pub blob: Digest,
    /// That blob's length, if it is not the data blob itself.
    pub size: Option<u64>,
    /// Offset in that blob.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A table of contexts, unpacked.
#[derive(Debug)]
pub struct Contexts {
    bytes: Vec<u8>,
    entries: u64,
    /// Number of inflate contexts; none of a blob with batches.
    inflate: Option<u64>,
}

/// What has to be read for a blob's contexts; `None` if they are not needed.
pub(super) fn needed(blob: &BlobInfo) -> Result<Option<ContextRange>, Flaw> {
    let refuse = |reason: &str| Err(Flaw::new(format!("blob {}: {reason}", blob.digest)));
    let is_zran = blob.features & FEATURE_ZRAN != 0;
    if !is_zran && blob.features & FEATURE_BATCH == 0 {
        return Ok(None);
    }
    if blob.features & FEATURE_V2 == 0 {
        return refuse("batches and zran need version 2 of the compression contexts");
    }
    let place = &blob.context;
    if place.len > MAX_LEN || place.packed_len > MAX_LEN {
        return refuse("its table of compression contexts is too long");
    }
    let is_separate = blob.features & FEATURE_SEPARATE != 0;
    let (holder, size) = match blob.meta.filter(|_| is_separate) {
        Some((digest, size)) => (digest, Some(size)),
        None if is_separate => {
            return refuse("the bootstrap does not say which blob holds its compression contexts");
        }
        None => (blob.digest, None),
    };
    Ok(Some(ContextRange {
        blob: holder,
        size,
        offset: place.offset,
        len: place.packed_len + if is_zran { HEADER } else { 0 },
    }))
}

impl Contexts {
    /// Reads the table of `blob` out of the bytes that [`needed`] asked for.
    pub(super) fn read(blob: &BlobInfo, packed: &[u8]) -> Result<Self, Flaw> {
        let refuse = |reason: String| {
            let blob = blob.digest;
            Flaw::new(format!("contexts of blob {blob}: {reason}"))
        };
        let is_zran = blob.features & FEATURE_ZRAN != 0;
        let header = if is_zran { HEADER } else { 0 };
        let (packed, header) = packed
            .len()
            .checked_sub(header as usize)
            .map(|len| packed.split_at(len))
            .ok_or_else(|| refuse("without a header".to_owned()))?;
        let len = blob.context.len as usize;
        let bytes = crate::fill::unpack::unpack(blob.context.codec, packed, len).map_err(refuse)?;
        let entries = u64::from(blob.chunks);
        let mut needed = entries * ENTRY;
        let inflate = is_zran.then(|| inflate_contexts(header, needed));
        let inflate = inflate.transpose()?;
        needed += inflate.unwrap_or(0) * INFLATE;
        if needed > bytes.len() as u64 {
            return Err(refuse(format!(
                "{} bytes for {entries} chunks",
                bytes.len()
            )));
        }
        Ok(Self {
            bytes,
            entries,
            inflate,
        })
    }

    fn view(&self) -> View<'_> {
        View::new("contexts", &self.bytes)
    }

    /// The place of the chunk number `index`; `codec` is how batches are packed.
    pub(super) fn place(&self, index: u32, codec: Codec) -> Result<UnitPlace, String> {
        self.find(index, codec).map_err(|flaw| flaw.to_string())
    }

    fn find(&self, index: u32, codec: Codec) -> Result<UnitPlace, Flaw> {
        let (view, what) = (self.view(), "a compression context");
        if u64::from(index) >= self.entries {
            return Err(view.flaw(format_args!("chunk {index} of {}", self.entries)));
        }
        let at = u64::from(index) * ENTRY;
        let flags = view.u64(at, what)?;
        let offset = view.u64(at + 8, what)? & OFFSET_MASK;
        let data = view.u64(at + 16, what)?;
        let (number, inner) = (data >> 32, data & u64::from(u32::MAX));
        if let Some(count) = self.inflate {
            if flags & FLAG_ZRAN == 0 || number >= count {
                return Err(view.flaw(format_args!("chunk {index} has no inflate context")));
            }
            let context = self.inflate_context(number)?;
            return Ok(UnitPlace {
                offset: context.offset,
                len: context.len,
                codec: Codec::Deflate,
                inner,
            });
        }
        if flags & FLAG_BATCH == 0 {
            return Err(view.flaw(format_args!("chunk {index} is in no batch")));
        }
        let batch = self.entries * ENTRY + number * BATCH;
        let (len, unpacked_len) = (view.u32(batch, "a batch")?, view.u32(batch + 4, "a batch")?);
        Ok(UnitPlace {
            offset,
            len: u64::from(len),
            // What does not become smaller is stored as it is.
            codec: if len == unpacked_len {
                Codec::Plain
            } else {
                codec
            },
            inner,
        })
    }

    /// Where inflating may begin, in the order of the table; nothing for batches.
    pub(super) fn spans(&self) -> impl Iterator<Item = Result<SpanSpec, Flaw>> + '_ {
        (0..self.inflate.unwrap_or(0)).map(|number| {
            let context = self.inflate_context(number)?;
            let window = match context.window {
                [] => Vec::new(),
                bytes => zstd::bulk::compress(bytes, WINDOW_LEVEL).map_err(|error| {
                    let reason = format_args!("a window cannot be kept: {error}");
                    self.view().flaw(reason)
                })?,
            };
            Ok(SpanSpec {
                offset: context.offset,
                len: context.len,
                digest: SpanSpec::BY_CHUNKS,
                bits: context.bits,
                window,
            })
        })
    }

    fn inflate_context(&self, number: u64) -> Result<Inflate<'_>, Flaw> {
        let what = "an inflate context";
        let view = self.view();
        let contexts = self.entries * ENTRY;
        let record = view.part(contexts + number * INFLATE, INFLATE, what)?;
        let (offset, window_at) = (record.u64(0, what)?, record.u64(16, what)?);
        let (len, window_len) = (record.u32(24, what)?, record.u32(32, what)?);
        let bits = record.u8(37, what)?;
        // The byte of which only some bits are left counts as part of the span.
        let shared = u64::from(bits > 0);
        let offset = offset.checked_sub(shared).filter(|_| bits < 8);
        let offset =
            offset.ok_or_else(|| view.flaw(format_args!("{what} that begins at bit {bits}")))?;
        if window_len > WINDOW {
            return Err(view.flaw(format_args!("a window of {window_len} bytes")));
        }
        let windows = contexts + self.inflate.unwrap_or(0) * INFLATE;
        let window = windows.checked_add(window_at);
        let window = window.ok_or_else(|| view.flaw("a window beyond 2^64"))?;
        Ok(Inflate {
            offset,
            len: u64::from(len) + shared,
            bits,
            window: view.slice(window, window_len.into(), "a window")?,
        })
    }
}

/// Where inflating may begin.
struct Inflate<'a> {
    offset: u64,
    len: u64,
    bits: u8,
    window: &'a [u8],
}

/// The number of inflate contexts that the header tells; they must lie behind the `entries` bytes
/// of the other table.
fn inflate_contexts(header: &[u8], entries: u64) -> Result<u64, Flaw> {
    let (view, field) = (View::new("header of contexts", header), "a field");
    let is_header = view.u32(0, field)? == MAGIC && view.u32(HEADER - 4, field)? == MAGIC;
    if !is_header || view.u64(40, field)? != entries {
        return Err(view.flaw("not one of inflate contexts"));
    }
    Ok(u64::from(view.u32(56, field)?))
}
