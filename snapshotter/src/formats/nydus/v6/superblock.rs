//! The EROFS superblock, RAFS' extension behind it, and the table of blobs.

use super::super::blobs::{self, BlobInfo};
use super::super::view::View;
use crate::digest::{Algorithm, Digest};
use crate::formats::Flaw;

/// Where the superblock begins.
pub(crate) const SUPER_OFFSET: u64 = 1024;
/// First field of the superblock.
pub(crate) const MAGIC: u32 = 0xE0F5_E1E2;
/// Compatible feature: RAFS v6's extension follows the superblock.
pub(crate) const COMPAT_RAFS_V6: u32 = 0x4000_0000;
/// Incompatible features that RAFS v6 uses: chunk-based files and a table of devices.
pub(crate) const INCOMPAT: u32 = 0x4 | 0x8;
/// Length of the superblock, and offset of the extension in it.
pub(crate) const SUPER_LEN: u64 = 128;
/// Length of RAFS' extension.
pub(crate) const EXTENSION_LEN: u64 = 256;
/// Where device slots begin.
pub(crate) const DEVICES_OFFSET: u64 = SUPER_OFFSET + SUPER_LEN + EXTENSION_LEN;
/// Length of a device slot, and unit of their offset in the superblock.
pub(crate) const DEVICE_LEN: u64 = 128;
/// Length of an entry of the blob table.
pub(crate) const BLOB_LEN: u64 = 256;

/// Extension flag: chunk digests are BLAKE3.
pub(crate) const FLAG_BLAKE3: u64 = 0x4;
/// Extension flag: chunk digests are SHA-256.
pub(crate) const FLAG_SHA256: u64 = 0x8;
/// Extension flag: inodes have owners of their own.
pub(crate) const FLAG_EXPLICIT_OWNER: u64 = 0x10;
/// Extension flag: some inode has extended attributes.
pub(crate) const FLAG_XATTRS: u64 = 0x20;
/// Extension flag: chunks are packed by gzip.
pub(crate) const FLAG_GZIP: u64 = 0x40;
/// Extension flag: chunks are packed by zstd.
pub(crate) const FLAG_ZSTD: u64 = 0x80;
/// Extension flag: the blobs are plain tar archives.
const FLAG_TARFS: u64 = 0x200;
/// Extension flag: chunks are encrypted.
const FLAG_ENCRYPTED: u64 = 0x0200_0000;

/// What the superblock and its extension say.
#[derive(Debug)]
pub(super) struct Superblock {
    pub(super) block_bits: u8,
    pub(super) meta_offset: u64,
    pub(super) xattr_offset: u64,
    pub(super) root: u64,
    pub(super) build_time: (i64, u32),
    pub(super) chunk_size: u64,
    pub(super) algorithm: Algorithm,
    pub(super) blobs: Vec<BlobInfo>,
    /// Offset of the blob table.
    pub(super) blob_table: u64,
    /// Offset and length of the chunk table.
    pub(super) chunks: (u64, u64),
    /// Offset and length of the prefetch table.
    pub(super) prefetch: (u64, u64),
}

impl Superblock {
    pub(super) fn read(view: &View<'_>) -> Result<Self, Flaw> {
        let sb = view.part(SUPER_OFFSET, SUPER_LEN, "the superblock")?;
        let field = "a field of the superblock";
        if sb.u32(0, field)? != MAGIC || sb.u32(8, field)? & COMPAT_RAFS_V6 == 0 {
            return Err(view.flaw("not RAFS v6"));
        }
        let incompatible = sb.u32(80, field)?;
        if incompatible & !INCOMPAT != 0 {
            return Err(view.flaw(format_args!("features {incompatible:#x} are not known")));
        }
        let block_bits = sb.u8(12, field)?;
        if block_bits != 12 && block_bits != 9 {
            return Err(view.flaw(format_args!("blocks of 2^{block_bits} bytes")));
        }
        let mut superblock = Self {
            block_bits,
            meta_offset: u64::from(sb.u32(40, field)?) << block_bits,
            xattr_offset: u64::from(sb.u32(44, field)?) << block_bits,
            root: u64::from(sb.u16(14, field)?),
            build_time: (sb.u64(24, field)? as i64, sb.u32(32, field)?),
            chunk_size: 0,
            algorithm: Algorithm::Sha256,
            blobs: Vec::new(),
            blob_table: 0,
            chunks: (0, 0),
            prefetch: (0, 0),
        };
        superblock.read_extension(view)?;
        Ok(superblock)
    }

