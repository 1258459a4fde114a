//! What a bootstrap says of each data blob.

use super::view::View;
use crate::digest::{Algorithm, Digest};
use crate::formats::Flaw;
use crate::index::Codec;

/// Feature: the blob's compression contexts hold inflate states of an unchanged gzip layer.
pub(super) const FEATURE_ZRAN: u32 = 0x8;
/// Feature: the compression contexts lie in another blob.
pub(super) const FEATURE_SEPARATE: u32 = 0x10;
/// Feature: several chunks are compressed together.
pub(super) const FEATURE_BATCH: u32 = 0x80;
/// Feature: chunks are encrypted.
pub(super) const FEATURE_ENCRYPTED: u32 = 0x100;

/// One data blob.
#[derive(Debug, Clone, Copy)]
pub struct BlobInfo {
    /// Digest of the blob in the registry.
    pub digest: Digest,
    /// How its chunks are packed, those that are.
    pub codec: Codec,
    /// How its chunks are digested.
    pub algorithm: Algorithm,
    pub(super) features: u32,
    pub(super) chunks: u32,
    /// Digest and length of the blob that holds the table of compression contexts, if that is
    /// another one.
    pub(super) meta: Option<(Digest, u64)>,
    pub(super) context: ContextPlace,
}

/// Where the table of compression contexts lies in a blob.
#[derive(Debug, Clone, Copy)]
pub(super) struct ContextPlace {
    pub(super) codec: Codec,
    pub(super) offset: u64,
    pub(super) packed_len: u64,
    pub(super) len: u64,
}

/// The algorithm of a compression number.
pub(super) fn codec(number: u32, view: &View<'_>) -> Result<Codec, Flaw> {
    match number {
        0 => Ok(Codec::Plain),
        1 => Ok(Codec::Lz4Block),
        2 => Ok(Codec::Gzip),
        3 => Ok(Codec::Zstd),
        _ => Err(view.flaw(format_args!("compression algorithm {number} is not known"))),
    }
}

/// The algorithm of a digest number.
pub(super) fn algorithm(number: u32, view: &View<'_>) -> Result<Algorithm, Flaw> {
    match number {
        0 => Ok(Algorithm::Blake3),
        1 => Ok(Algorithm::Sha256),
        _ => Err(view.flaw(format_args!("digest algorithm {number} is not known"))),
    }
}

impl BlobInfo {
    /// Whether its chunks can be read without the table of compression contexts.
    pub(super) fn holds_lone_chunks(&self) -> bool {
        self.features & (FEATURE_ZRAN | FEATURE_BATCH | FEATURE_ENCRYPTED) == 0
    }

    /// Where its compression contexts lie, if they are needed.
    pub fn contexts(&self) -> Result<Option<super::ContextRange>, Flaw> {
        super::context::needed(self)
    }

    /// Reads the contexts out of the bytes of that range.
    pub fn read_contexts(&self, packed: &[u8]) -> Result<super::Contexts, Flaw> {
        super::Contexts::read(self, packed)
    }
}
