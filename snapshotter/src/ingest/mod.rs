//! An ordinary layer (tar, as it is or in gzip or zstd) read once from its first byte to its last:
//! what comes out is its index, and its files where the store wants them.
//!
//! One thread gets the blob ([`download`]), hashes it, unpacks it and notes where unpacking may
//! begin again ([`unpack`], [`spans`]); a second one reads the archive ([`archive`]) and hands the
//! contents on. Only when the whole blob has the digest that the manifest gives does anything of
//! it count: until then the caller keeps it where nobody can read it.

mod archive;
pub mod beside;
pub mod download;
mod pipe;
pub mod portable;
mod spans;
mod trace;
mod unpack;

#[cfg(test)]
mod tests;

use std::fmt;

pub(crate) use self::archive::{Listed, Refusal};
pub(crate) use self::pipe::Inlet;
pub(crate) use self::spans::{Found, Spans};
pub(crate) use self::trace::Trace;
use self::unpack::{Fault, Unpacker};
use crate::convert::tar::{Reader, Tap};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::index::{LayerBuilder, LayerIndex};

/// Takes the contents of a layer's files, each at the place that the index will say.
pub trait Contents: Send {
    /// Takes `bytes` at `offset` of the file of the store `segment`.
    fn write(&mut self, segment: u32, offset: u64, bytes: &[u8]) -> Result<()>;
}

/// Contents that are of no interest: only the index is.
#[derive(Debug)]
pub struct Discard;

impl Contents for Discard {
    fn write(&mut self, _: u32, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Takes the blob's bytes, piece by piece.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// A layer that was read whole.
#[derive(Debug)]
pub struct Ingested {
    /// Its files and where their bytes are.
    pub index: LayerIndex,
    /// Digest of the archive as it was before it was packed, by which image configurations and
    /// chain IDs name the layer.
    pub diff_id: Digest,
}

/// Reads the layer `layer` of `size` bytes, which `feed` delivers in order.
/// Nothing is verified before this has returned: then all of `contents` is.
pub fn ingest(
    layer: Digest,
    size: u64,
    feed: impl FnOnce(Sink<'_>) -> Result<()>,
    contents: &mut dyn Contents,
) -> Result<Ingested> {
    let (listed, diff_id, spans) = read(layer, size, feed, contents, None)?;
    let index = listed.index(spans).map_err(|flaw| flaw.of(layer))?;
    Ok(Ingested { index, diff_id })
}

/// The same, and gives what [`describe`] gives.
pub fn ingest_described(
    layer: Digest,
    size: u64,
    feed: impl FnOnce(Sink<'_>) -> Result<()>,
    contents: &mut dyn Contents,
) -> Result<(Ingested, Vec<u8>)> {
    let headers = portable::Headers::new()?;
    let tap = headers.tap();
    let (listed, diff_id, spans) = read(layer, size, feed, contents, Some(tap))?;
    let portable = portable::pack(layer, size, &spans, headers)?;
    let index = listed.index(spans).map_err(|flaw| flaw.of(layer))?;
    Ok((Ingested { index, diff_id }, portable))
}

/// Reads a layer in the same way, and gives what other nodes need to read it lazily: see
/// [`portable`].
pub fn describe(
    layer: Digest,
    size: u64,
    feed: impl FnOnce(Sink<'_>) -> Result<()>,
) -> Result<Vec<u8>> {
    let headers = portable::Headers::new()?;
    let tap = headers.tap();
    let (listed, _, spans) = read(layer, size, feed, &mut Discard, Some(tap))?;
    let portable = portable::pack(layer, size, &spans, headers)?;
    // What cannot be read again must not be given away.
    listed.index(spans).map_err(|flaw| flaw.of(layer))?;
    Ok(portable)
}

fn read(
    layer: Digest,
    size: u64,
    feed: impl FnOnce(Sink<'_>) -> Result<()>,
    contents: &mut dyn Contents,
    tap: Option<Tap>,
) -> Result<(Listed, Digest, Spans)> {
    let builder = LayerBuilder::new(layer, layer, size);
    let list = |inlet| {
        let reader = match tap {
            Some(tap) => Reader::tapped(inlet, tap),
            None => Reader::new(inlet),
        };
        archive::list(reader, builder, contents)
    };
    let ((listed, diff_id), spans) = unpack(layer, feed, Spans::default(), list)?;
    Ok((listed, diff_id, spans))
}

/// Unpacks the layer `layer`, which `feed` delivers in order, for `consume`, which has a thread of
/// its own; notes `spans` on the way. The digest is right when this has returned.
pub(crate) fn unpack<T: Send>(
    layer: Digest,
    feed: impl FnOnce(Sink<'_>) -> Result<()>,
    spans: Spans,
    consume: impl FnOnce(Inlet) -> Result<T, Refusal> + Send,
) -> Result<(T, Spans)> {
    let (mut outlet, inlet) = pipe::pipe();
    let (unpacked, consumed) = std::thread::scope(|scope| -> Result<_> {
        let consumer = std::thread::Builder::new()
            .name("xebec-ingest".to_owned())
            .spawn_scoped(scope, || consume(inlet))
            .map_err(|error| Error::Internal(format!("start a thread: {error}")))?;
        let unpacked = unpack_all(feed, spans, &mut outlet);
        // Ends the other thread's stream.
        drop(outlet);
        let consumed = consumer.join();
        Ok((
            unpacked,
            consumed.map_err(|_| Error::Internal("reading an archive panicked".to_owned()))?,
        ))
    })?;
    let malformed = |reason: &dyn fmt::Display| Error::Malformed {
        what: format!("layer {layer}"),
        reason: reason.to_string(),
    };
    let (digest, spans) = match unpacked {
        Ok(done) => done,
        // The other thread has given up, and says why.
        Err(Failure::Closed) => {
            let refused = consumed.err().map(|error| error.of(layer));
            return Err(refused.unwrap_or_else(|| malformed(&"data behind its end")));
        }
        Err(Failure::Flaw(reason)) => return Err(malformed(&reason)),
        Err(Failure::Feed(error)) => return Err(error),
    };
    layer.expect(digest, &format!("layer {layer}"))?;
    let consumed = consumed.map_err(|error| error.of(layer))?;
    Ok((consumed, spans))
}

/// Why the first thread stopped.
enum Failure {
    Closed,
    Flaw(String),
    Feed(Error),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Closed => Self::Closed,
            Fault::Flaw(reason) => Self::Flaw(reason),
        }
    }
}

fn unpack_all(
    feed: impl FnOnce(Sink<'_>) -> Result<()>,
    mut spans: Spans,
    outlet: &mut pipe::Outlet,
) -> Result<(Digest, Spans), Failure> {
    let mut hasher = Hasher::new();
    let mut unpacker = Unpacker::new();
    let mut fault = None;
    let fed = feed(&mut |bytes| {
        hasher.update(bytes);
        unpacker.feed(bytes, &mut spans, outlet).map_err(|reason| {
            fault = Some(reason);
            Error::Internal("unpacking has stopped".to_owned())
        })
    });
    if let Some(fault) = fault {
        return Err(fault.into());
    }
    fed.map_err(Failure::Feed)?;
    unpacker.finish(&mut spans, outlet)?;
    Ok((hasher.finish(), spans))
}
