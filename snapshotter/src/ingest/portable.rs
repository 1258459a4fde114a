//! The index of an ordinary layer as it travels: what other nodes need to read the layer lazily.
//!
//! ```text
//! "XBINDEX1"  digest of the layer, 32 bytes  its length, u64  packing, u8  spans, u32
//! a span:     offset u64  length u64  unpacked offset u64  bits u8  digest, 32 bytes
//!             length of the window u32  window, one zstd frame
//! at the end: one zstd frame of the archive's header blocks, without contents
//! ```
//!
//! Integers are little-endian. The header blocks go through the same reader as an archive's, and
//! spans and entries through the same builder as a layer that was read here, so a forged index can
//! claim nothing that a forged archive could not. It says which bytes belong to which file, and
//! whoever vouches for it vouches for that: the digest of the whole is in an annotation of the
//! layer ([`ANNOTATION`]).

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use zstd::stream::write::Encoder;

use super::archive::{self, Refusal};
use super::spans::{Found, Spans};
use crate::convert::tar::Tap;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::formats::Flaw;
use crate::index::{Codec, LayerBuilder, LayerIndex, SpanSpec};

/// Annotation of a layer: the digest of its index.
pub const ANNOTATION: &str = "containerd.io/snapshot/xebec/index.digest";
/// Annotation of an index in its artifact: the digest of the layer that it describes.
pub const LAYER_ANNOTATION: &str = "dev.xebec.layer.digest";
/// Type of the artifact that holds an image's indexes and refers to its manifest.
pub const ARTIFACT_TYPE: &str = "application/vnd.xebec.index.v1";
/// Media type of an index.
pub const MEDIA_TYPE: &str = "application/vnd.xebec.layer.index.v1";
/// Longest index that is read: a layer of 256 GiB has one of half of this.
pub const MAX_LEN: u64 = 256 << 20;

const MAGIC: &[u8; 8] = b"XBINDEX1";
/// How hard header blocks are packed.
const LEVEL: i32 = 3;
/// Most bytes of header blocks that are looked at: ten million entries' worth.
const MAX_HEADERS: u64 = 16 << 30;

/// The header blocks of an archive, as they are read.
pub(super) struct Headers(Arc<Mutex<Encoder<'static, Vec<u8>>>>);

impl Headers {
    pub(super) fn new() -> Result<Self> {
        let encoder = Encoder::new(Vec::new(), LEVEL).map_err(|error| zstd_error(&error))?;
        Ok(Self(Arc::new(Mutex::new(encoder))))
    }

    /// What takes them.
    pub(super) fn tap(&self) -> Tap {
        let encoder = Arc::clone(&self.0);
        Box::new(move |block| {
            let mut encoder = encoder.lock().unwrap_or_else(PoisonError::into_inner);
            // Its target is memory. Whatever else went wrong is said when the frame is ended.
            let _ = encoder.write_all(block);
        })
    }

    fn finish(self) -> Result<Vec<u8>> {
        let encoder = Arc::into_inner(self.0)
            .ok_or_else(|| Error::Internal("an archive is still being read".to_owned()))?;
        let encoder = encoder.into_inner().unwrap_or_else(PoisonError::into_inner);
        encoder.finish().map_err(|error| zstd_error(&error))
    }
}

fn zstd_error(error: &std::io::Error) -> Error {
    Error::Internal(format!("pack header blocks: {error}"))
}

/// Writes the index of the layer `layer` of `size` bytes.
pub(super) fn pack(layer: Digest, size: u64, spans: &Spans, headers: Headers) -> Result<Vec<u8>> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(layer.as_bytes());
    out.extend_from_slice(&size.to_le_bytes());
    out.push(match spans.codec {
        Some(Codec::Deflate) => 1,
        Some(Codec::Zstd) => 2,
        _ => 0,
    });
    out.extend_from_slice(&(spans.found.len() as u32).to_le_bytes());
    for Found {
        out: unpacked,
        spec,
    } in &spans.found
    {
        for number in [spec.offset, spec.len, *unpacked] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(spec.bits);
        out.extend_from_slice(spec.digest.as_bytes());
        out.extend_from_slice(&(spec.window.len() as u32).to_le_bytes());
        out.extend_from_slice(&spec.window);
    }
    out.extend_from_slice(&headers.finish()?);
    Ok(out)
}

/// Reads the index `bytes` of the layer `layer` of `size` bytes.
pub fn unpack(bytes: &[u8], layer: Digest, size: u64) -> Result<LayerIndex, Flaw> {
    let mut rest = Bytes(bytes);
    if rest.take(MAGIC.len())? != MAGIC {
        return Err(Flaw::new("index: of another version"));
    }
    if rest.digest()? != layer || rest.u64()? != size {
        return Err(Flaw::new("index: of another layer"));
    }
    let codec = match rest.u8()? {
        0 => Codec::Plain,
        1 => Codec::Deflate,
        2 => Codec::Zstd,
        other => return Err(Flaw::new(format!("index: unknown packing {other}"))),
    };
    let mut spans = Spans::of(codec);
    for _ in 0..rest.u32()? {
        let found = span(&mut rest)?;
        if spans.found.last().is_some_and(|last| last.out > found.out) {
            return Err(Flaw::new("index: spans are not in order"));
        }
        spans.found.push(found);
    }
    let builder = LayerBuilder::new(layer, Digest::of(bytes), size);
    let headers = zstd::stream::read::Decoder::with_buffer(rest.0)
        .map_err(|error| Flaw::new(format!("index: {error}")))?;
    let listed = archive::list_headers(headers.take(MAX_HEADERS), builder);
    let listed = listed.map_err(|refusal| match refusal {
        Refusal::Flaw(flaw) => flaw,
        Refusal::Contents(error) => Flaw::new(error.to_string()),
    })?;
    listed.index(spans)
}

fn span(rest: &mut Bytes<'_>) -> Result<Found, Flaw> {
    let (offset, len, out) = (rest.u64()?, rest.u64()?, rest.u64()?);
    let (bits, digest) = (rest.u8()?, rest.digest()?);
    let window = rest.u32()? as usize;
    Ok(Found {
        out,
        spec: SpanSpec {
            offset,
            len,
            digest,
            bits,
            window: rest.take(window)?.to_vec(),
        },
    })
}

/// What is left to be read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Flaw> {
        let cut = || Flaw::new("index: it is cut short");
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(cut)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, Flaw> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, Flaw> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Flaw> {
        self.array().map(u64::from_le_bytes)
    }

    fn digest(&mut self) -> Result<Digest, Flaw> {
        self.array().map(Digest::from_bytes)
    }
}
