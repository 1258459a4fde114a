//! Inflating that can stop at block boundaries and begin in the middle of a stream.
//!
//! flate2 offers neither; zlib's own interface does, here as zlib-rs implements it, which flate2
//! brings along anyway.

use libz_rs_sys as z;

/// What surrounds the deflate data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrap {
    /// Nothing: raw deflate (RFC 1951).
    Raw,
    /// A gzip member's header and trailer (RFC 1952); the trailer is checked.
    Gzip,
}

impl Wrap {
    /// zlib's `windowBits`.
    const fn window_bits(self) -> i32 {
        match self {
            Self::Raw => -15,
            Self::Gzip => 15 + 16,
        }
    }
}

/// Why a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// All input is consumed, or all room is filled.
    Starved,
    /// Between two blocks, of which the first is not the stream's last: inflating may begin here.
    Boundary {
        /// How many bits of the last byte consumed belong to the next block, below 8.
        bits: u8,
    },
    /// The stream has ended, its trailer included.
    End,
}

/// What a step did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// Bytes of input consumed.
    pub(crate) read: usize,
    /// Bytes of output written.
    pub(crate) written: usize,
    pub(crate) stop: Stop,
}

/// Whether to stop between two blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocks {
    /// After each block.
    Stop,
    /// Never.
    Pass,
}

/// The state of one deflate or gzip stream.
pub(crate) struct Inflater(Box<z::z_stream>);

// SAFETY: the stream owns all it points to besides `next_in` and `next_out`, which are only used
// within `step`.
unsafe impl Send for Inflater {}

impl Inflater {
    /// Begins a stream.
    pub(crate) fn new(wrap: Wrap) -> Result<Self, String> {
        let mut stream = Box::new(z::z_stream::default());
        let size = size_of::<z::z_stream>() as i32;
        // SAFETY: the stream is a valid default one, as the function wants it, and stays where it
        // is; the version string lives for ever.
        let code = unsafe {
            z::inflateInit2_(&raw mut *stream, wrap.window_bits(), z::zlibVersion(), size)
        };
        ok(code, "set up")?;
        Ok(Self(stream))
    }

    /// Begins raw deflate data in the middle: `bits` bits of the byte `first` come before the
    /// input that follows, and `window` is what was unpacked last, at most 32 KiB.
    pub(crate) fn resume(bits: u8, first: u8, window: &[u8]) -> Result<Self, String> {
        let mut inflater = Self::new(Wrap::Raw)?;
        if !(1..8).contains(&bits) && bits != 0 {
            return Err(format!("cannot begin with {bits} bits of a byte"));
        }
        if bits > 0 {
            let value = i32::from(first >> (8 - bits));
            // SAFETY: the stream is initialised.
            let code = unsafe { z::inflatePrime(&raw mut *inflater.0, i32::from(bits), value) };
            ok(code, "begin within a byte")?;
        }
        if !window.is_empty() {
            // SAFETY: the stream is initialised, and the pointer and length are those of a slice.
            let code = unsafe {
                z::inflateSetDictionary(
                    &raw mut *inflater.0,
                    window.as_ptr(),
                    window.len().min(1 << 15) as u32,
                )
            };
            ok(code, "take a window")?;
        }
        Ok(inflater)
    }

    /// Begins another stream in the place of this one.
    pub(crate) fn restart(&mut self, wrap: Wrap) -> Result<(), String> {
        // SAFETY: the stream is initialised.
        let code = unsafe { z::inflateReset2(&raw mut *self.0, wrap.window_bits()) };
        ok(code, "begin again")
    }

    /// Inflates from `input` to `output` until one of them is used up, or something ends.
    pub(crate) fn step(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        blocks: Blocks,
    ) -> Result<Step, String> {
        let given = input.len().min(1 << 30) as u32;
        let room = output.len().min(1 << 30) as u32;
        self.0.next_in = input.as_ptr();
        self.0.avail_in = given;
        self.0.next_out = output.as_mut_ptr();
        self.0.avail_out = room;
        let flush = match blocks {
            Blocks::Stop => z::Z_BLOCK,
            Blocks::Pass => z::Z_NO_FLUSH,
        };
        // SAFETY: the stream is initialised; `next_in` and `next_out` point to slices of at least
        // the lengths given, of which the second is exclusive.
        let code = unsafe { z::inflate(&raw mut *self.0, flush) };
        let stop = match code {
            z::Z_STREAM_END => Stop::End,
            // No progress is possible: what the caller must do follows from what is left.
            z::Z_OK | z::Z_BUF_ERROR => self.place(),
            _ => return ok(code, "inflate").map(|()| unreachable!("handled above")),
        };
        Ok(Step {
            read: (given - self.0.avail_in) as usize,
            written: (room - self.0.avail_out) as usize,
            stop,
        })
    }

