//! The table of compression contexts in a data blob (`blob.meta`): where each chunk is packed.
//!
//! A bootstrap's own chunk table says the same of chunks that are packed alone, so this is read
//! only for blobs that pack several small chunks together (*batch*).

use super::assemble::UnitPlace;
use super::blobs::{BlobInfo, FEATURE_BATCH, FEATURE_ZRAN};
use super::view::View;
use crate::formats::Flaw;
use crate::index::Codec;

/// Longest table, unpacked.
const MAX_LEN: u64 = 256 << 20;
/// Feature: entries of 24 bytes instead of 16.
const FEATURE_V2: u32 = 0x4;
/// Bytes of an entry.
const ENTRY: u64 = 24;
/// Bytes of what is said of a batch.
const BATCH: u64 = 40;
/// Flag of an entry: several chunks are packed together.
const FLAG_BATCH: u64 = 4 << 56;
const OFFSET_MASK: u64 = (1 << 40) - 1;

/// A table of contexts, unpacked.
#[derive(Debug)]
pub struct Contexts {
    bytes: Vec<u8>,
    entries: u64,
}

/// The range of the blob that has to be read for its contexts; `None` if they are not needed.
pub(super) fn needed(blob: &BlobInfo) -> Result<Option<(u64, u64)>, Flaw> {
    let refuse = |reason: &str| Err(Flaw::new(format!("blob {}: {reason}", blob.digest)));
    if blob.features & FEATURE_ZRAN != 0 {
        return refuse("inflate states of an unchanged gzip layer (zran) are not supported");
    }
    if blob.features & FEATURE_BATCH == 0 {
        return Ok(None);
    }
    if blob.features & FEATURE_V2 == 0 {
        return refuse("batches need version 2 of the compression contexts");
    }
    let place = &blob.context;
    if place.len > MAX_LEN || place.packed_len > MAX_LEN {
        return refuse("its table of compression contexts is too long");
    }
    Ok(Some((place.offset, place.packed_len)))
}

impl Contexts {
    /// Reads the table of `blob` out of the bytes that [`needed`] asked for.
    pub(super) fn read(blob: &BlobInfo, packed: &[u8]) -> Result<Self, Flaw> {
        let len = blob.context.len as usize;
        let bytes = crate::fill::unpack::unpack(blob.context.codec, packed, len)
            .map_err(|reason| Flaw::new(format!("contexts of blob {}: {reason}", blob.digest)))?;
        let entries = u64::from(blob.chunks);
        if entries * ENTRY > bytes.len() as u64 {
            return Err(Flaw::new(format!(
                "contexts of blob {}: {} bytes for {entries} chunks",
                blob.digest,
                bytes.len()
            )));
        }
        Ok(Self { bytes, entries })
    }

    /// The place of the chunk number `index`.
    pub(super) fn batched(&self, index: u32, codec: Codec) -> Result<UnitPlace, String> {
        let what = "a compression context";
        let read = || {
            let view = View::new("contexts", &self.bytes);
            let at = u64::from(index) * ENTRY;
            if u64::from(index) >= self.entries {
                return Err(view.flaw(format_args!("chunk {index} of {}", self.entries)));
            }
            let (unpacked, packed) = (view.u64(at, what)?, view.u64(at + 8, what)?);
            let data = view.u64(at + 16, what)?;
            let offset = packed & OFFSET_MASK;
            if unpacked & FLAG_BATCH == 0 {
                return Err(view.flaw(format_args!("chunk {index} is in no batch")));
            }
            let batch = self.entries * ENTRY + (data >> 32) * BATCH;
            let (len, unpacked_len) =
                (view.u32(batch, "a batch")?, view.u32(batch + 4, "a batch")?);
            Ok(UnitPlace {
                offset,
                len: u64::from(len),
                // What does not become smaller is stored as it is.
                codec: if len == unpacked_len {
                    Codec::Plain
                } else {
                    codec
                },
                inner: data & u64::from(u32::MAX),
            })
        };
        read().map_err(|flaw| flaw.to_string())
    }
}
