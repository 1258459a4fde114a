//! Unpacking a unit, bounded by what its chunks need.

use std::io::Read;

use crate::index::{Codec, MAX_UNIT};

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