    /// Where the stream stands, from what zlib says in `data_type`.
    fn place(&self) -> Stop {
        const BITS: i32 = 63;
        const IN_LAST: i32 = 64;
        const AFTER_BLOCK: i32 = 128;
        let state = self.0.data_type;
        let bits = state & BITS;
        if state & AFTER_BLOCK != 0 && state & IN_LAST == 0 && bits < 8 {
            Stop::Boundary { bits: bits as u8 }
        } else {
            Stop::Starved
        }
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        // SAFETY: the stream is initialised and not used any more.
        unsafe { z::inflateEnd(&raw mut *self.0) };
    }
}

fn ok(code: i32, action: &str) -> Result<(), String> {
    let reason = match code {
        z::Z_OK => return Ok(()),
        z::Z_NEED_DICT => "it needs a dictionary",
        z::Z_DATA_ERROR => "the deflate data is not valid",
        z::Z_MEM_ERROR => "out of memory",
        _ => "the stream's state is not valid",
    };
    Err(format!("cannot {action}: {reason}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Text that compresses and refers back far.
    fn text(len: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut words = Vec::new();
        while words.len() < len {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            write!(words, "word{} ", (state >> 16) % 5000).unwrap();
        }
        words.truncate(len);
        words
    }

    fn gzip(data: &[u8], level: u32) -> Vec<u8> {
        let level = flate2::Compression::new(level);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn from_every_block_boundary_the_rest_inflates_to_the_same() {
        let data = text(3 << 20);
        let packed = gzip(&data, 6);
        let mut inflater = Inflater::new(Wrap::Gzip).unwrap();
        let (mut at, mut out, mut odd) = (0, Vec::new(), 0);
        let mut boundaries = Vec::new();
        let mut room = vec![0; 40_000];
        loop {
            let step = inflater
                .step(&packed[at..], &mut room, Blocks::Stop)
                .unwrap();
            at += step.read;
            out.extend_from_slice(&room[..step.written]);
            match step.stop {
                Stop::Boundary { bits } => boundaries.push((at, bits, out.len())),
                Stop::Starved => assert!(step.read > 0 || step.written > 0),
                Stop::End => break,
            }
        }
        assert_eq!((at, &out), (packed.len(), &data));
        assert!(boundaries.len() > 20, "{}", boundaries.len());
        for (at, bits, begin) in boundaries {
            odd += u32::from(bits % 2 == 1);
            let window = &data[begin.saturating_sub(1 << 15)..begin];
            let mut inflater = Inflater::resume(bits, packed[at - 1], window).unwrap();
            let mut rest = vec![0; data.len() - begin];
            let step = inflater
                .step(&packed[at..], &mut rest, Blocks::Pass)
                .unwrap();
            assert_eq!(step.written, rest.len());
            assert_eq!(rest, &data[begin..]);
        }
        assert!(odd > 0, "the boundaries lie within bytes");
    }

    #[test]
    fn what_is_no_deflate_data_is_an_error() {
        let mut inflater = Inflater::new(Wrap::Gzip).unwrap();
        assert!(
            inflater
                .step(b"no gzip at all", &mut [0; 10], Blocks::Pass)
                .is_err()
        );
        let mut packed = gzip(b"some content", 6);
        let last = packed.len() - 5;
        packed[last] ^= 1;
        let mut inflater = Inflater::new(Wrap::Gzip).unwrap();
        let error = inflater
            .step(&packed, &mut [0; 100], Blocks::Pass)
            .unwrap_err();
        assert!(error.contains("not valid"), "a wrong checksum: {error}");
        assert!(Inflater::resume(8, 0, &[]).is_err());
    }
}
