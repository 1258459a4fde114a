//! zstd:chunked: zstd frames that a TOC near the blob's end makes seekable, in both dialects.
//!
//! The blob is a valid zstd file. Each chunk of a file is a frame of its own, and so is each run of
//! tar headers between; the TOC is a frame inside a skippable frame, and a footer in another one
//! ends the blob. Two dialects differ in names and footer only: that of stargz-snapshotter and old
//! podman, and that of the containers/storage library in today's podman, buildah and skopeo. The
//! latter adds a `tar-split` frame, from which the exact tar is put together again; it is of no use
//! for reading files and is not fetched.
//!
//! The TOC is the one of eStargz ([`estargz::toc`]); chunks of zeros are holes. The manifest states
//! where the TOC lies and the digest of its *packed* bytes.

use std::io::Read;

use super::{Flaw, estargz};
use crate::digest::Digest;
use crate::index::{Codec, LayerBuilder, LayerIndex};

/// Names of a dialect's annotations on a layer's descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect {
    /// Digest of the TOC's packed bytes.
    pub checksum: &'static str,
    /// Where the TOC lies: `OFFSET:PACKED:UNPACKED:TYPE`.
    pub position: &'static str,
}

/// The dialect of podman, buildah and skopeo today.
pub const CONTAINERS: Dialect = Dialect {
    checksum: "io.github.containers.zstd-chunked.manifest-checksum",
    position: "io.github.containers.zstd-chunked.manifest-position",
};
/// The dialect of stargz-snapshotter.
pub const STARGZ: Dialect = Dialect {
    checksum: "io.containers.zstd-chunked.manifest-checksum",
    position: "io.containers.zstd-chunked.manifest-position",
};
/// Annotation of today's dialect: where the tar-split lies, `OFFSET:PACKED:UNPACKED`.
pub const TAR_SPLIT_POSITION: &str = "io.github.containers.zstd-chunked.tarsplit-position";

/// Magic number of the skippable frames, the first of sixteen that zstd knows.
pub const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// Length of a skippable frame's header: magic number and length.
pub const SKIPPABLE_HEADER: u64 = 8;
/// The only type of TOC there is: that of eStargz.
pub const TYPE_CRFS: u64 = 1;

/// Last bytes of today's footer, and how many integers precede them.
pub const CONTAINERS_FOOTER: ([u8; 8], usize) = (*b"GNUlInUx", 7);
const STARGZ_FOOTER: ([u8; 8], usize) = (*b"GnUlInUx", 4);

/// Where a TOC lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Offset in the blob of its zstd frame, inside the skippable frame.
    pub offset: u64,
    /// Packed length in bytes.
    pub packed: u64,
    /// Unpacked length in bytes.
    pub unpacked: u64,
}

impl Position {
    /// Reads the annotation's value.
    pub fn parse(text: &str, blob_size: u64) -> Result<Self, Flaw> {
        let numbers: Option<Vec<u64>> = text
            .split(':')
            .map(|number| {
                let digits = number.bytes().all(|b| b.is_ascii_digit());
                number.parse().ok().filter(|_| digits)
            })
            .collect();
        match numbers.as_deref() {
            Some(&[offset, packed, unpacked, kind]) => {
                Self::checked([offset, packed, unpacked, kind], blob_size)
            }
            _ => Err(Flaw::new(format!(
                "position of the TOC: {text:?} is not OFFSET:PACKED:UNPACKED:TYPE"
            ))),
        }
    }

    /// Finds a footer at the end of `tail`, the last bytes of a blob of `blob_size` bytes.
    ///
    /// `Ok(None)` means that the blob has none, which is no error.
    pub fn of_footer(tail: &[u8], blob_size: u64) -> Result<Option<Self>, Flaw> {
        for (magic, integers) in [CONTAINERS_FOOTER, STARGZ_FOOTER] {
            let Some(start) = tail.len().checked_sub(integers * 8 + magic.len()) else {
                continue;
            };
            let footer = &tail[start..];
            if footer[integers * 8..] != magic {
                continue;
            }
            let integer = |i: usize| {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&footer[i * 8..][..8]);
                u64::from_le_bytes(bytes)
            };
            return Self::checked([0, 1, 2, 3].map(integer), blob_size).map(Some);
        }
        Ok(None)
    }

    fn checked([offset, packed, unpacked, kind]: [u64; 4], size: u64) -> Result<Self, Flaw> {
        let refuse = |reason: String| Err(Flaw::new(format!("position of the TOC: {reason}")));
        if kind != TYPE_CRFS {
            return refuse(format!("type {kind} is not known"));
        }
        let inside = offset.checked_add(packed).is_some_and(|end| end <= size);
        if !inside || offset < SKIPPABLE_HEADER || packed == 0 {
            return refuse(format!("{packed} bytes at {offset} of a blob of {size}"));
        }
        if packed > estargz::MAX_PACKED_TOC || unpacked > estargz::MAX_TOC {
            return refuse(format!("{packed} bytes packed, {unpacked} unpacked"));
        }
        Ok(Self {
            offset,
            packed,
            unpacked,
        })
    }
}

/// Unpacks the TOC's JSON, which must be as long as its position says.
pub fn unpack_toc(packed: &[u8], position: Position) -> Result<Vec<u8>, Flaw> {
    let mut json = Vec::new();
    zstd::stream::read::Decoder::with_buffer(packed)
        .and_then(|decoder| decoder.take(position.unpacked + 1).read_to_end(&mut json))
        .map_err(|error| Flaw::new(format!("TOC: {error}")))?;
    if json.len() as u64 != position.unpacked {
        let expected = position.unpacked;
        return Err(Flaw::new(format!(
            "TOC: does not unpack to {expected} bytes"
        )));
    }
    Ok(json)
}

/// Makes the index of `layer`, a blob of `blob_size` bytes, from its TOC's JSON.
///
/// `toc` is the digest that the caller has checked the TOC by.
pub fn index(
    json: &[u8],
    layer: Digest,
    toc: Digest,
    blob_size: u64,
    position: Position,
) -> Result<LayerIndex, Flaw> {
    let builder = LayerBuilder::new(layer, toc, blob_size);
    let end = position.offset - SKIPPABLE_HEADER;
    estargz::read(json, builder, Codec::Zstd, end)
}

#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;
