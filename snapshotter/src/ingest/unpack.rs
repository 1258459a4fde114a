//! Unpacking a blob as it arrives.

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::pipe::Outlet;
use super::spans::Spans;
use crate::index::Codec;
use crate::sys::{Blocks, Inflater, Stop, Wrap};

/// First bytes of a gzip member.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// First bytes of a zstd frame, and all but the first of a skippable one (whose low half varies).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// Why unpacking stops.
#[derive(Debug)]
pub(super) enum Fault {
    /// The blob is not well-formed.
    Flaw(String),
    /// Nobody reads what is unpacked any more.
    Closed,
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Flaw(reason)
    }
}

/// The unpacking of one blob.
pub(super) enum Unpacker {
    /// Too few bytes have arrived to know the packing.
    Start(Vec<u8>),
    Gzip(Gzip),
    Zstd(Zstd),
    Plain,
}

/// A blob of gzip members.
pub(super) struct Gzip {
    inflater: Inflater,
    /// Between two members, or behind the last one.
    between: bool,
    /// Where what the member unpacks to begins.
    begun: u64,
    /// The byte read last.
    last: u8,
}

/// A blob of zstd frames.
pub(super) struct Zstd {
    decoder: Decoder<'static>,
    between: bool,
}

impl Unpacker {
    pub(super) fn new() -> Self {
        Self::Start(Vec::new())
    }

    /// Takes the next bytes of the blob.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        spans: &mut Spans,
        out: &mut Outlet,
    ) -> Result<(), Fault> {
        match self {
            Self::Start(first) => {
                first.extend_from_slice(bytes);
                if first.len() < ZSTD.len() {
                    return Ok(());
                }
                let first = std::mem::take(first);
                *self = Self::of(&first, spans)?;
                self.feed(&first, spans, out)
            }
            Self::Gzip(gzip) => gzip.feed(bytes, spans, out),
            Self::Zstd(zstd) => zstd.feed(bytes, spans, out),
            Self::Plain => plain(bytes, spans, out),
        }
    }

    /// The packing, by the blob's first bytes.
    fn of(first: &[u8], spans: &mut Spans) -> Result<Self, Fault> {
        if first.starts_with(&GZIP) {
            spans.codec = Some(Codec::Deflate);
            let inflater = Inflater::new(Wrap::Gzip)?;
            return Ok(Self::Gzip(Gzip {
                inflater,
                between: true,
                begun: 0,
                last: 0,
            }));
        }
        if first.starts_with(&ZSTD) || first.get(1..4) == Some(&SKIPPABLE) {
            spans.codec = Some(Codec::Zstd);
            let decoder = Decoder::new()
                .map_err(|error| Fault::Flaw(format!("zstd cannot be set up: {error}")))?;
            return Ok(Self::Zstd(Zstd {
                decoder,
                between: true,
            }));
        }
        spans.codec = Some(Codec::Plain);
        Ok(Self::Plain)
    }

    /// Says that the blob has ended.
    pub(super) fn finish(self, spans: &mut Spans, out: &mut Outlet) -> Result<(), Fault> {
        let whole = match self {
            Self::Start(first) => {
                plain(&first, spans, out)?;
                true
            }
            Self::Gzip(gzip) => gzip.between,
            Self::Zstd(zstd) => zstd.between,
            Self::Plain => true,
        };
        if !whole {
            return Err(Fault::Flaw("the compressed data is cut short".to_owned()));
        }
        spans.end();
        out.flush()
    }
}

impl Gzip {
    fn feed(&mut self, mut bytes: &[u8], spans: &mut Spans, out: &mut Outlet) -> Result<(), Fault> {
        while !bytes.is_empty() {
            self.between = false;
            let step = self.inflater.step(bytes, out.room(), Blocks::Stop)?;
            let read = &bytes[..step.read];
            spans.advance(read, step.written)?;
            out.wrote(step.written)?;
            self.last = read.last().copied().unwrap_or(self.last);
            match step.stop {
                Stop::Boundary { bits } if spans.is_due() => {
                    let window = out.last(spans.out() - self.begun);
                    spans.begin(bits, self.last, &window)?;
                }
                Stop::End => {
                    self.inflater.restart(Wrap::Gzip)?;
                    self.between = true;
                    self.begun = spans.out();
                    spans.end_member();
                }
                _ => {}
            }
            bytes = &bytes[step.read..];
        }
        Ok(())
    }
}

impl Zstd {
    fn feed(&mut self, mut bytes: &[u8], spans: &mut Spans, out: &mut Outlet) -> Result<(), Fault> {
        loop {
            if self.between && bytes.is_empty() {
                return Ok(());
            }
            if self.between && spans.is_due() {
                spans.begin(0, 0, &[])?;
            }
            let mut input = InBuffer::around(bytes);
            let room = out.room();
            let space = room.len();
            let mut output = OutBuffer::around(room);
            let left = self
                .decoder
                .run(&mut input, &mut output)
                .map_err(|error| Fault::Flaw(format!("zstd: {error}")))?;
            let (read, written) = (input.pos(), output.pos());
            self.between = left == 0;
            spans.advance(&bytes[..read], written)?;
            out.wrote(written)?;
            bytes = &bytes[read..];
            // A full room may mean that there is more to come without further input.
            if bytes.is_empty() && written < space {
                return Ok(());
            }
        }
    }
}

fn plain(mut bytes: &[u8], spans: &mut Spans, out: &mut Outlet) -> Result<(), Fault> {
    while !bytes.is_empty() {
        if spans.is_due() {
            spans.begin(0, 0, &[])?;
        }
        let (now, later) = bytes.split_at(bytes.len().min(64 << 10));
        spans.advance(now, now.len())?;
        out.write(now)?;
        bytes = later;
    }
    Ok(())
}
