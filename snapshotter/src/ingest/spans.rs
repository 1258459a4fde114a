//! Where unpacking may begin again, with what it needs, found on the way through a blob.

use super::trace::Trace;
use super::unpack::Fault;
use crate::digest::Hasher;
use crate::index::{Codec, MAX_UNIT, SpanSpec};

/// Unpacked bytes after which the next possible place begins a new span: a cold read unpacks half
/// of that on average, and each span of a gzip stream costs up to 32 KiB of index.
const SPAN: u64 = 2 << 20;
/// How hard windows are packed: they are kept, and fetched by other nodes.
const WINDOW_LEVEL: i32 = 3;

/// A span and where what it unpacks to begins.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) out: u64,
    pub(crate) spec: SpanSpec,
}

/// A span whose end is not known yet.
struct Open {
    offset: u64,
    out: u64,
    bits: u8,
    window: Vec<u8>,
    hasher: Hasher,
}

/// The spans of a blob, in its order.
#[derive(Default)]
pub(crate) struct Spans {
    pub(crate) found: Vec<Found>,
    pub(super) codec: Option<Codec>,
    open: Option<Open>,
    /// Bytes of the blob, and of what it unpacks to, so far.
    at: u64,
    out: u64,
    /// The way through the blob, if it is wanted; then each gzip member begins a span.
    pub(crate) trace: Option<Trace>,
    member_ended: bool,
}

impl Spans {
    /// No spans yet of a blob whose way through is wanted too.
    pub(crate) fn traced() -> Self {
        Self {
            trace: Some(Trace::default()),
            ..Self::default()
        }
    }

    /// No spans of a blob of this packing.
    pub(crate) fn of(codec: Codec) -> Self {
        Self {
            codec: Some(codec),
            ..Self::default()
        }
    }

    /// Takes the next bytes of the blob, which gave `unpacked` bytes.
    pub(super) fn advance(&mut self, packed: &[u8], unpacked: usize) -> Result<(), Fault> {
        self.at += packed.len() as u64;
        self.out += unpacked as u64;
        if let Some(trace) = &mut self.trace {
            trace.note(self.at, self.out);
        }
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        open.hasher.update(packed);
        if self.at - open.offset > MAX_UNIT || self.out - open.out > MAX_UNIT {
            return Err(Fault::Flaw(format!(
                "behind byte {} there is no place to begin within {} MiB",
                open.offset,
                MAX_UNIT >> 20
            )));
        }
        Ok(())
    }

    /// Whether a place to begin is wanted here.
    pub(super) fn is_due(&self) -> bool {
        let is_long = |open: &Open| self.out - open.out >= SPAN;
        self.member_ended || self.open.as_ref().is_none_or(is_long)
    }

    /// Says that a gzip member has ended here.
    pub(super) fn end_member(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.end(self.at, self.out);
            self.member_ended = true;
        }
    }

    /// Begins a span here, with the last `bits` bits of the byte `last` before; `window` is what
    /// was unpacked last, as far as it may be referred to.
    pub(super) fn begin(&mut self, bits: u8, last: u8, window: &[u8]) -> Result<(), Fault> {
        self.end();
        self.member_ended = false;
        if let Some(trace) = &mut self.trace {
            trace.begin(last);
        }
        let window = match window {
            [] => Vec::new(),
            bytes => zstd::bulk::compress(bytes, WINDOW_LEVEL)
                .map_err(|error| Fault::Flaw(format!("a window cannot be kept: {error}")))?,
        };
        let mut hasher = Hasher::new();
        if bits > 0 {
            hasher.update(&[last]);
        }
        self.open = Some(Open {
            offset: self.at - u64::from(bits > 0),
            out: self.out,
            bits,
            window,
            hasher,
        });
        Ok(())
    }

    /// Ends the span that is open.
    pub(super) fn end(&mut self) {
        if let Some(open) = self.open.take() {
            self.found.push(Found {
                out: open.out,
                spec: SpanSpec {
                    offset: open.offset,
                    len: self.at - open.offset,
                    digest: open.hasher.finish(),
                    bits: open.bits,
                    window: open.window,
                },
            });
        }
    }

    pub(super) fn out(&self) -> u64 {
        self.out
    }
}
