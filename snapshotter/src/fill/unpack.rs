//! Unpacking a unit, bounded by what its chunks need.

use std::borrow::Cow;
use std::io::Read;

use libdeflater::Decompressor;

use crate::index::{Codec, MAX_UNIT};

/// Most bytes behind those that are needed that a gzip member may hold to be unpacked whole: the tar
/// headers up to the next file.
const BEYOND: usize = 256 << 10;

/// Unpacks the units of one answer one after the other: a buffer and tables are made once for all.
#[derive(Default)]
pub(super) struct Unpacker {
    inflater: Option<Decompressor>,
    room: Vec<u8>,
}

impl Unpacker {
    /// As [`unpack`].
    pub(super) fn unpack(
        &mut self,
        codec: Codec,
        packed: &[u8],
        needed: usize,
    ) -> Result<Cow<'_, [u8]>, String> {
        if codec == Codec::Gzip
            && let Some(len) = self.unpack_member(packed, needed)
        {
            return Ok(Cow::Borrowed(&self.room[..len]));
        }
        unpack(codec, packed, needed).map(Cow::Owned)
    }

    /// Unpacks what is one gzip member to its end, which takes half the time of doing it in steps;
    /// the first `needed` bytes are then in the room. `None` if it cannot be done in this way, for
    /// whatever reason.
    fn unpack_member(&mut self, packed: &[u8], needed: usize) -> Option<usize> {
        // It may lie, so that it only says what is worth a try.
        let told = u32::from_le_bytes(*packed.last_chunk()?) as usize;
        if !(needed..=needed.saturating_add(BEYOND)).contains(&told) {
            return None;
        }
        if self.room.len() < told {
            self.room.resize(told, 0);
        }
        let inflater = self.inflater.get_or_insert_default();
        let len = inflater.gzip_decompress(packed, &mut self.room[..told]);
        len.ok().filter(|&len| len >= needed).map(|_| needed)
    }
}

/// The first `needed` bytes that `packed` unpacks to; fewer are an error, more are left alone.
pub(crate) fn unpack(codec: Codec, packed: &[u8], needed: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(needed);
    let read = match codec {
        Codec::Lz4Block => return unpack_lz4(packed, needed),
        Codec::Plain => packed.take(needed as u64).read_to_end(&mut bytes),
        Codec::Gzip => flate2::bufread::MultiGzDecoder::new(packed)
            .take(needed as u64)
            .read_to_end(&mut bytes),
        Codec::Zstd => zstd::stream::read::Decoder::with_buffer(packed)
            .and_then(|decoder| decoder.take(needed as u64).read_to_end(&mut bytes)),
        Codec::Deflate => return Err("deflate data without a span".to_owned()),
    };
    match read {
        Ok(len) if len == needed => Ok(bytes),
        Ok(len) => Err(format!("unpacks to {len} of {needed} bytes")),
        Err(error) => Err(format!("cannot be unpacked: {error}")),
    }
}