    fn read_extension(&mut self, view: &View<'_>) -> Result<(), Flaw> {
        let what = "the extended superblock";
        let extension = view.part(SUPER_OFFSET + SUPER_LEN, EXTENSION_LEN, what)?;
        let field = "a field of the extended superblock";
        let flags = extension.u64(0, field)?;
        self.algorithm = match flags & (FLAG_BLAKE3 | FLAG_SHA256) {
            FLAG_BLAKE3 => Algorithm::Blake3,
            FLAG_SHA256 => Algorithm::Sha256,
            _ => return Err(view.flaw("it does not say how chunks are digested")),
        };
        if flags & FLAG_ENCRYPTED != 0 {
            return Err(view.flaw("its chunks are encrypted"));
        }
        if flags & FLAG_TARFS != 0 {
            return Err(view.flaw("it refers to plain tar archives, which have no chunk digests"));
        }
        self.chunk_size = u64::from(extension.u32(20, field)?);
        if !self.chunk_size.is_power_of_two() || !(4096..=16 << 20).contains(&self.chunk_size) {
            return Err(view.flaw(format_args!("chunks of {} bytes", self.chunk_size)));
        }
        self.chunks = (extension.u64(24, field)?, extension.u64(32, field)?);
        let prefetch_len = u64::from(extension.u32(48, field)?);
        self.prefetch = (extension.u64(40, field)?, prefetch_len);
        let (at, len) = (extension.u64(8, field)?, extension.u32(16, field)?);
        self.blob_table = at;
        self.blobs = read_blobs(&view.part(at, u64::from(len), "the blob table")?)?;
        match self
            .blobs
            .iter()
            .find(|blob| blob.algorithm != self.algorithm)
        {
            Some(blob) => Err(view.flaw(format_args!(
                "blob {} has another digest algorithm than the rest",
                blob.digest
            ))),
            None => Ok(()),
        }
    }
}

fn read_blobs(table: &View<'_>) -> Result<Vec<BlobInfo>, Flaw> {
    // A chunk names its blob in 8 bits, of which 0 is the bootstrap itself.
    const MAX_BLOBS: u64 = 255;
    let count = table.len() / BLOB_LEN;
    if count > MAX_BLOBS || !table.len().is_multiple_of(BLOB_LEN) {
        return Err(table.flaw(format_args!("a blob table of {} bytes", table.len())));
    }
    (0..count)
        .map(|id| read_blob(&table.part(id * BLOB_LEN, BLOB_LEN, "a blob's entry")?))
        .collect()
}

fn read_blob(entry: &View<'_>) -> Result<BlobInfo, Flaw> {
    let field = "a field of the blob table";
    let hex = entry.array::<64>(0, field)?;
    let digest: Digest = std::str::from_utf8(&hex)
        .ok()
        .and_then(|hex| format!("sha256:{hex}").parse().ok())
        .ok_or_else(|| entry.flaw("a blob's name is not a SHA-256 digest"))?;
    if entry.u32(216, field)? != 0 {
        return Err(entry.flaw(format_args!("blob {digest} is encrypted")));
    }
    let meta = (
        Digest::from_bytes(entry.array(168, field)?),
        entry.u64(200, field)?,
    );
    Ok(BlobInfo {
        digest,
        meta: Some(meta).filter(|(digest, _)| *digest.as_bytes() != [0; 32]),
        codec: blobs::codec(entry.u32(76, field)?, entry)?,
        algorithm: blobs::algorithm(entry.u32(80, field)?, entry)?,
        features: entry.u32(84, field)?,
        chunks: entry.u32(72, field)?,
        context: blobs::ContextPlace {
            codec: blobs::codec(entry.u32(108, field)?, entry)?,
            offset: entry.u64(112, field)?,
            packed_len: entry.u64(120, field)?,
            len: entry.u64(128, field)?,
        },
    })
}
