//! On-disk numbers and records of EROFS; all integers are little-endian.

/// Bytes of a block.
pub(super) const BLOCK: usize = 4096;
/// Inodes lie at multiples of this; a node id counts them.
pub(super) const SLOT: usize = 32;
/// Bytes of an inode without and with its own times and 32-bit owners.
pub(super) const COMPACT: usize = 32;
pub(super) const EXTENDED: usize = 64;
/// Bytes of an index of a chunk.
pub(super) const CHUNK_INDEX: usize = 8;
/// Bytes of a directory entry without its name.
pub(super) const DIRENT: usize = 12;
/// Where the superblock is, and its length.
pub(super) const SUPER_OFFSET: usize = 1024;
pub(super) const SUPER_LEN: usize = 128;
/// Where the device table begins, and bytes of one of its slots.
pub(super) const DEVICES_OFFSET: usize = SUPER_OFFSET + SUPER_LEN;
pub(super) const DEVICE_SLOT: usize = 128;

const MAGIC: u32 = 0xE0F5_E1E2;
const BLOCK_BITS: u8 = 12;
/// The image may hold modification times per inode.
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKED_FILE: u32 = 4;
const INCOMPAT_DEVICE_TABLE: u32 = 8;
/// Chunk indexes of 8 bytes with a device each.
const CHUNK_FORMAT_INDEXES: u16 = 0x20;

/// How an inode's data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// In consecutive blocks.
    Plain = 0,
    /// Like plain, but what follows the last whole block stands right behind the inode.
    Inline = 2,
    /// In chunks on devices.
    Chunks = 4,
}

/// The superblock's variable part.
pub(super) struct Super {
    pub(super) inodes: u64,
    /// Time of all compact inodes.
    pub(super) time: (i64, u32),
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) devices: u16,
}

impl Super {
    pub(super) fn put(&self, out: &mut [u8]) {
        let mut at = Cursor::new(out);
        at.u32(MAGIC);
        at.u32(0); // checksum: not used, the image is durable before it is mounted after a boot
        at.u32(COMPAT_MTIME);
        at.u8(BLOCK_BITS);
        at.u8(0); // further superblock slots
        at.u16(0); // root: the first inode
        at.u64(self.inodes);
        at.u64(self.time.0 as u64);
        at.u32(self.time.1);
        at.u32(self.blocks);
        at.u32(self.meta_block);
        at.u32(0); // shared attributes: none
        at.skip(16 + 16); // UUID and name of the volume
        let devices = if self.devices > 0 {
            INCOMPAT_DEVICE_TABLE
        } else {
            0
        };
        at.u32(INCOMPAT_CHUNKED_FILE | devices);
        at.u16(0); // compression
        at.u16(self.devices);
        at.u16((DEVICES_OFFSET / DEVICE_SLOT) as u16);
    }
}

/// One slot of the device table; `tag` is for people.
pub(super) fn put_device(out: &mut [u8], tag: &str, len: u64) {
    let tag = tag.as_bytes();
    out[..tag.len().min(64)].copy_from_slice(&tag[..tag.len().min(64)]);
    let mut at = Cursor::new(&mut out[64..]);
    at.u32(len.div_ceil(BLOCK as u64) as u32);
}

/// An inode as it is written; `union` is what its layout makes of it.
pub(super) struct Record {
    pub(super) layout: Layout,
    pub(super) xattr_count: u16,
    pub(super) mode: u16,
    pub(super) nlink: u32,
    pub(super) size: u64,
    pub(super) union: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) time: (i64, u32),
}

impl Record {
    pub(super) fn put_compact(&self, out: &mut [u8]) {
        let mut at = Cursor::new(out);
        at.u16((self.layout as u16) << 1);
        at.u16(self.xattr_count);
        at.u16(self.mode);
        at.u16(self.nlink as u16);
        at.u32(self.size as u32);
        at.u32(0);
        at.u32(self.union);
        at.u32(self.number);
        at.u16(self.uid as u16);
        at.u16(self.gid as u16);
    }

    pub(super) fn put_extended(&self, out: &mut [u8]) {
        let mut at = Cursor::new(out);
        at.u16((self.layout as u16) << 1 | 1);
        at.u16(self.xattr_count);
        at.u16(self.mode);
        at.u16(0);
        at.u64(self.size);
        at.u32(self.union);
        at.u32(self.number);
        at.u32(self.uid);
        at.u32(self.gid);
        at.u64(self.time.0 as u64);
        at.u32(self.time.1);
        at.u32(self.nlink);
    }
}

/// The union of an inode whose data is one chunk: the least chunk size that holds `size` bytes.
pub(super) fn chunk_format(size: u64) -> u32 {
    let blocks = size.div_ceil(BLOCK as u64).next_power_of_two();
    u32::from(CHUNK_FORMAT_INDEXES | blocks.trailing_zeros() as u16)
}

/// The index of a chunk that begins at `block` of `device`, counted from 1.
pub(super) fn put_chunk(out: &mut [u8], device: u16, block: u32) {
    let mut at = Cursor::new(out);
    at.u16(0);
    at.u16(device);
    at.u32(block);
}

/// A device's number as the kernel encodes it in 32 bits.
pub(super) fn device_number((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// Writes integers one after the other.
pub(super) struct Cursor<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0 }
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    pub(super) fn skip(&mut self, len: usize) {
        self.at += len;
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }
}