/// An LZ4 block does not say how much it unpacks to and cannot be unpacked in part: when more than
/// `needed` comes out of it, there is a second try with room for the most that it can give.
fn unpack_lz4(packed: &[u8], needed: usize) -> Result<Vec<u8>, String> {
    const MOST_PER_BYTE: usize = 255;
    let most = packed.len().saturating_mul(MOST_PER_BYTE);
    let rooms = [needed, most.min(MAX_UNIT as usize).max(needed)];
    let mut bytes = Vec::new();
    let mut outcome = Ok(0);
    for room in rooms {
        bytes.resize(room, 0);
        outcome = lz4_flex::block::decompress_into(packed, &mut bytes);
        if !matches!(
            &outcome,
            Err(lz4_flex::block::DecompressError::OutputTooSmall { .. })
        ) {
            break;
        }
    }
    match outcome {
        Ok(len) if len >= needed => {
            bytes.truncate(needed);
            Ok(bytes)
        }
        Ok(len) => Err(format!("unpacks to {len} of {needed} bytes")),
        Err(error) => Err(format!("cannot be unpacked: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn each_codec_gives_as_many_bytes_as_are_needed() {
        let zstd = zstd::encode_all(&b"0123456789"[..], 1).unwrap();
        let members = [gzip(b"01234"), gzip(b"56789")].concat();
        for (codec, packed) in [
            (Codec::Plain, b"0123456789".to_vec()),
            (Codec::Gzip, gzip(b"0123456789")),
            (Codec::Gzip, members),
            (Codec::Zstd, zstd),
            (Codec::Lz4Block, lz4_flex::block::compress(b"0123456789")),
        ] {
            assert_eq!(unpack(codec, &packed, 10).unwrap(), b"0123456789");
            assert_eq!(unpack(codec, &packed, 7).unwrap(), b"0123456");
            assert!(unpack(codec, &packed, 11).unwrap_err().contains("10 of 11"));
        }
    }

    /// Has the members' own length replaced by `told` at the end of `packed`.
    fn telling(mut packed: Vec<u8>, told: u32) -> Vec<u8> {
        let at = packed.len() - 4;
        packed[at..].copy_from_slice(&told.to_le_bytes());
        packed
    }

    #[test]
    fn a_member_at_once_is_what_it_is_in_steps_however_it_ends() {
        let data: Vec<u8> = (0..700_000u32)
            .map(|i| (i.wrapping_mul(i) >> 11) as u8)
            .collect();
        let whole = gzip(&data);
        let mut cut = whole.clone();
        cut.truncate(whole.len() / 2);
        let mut spoilt = whole.clone();
        spoilt[whole.len() / 2] ^= 0x55;
        let cases = [
            (whole.clone(), data.len()),
            (whole.clone(), data.len() - 512),
            (whole.clone(), 1000),
            (whole.clone(), data.len() + 1),
            (
                [gzip(&data[..300_000]), gzip(&data[300_000..])].concat(),
                data.len(),
            ),
            (
                [gzip(&data[..300_000]), gzip(&data[300_000..])].concat(),
                300_001,
            ),
            (telling(whole.clone(), u32::MAX), data.len()),
            (telling(whole.clone(), 0), data.len()),
            (
                telling(whole.clone(), data.len() as u32 - 1),
                data.len() - 9,
            ),
            (telling(whole.clone(), data.len() as u32 + 1), data.len()),
            ([whole.clone(), b"tail".to_vec()].concat(), data.len()),
            (cut, data.len()),
            (spoilt, data.len()),
            (gzip(b""), 0),
            (b"abc".to_vec(), 0),
            (vec![0; 4], 0),
        ];
        let mut unpacker = Unpacker::default();
        for (number, (packed, needed)) in cases.iter().enumerate() {
            let at_once = unpacker.unpack(Codec::Gzip, packed, *needed);
            let in_steps = unpack(Codec::Gzip, packed, *needed);
            assert!(at_once.as_deref() == in_steps.as_deref(), "case {number}");
        }
        let room = unpacker.room.len();
        assert!(room <= data.len() + BEYOND, "{room} bytes for the lies");
    }

    #[test]
    fn a_whole_member_is_unpacked_at_once_and_its_checksum_counts() {
        let data = vec![7; 100_000];
        let mut unpacker = Unpacker::default();
        assert_eq!(unpacker.unpack_member(&gzip(&data), 99_000), Some(99_000));
        let mut packed = gzip(&data);
        let at = packed.len() - 8;
        packed[at] ^= 1;
        assert_eq!(unpacker.unpack_member(&packed, 99_000), None);
    }

    #[test]
    fn garbage_is_an_error() {
        for codec in [Codec::Gzip, Codec::Zstd, Codec::Lz4Block] {
            assert!(unpack(codec, b"no such thing", 4).is_err());
            assert!(unpack(codec, b"", 4).is_err());
        }
        let mut cut = gzip(&vec![7; 100_000]);
        cut.truncate(40);
        assert!(unpack(Codec::Gzip, &cut, 100_000).is_err());
    }
}
