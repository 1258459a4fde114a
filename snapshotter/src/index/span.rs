//! Units that are verified as they lie in the blob, and how to begin unpacking them.

use super::layout::{Codec, Record, Span, Unit};
use crate::digest::Digest;
use crate::formats::Flaw;

/// Longest window, unpacked: how far deflate data refers back.
pub(crate) const WINDOW: usize = 32 << 10;
/// Longest window as it is kept; zstd adds a little to what cannot be compressed.
const MAX_PACKED_WINDOW: usize = WINDOW + 1024;

/// A piece of the blob with a digest of its own.
#[derive(Debug, Clone)]
pub struct SpanSpec {
    /// Offset in the blob.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// SHA-256 of these bytes, or [`SpanSpec::BY_CHUNKS`].
    pub digest: Digest,
    /// Bits of the first byte that belong to the span, below 8; 0 for all of it.
    pub bits: u8,
    /// What the stream unpacks to right before the span, at most 32 KiB, as one zstd frame; empty
    /// at a stream's start.
    pub window: Vec<u8>,
}

impl SpanSpec {
    /// Stands for the digest of a span whose chunks have digests of their own: no bytes have it.
    pub const BY_CHUNKS: Digest = Digest::from_bytes([0; 32]);
}

impl Span {
    /// Of a unit that needs none, in a layer where others do.
    const NONE: Self = Self {
        digest: *SpanSpec::BY_CHUNKS.as_bytes(),
        bits: 0,
        window: 0,
        window_len: 0,
    };

    /// The digest of the unit, unless its chunks are verified after it was unpacked.
    pub fn digest(&self) -> Option<Digest> {
        Some(Digest::from_bytes(self.digest)).filter(|digest| *digest != SpanSpec::BY_CHUNKS)
    }
}

/// The spans of a layer, each with its blob, in the blobs' order.
#[derive(Debug, Default)]
pub(super) struct Spans {
    specs: Vec<(u16, SpanSpec)>,
    windows: u64,
}

/// The two sections.
#[derive(Debug, Default)]
pub(super) struct Sealed {
    pub(super) records: Vec<u8>,
    pub(super) windows: Vec<u8>,
}

impl Spans {
    pub(super) fn add(&mut self, blob: u16, spec: SpanSpec) -> Result<(), Flaw> {
        let at = spec.offset;
        let refuse = |reason: &str| Err(Flaw::new(format!("span at {at}: {reason}")));
        let last = self.specs.last().map(|(blob, last)| (*blob, last.offset));
        if last.is_some_and(|last| last >= (blob, at)) {
            return refuse("not in order");
        }
        if spec.bits > 7 || spec.window.len() > MAX_PACKED_WINDOW {
            return refuse("no valid state to begin with");
        }
        self.windows += spec.window.len() as u64;
        if self.windows > u64::from(u32::MAX) {
            return refuse("windows exceed 4 GiB");
        }
        self.specs.push((blob, spec));
        Ok(())
    }

    /// Gives each unit its span: all of a blob have one, or none.
    pub(super) fn seal(&self, units: &[Unit]) -> Result<Sealed, Flaw> {
        let mut sealed = Sealed::default();
        if self.specs.is_empty() && units.iter().all(|unit| unit.codec() != Codec::Deflate) {
            return Ok(sealed);
        }
        let mut blobs: Vec<u16> = self.specs.iter().map(|(blob, _)| *blob).collect();
        blobs.dedup();
        let mut rest = self.specs.iter();
        for unit in units {
            if unit.codec() != Codec::Deflate && blobs.binary_search(&unit.blob).is_err() {
                Span::NONE.put(&mut sealed.records);
                continue;
            }
            let place = (unit.blob, unit.offset, u64::from(unit.len));
            let is_of = |(blob, spec): &&(u16, SpanSpec)| (*blob, spec.offset, spec.len) == place;
            // Both are sorted; spans without content, such as padding, belong to no unit.
            let (_, spec) = rest.find(is_of).ok_or_else(|| {
                Flaw::new(format!("no span for {} bytes at {}", unit.len, unit.offset))
            })?;
            let span = Span {
                digest: *spec.digest.as_bytes(),
                bits: spec.bits,
                window: sealed.windows.len() as u32,
                window_len: spec.window.len() as u32,
            };
            span.put(&mut sealed.records);
            sealed.windows.extend_from_slice(&spec.window);
        }
        Ok(sealed)
    }
}
