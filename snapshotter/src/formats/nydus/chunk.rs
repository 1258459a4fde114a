//! The chunk record that RAFS v5 has in its inodes and RAFS v6 in a table: 80 bytes.

use super::view::View;
use crate::digest::Digest;
use crate::formats::Flaw;

/// Bytes of a record.
pub(super) const LEN: u64 = 80;
/// The chunk is compressed by its blob's algorithm.
pub(super) const COMPRESSED: u32 = 1;
/// The chunk is a hole.
pub(super) const HOLE: u32 = 2;
/// The chunk is encrypted.
pub(super) const ENCRYPTED: u32 = 4;
/// The chunk is compressed together with others.
pub(super) const BATCH: u32 = 8;

/// Where a chunk lies and what it must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) digest: Digest,
    pub(super) blob: u32,
    pub(super) flags: u32,
    pub(super) packed_len: u32,
    pub(super) len: u32,
    pub(super) packed_offset: u64,
    /// Offset in the blob when all of it is unpacked.
    pub(super) offset: u64,
    pub(super) file_offset: u64,
    /// Number among the chunks of the blob.
    pub(super) index: u32,
}

impl Record {
    pub(super) fn read(view: &View<'_>, at: u64) -> Result<Self, Flaw> {
        let record = view.part(at, LEN, "a chunk record")?;
        let field = "a chunk record's field";
        Ok(Self {
            digest: Digest::from_bytes(record.array(0, field)?),
            blob: record.u32(32, field)?,
            flags: record.u32(36, field)?,
            packed_len: record.u32(40, field)?,
            len: record.u32(44, field)?,
            packed_offset: record.u64(48, field)?,
            offset: record.u64(56, field)?,
            file_offset: record.u64(64, field)?,
            index: record.u32(72, field)?,
        })
    }
}
