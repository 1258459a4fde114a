//! Unpacking a span of deflate data that begins at some block.

use crate::sys::{Blocks, Inflater, Stop, Wrap};

/// Longest window.
const WINDOW: usize = 32 << 10;
/// CRC and length behind a gzip member's deflate data.
const TRAILER: usize = 8;

/// The first `needed` bytes that `packed` unpacks to: `bits` bits of its first byte (all of it if
/// that is 0) and what follows, after `window`, which is one zstd frame or empty.
pub(super) fn inflate(
    bits: u8,
    window: &[u8],
    packed: &[u8],
    needed: usize,
) -> Result<Vec<u8>, String> {
    let window = match window {
        [] => Vec::new(),
        frame => zstd::bulk::decompress(frame, WINDOW)
            .map_err(|error| format!("its window cannot be unpacked: {error}"))?,
    };
    let (first, mut rest) = match (bits, packed) {
        (0, all) => (0, all),
        (_, [first, rest @ ..]) => (*first, rest),
        (_, []) => return Err("the span is empty".to_owned()),
    };
    let mut inflater = Inflater::resume(bits, first, &window)?;
    // What is to be skipped of a trailer: only a stream that began raw leaves one.
    let mut trailer = TRAILER;
    let mut bytes = vec![0; needed];
    let mut filled = 0;
    while filled < needed {
        let step = inflater.step(rest, &mut bytes[filled..], Blocks::Pass)?;
        rest = &rest[step.read..];
        filled += step.written;
        if step.stop == Stop::End {
            rest = rest.get(trailer..).unwrap_or_default();
            trailer = 0;
            inflater.restart(Wrap::Gzip)?;
        } else if step.read == 0 && step.written == 0 {
            return Err(format!("unpacks to {filled} of {needed} bytes"));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn member(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// A place where inflating may begin: bytes before it, bits, bytes unpacked before it.
    type Start = (usize, u8, usize);

    fn starts(packed: &[u8]) -> Vec<Start> {
        let mut inflater = Inflater::new(Wrap::Gzip).unwrap();
        let (mut at, mut out, mut starts) = (0, 0, Vec::new());
        while at < packed.len() {
            let mut room = vec![0; 1 << 20];
            let step = inflater
                .step(&packed[at..], &mut room, Blocks::Stop)
                .unwrap();
            at += step.read;
            out += step.written;
            match step.stop {
                Stop::Boundary { bits } => starts.push((at - usize::from(bits > 0), bits, out)),
                Stop::End => inflater.restart(Wrap::Gzip).unwrap(),
                Stop::Starved => {}
            }
        }
        starts
    }

    #[test]
    fn a_span_unpacks_over_the_ends_of_members() {
        let data: Vec<u8> = (0..600_000u32)
            .flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 22).to_le_bytes())
            .collect();
        let packed: Vec<u8> = data.chunks(900_000).flat_map(member).collect();
        let starts = starts(&packed);
        assert!(starts.len() > 6 && starts.iter().any(|(_, bits, _)| *bits > 0));
        for (at, bits, out) in starts {
            let window = zstd::bulk::compress(&data[out.saturating_sub(WINDOW)..out], 1).unwrap();
            let window = if out == 0 { &[][..] } else { &window };
            let rest = inflate(bits, window, &packed[at..], data.len() - out).unwrap();
            assert!(rest == data[out..], "from {at}, bit {bits}");
            let error = inflate(bits, window, &packed[at..], data.len() - out + 1).unwrap_err();
            assert!(error.contains("bytes"), "{error}");
        }
    }

    #[test]
    fn hostile_spans_are_errors() {
        let packed = member(&vec![7; 100_000]);
        let bomb = zstd::bulk::compress(&vec![0; 1 << 20], 1).unwrap();
        let cases: [(u8, &[u8], &[u8]); 6] = [
            (0, &[], b""),
            (3, &[], b""),
            (0, &[], b"no deflate data"),
            (9, &[], &packed[10..]),
            (0, &bomb, &packed[10..]),
            (0, b"no zstd frame", &packed[10..]),
        ];
        for (bits, window, packed) in cases {
            assert!(
                inflate(bits, window, packed, 1000).is_err(),
                "{bits} {packed:?}"
            );
        }
        assert_eq!(inflate(0, &[], &packed[10..], 1000).unwrap(), [7; 1000]);
    }
}
