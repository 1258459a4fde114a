//! The table of compression contexts (`blob.meta`) as it ends a blob: packed, then a header of its own,
//! then a tar header.

use super::blob::ZSTD;
use crate::convert::tar::encode_regular;

/// Magic number at both ends of the header.
const MAGIC: u32 = 0xb10b_b10b;
/// Length of the header.
const HEADER: usize = 4096;
/// Level of zstd.
const LEVEL: i32 = 3;

/// Where the compression contexts lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contexts {
    pub(super) offset: u64,
    pub(super) packed_len: u64,
    pub(super) len: u64,
}

/// The inflate contexts at a table's end.
#[derive(Debug, Clone, Copy)]
pub(super) struct InflatePart {
    /// Bytes of the table before them.
    pub(super) at: u64,
    /// Bytes of them and their windows.
    pub(super) len: u64,
    pub(super) count: u32,
}

impl Contexts {
    /// Packs the table of `chunks` chunks for a place `offset` bytes into a blob; gives all that
    /// follows there.
    pub(super) fn pack(
        table: &[u8],
        chunks: usize,
        offset: u64,
        features: u32,
        inflate: Option<InflatePart>,
    ) -> std::io::Result<(Self, Vec<u8>)> {
        let packed = zstd::bulk::compress(table, LEVEL)?;
        let (codec, mut bytes) = if packed.len() < table.len() {
            (ZSTD, packed)
        } else {
            (0, table.to_vec())
        };
        let contexts = Self {
            offset,
            packed_len: bytes.len() as u64,
            len: table.len() as u64,
        };
        bytes.extend(contexts.header(features, codec, chunks as u32, inflate));
        let trailer = encode_regular("blob.meta", bytes.len() as u64);
        bytes.extend_from_slice(&trailer);
        Ok((contexts, bytes))
    }

    fn header(
        &self,
        features: u32,
        codec: u32,
        chunks: u32,
        inflate: Option<InflatePart>,
    ) -> Vec<u8> {
        let mut header = Vec::with_capacity(HEADER);
        for word in [MAGIC, features, codec, chunks] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        for long in [self.offset, self.packed_len, self.len] {
            header.extend_from_slice(&long.to_le_bytes());
        }
        if let Some(part) = inflate {
            for long in [part.at, part.len, u64::from(part.count)] {
                header.extend_from_slice(&long.to_le_bytes());
            }
        }
        header.resize(HEADER - 4, 0);
        header.extend_from_slice(&MAGIC.to_le_bytes());
        header
    }
}
