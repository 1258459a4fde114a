//! EROFS inodes with their extended attributes and inline data.

use super::super::view::View;
use super::superblock::Superblock;
use crate::formats::Flaw;

/// Data in blocks of the bootstrap.
const FLAT_PLAIN: u16 = 0;
/// The same, the last block right behind the inode.
const FLAT_INLINE: u16 = 2;
/// Data in chunks of other devices.
const CHUNK_BASED: u16 = 4;
/// Chunks are given as 8-byte indexes.
const CHUNK_INDEXES: u32 = 0x20;
/// Unit of an inode's number.
pub(crate) const SLOT: u64 = 32;
/// Length of the head of an inode's extended attributes.
pub(crate) const XATTR_HEAD: u64 = 12;
/// Prefixes of attribute names, by their number.
pub(crate) const XATTR_PREFIXES: [(u8, &str); 5] = [
    (1, "user."),
    (2, "system.posix_acl_access"),
    (3, "system.posix_acl_default"),
    (4, "trusted."),
    (6, "security."),
];

/// An inode as it lies in the bootstrap.
#[derive(Debug)]
pub(super) struct RawInode {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) size: u64,
    layout: u16,
    /// First block, device number or chunk format.
    union: u32,
    at: u64,
    /// Bytes of the inode itself.
    len: u64,
    xattr_len: u64,
}

/// Name and value of an extended attribute.
type Xattr = (Vec<u8>, Vec<u8>);

/// What every look into a bootstrap needs.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) view: View<'a>,
    pub(super) superblock: &'a Superblock,
}

impl<'a> Source<'a> {
    pub(super) fn inode(&self, number: u64) -> Result<RawInode, Flaw> {
        let what = "an inode";
        let at = number
            .checked_mul(SLOT)
            .and_then(|offset| offset.checked_add(self.superblock.meta_offset))
            .ok_or_else(|| {
                self.view
                    .flaw(format_args!("inode {number} is outside of it"))
            })?;
        let head = self.view.part(at, 32, what)?;
        let format = head.u16(0, what)?;
        let extended = format & 1 == 1;
        let len = if extended { 64 } else { 32 };
        let raw = self.view.part(at, len, what)?;
        let xattr_words = u64::from(raw.u16(2, what)?);
        let xattr_len = match xattr_words {
            0 => 0,
            words => XATTR_HEAD + (words - 1) * 4,
        };
        let common = RawInode {
            mode: u32::from(raw.u16(4, what)?),
            uid: 0,
            gid: 0,
            mtime: self.superblock.build_time,
            size: 0,
            layout: (format >> 1) & 7,
            union: raw.u32(16, what)?,
            at,
            len,
            xattr_len,
        };
        Ok(if extended {
            RawInode {
                size: raw.u64(8, what)?,
                uid: raw.u32(24, what)?,
                gid: raw.u32(28, what)?,
                mtime: (raw.u64(32, what)? as i64, raw.u32(40, what)?),
                ..common
            }
        } else {
            RawInode {
                size: u64::from(raw.u32(8, what)?),
                uid: u32::from(raw.u16(24, what)?),
                gid: u32::from(raw.u16(26, what)?),
                ..common
            }
        })
    }

    /// Names and values of the inode's extended attributes.
    pub(super) fn xattrs(&self, inode: &RawInode) -> Result<Vec<Xattr>, Flaw> {
        let what = "an extended attribute";
        if inode.xattr_len == 0 {
            return Ok(Vec::new());
        }
        let body = self
            .view
            .part(inode.at + inode.len, inode.xattr_len, what)?;
        let shared = u64::from(body.u8(4, what)?);
        let mut xattrs = Vec::new();
        for i in 0..shared {
            let id = u64::from(body.u32(XATTR_HEAD + i * 4, what)?);
            let at = self.superblock.xattr_offset + id * 4;
            let left = self.view.len().saturating_sub(at);
            xattrs.push(read_xattr(&self.view.part(at, left, what)?)?.0);
        }
        let mut at = XATTR_HEAD + shared * 4;
        // What is left may be padding, which is shorter than the head of an entry.
        while at + 4 <= body.len() {
            let (xattr, len) = read_xattr(&body.part(at, body.len() - at, what)?)?;
            xattrs.push(xattr);
            at += len.next_multiple_of(4);
        }
        Ok(xattrs)
    }

    /// The inode's data, which must lie in the bootstrap: block after block, each with what ends
    /// in it.
    pub(super) fn blocks(
        &self,
        inode: &'a RawInode,
    ) -> Result<impl Iterator<Item = Result<&'a [u8], Flaw>> + use<'a>, Flaw> {
        let block = 1_u64 << self.superblock.block_bits;
        if inode.size > self.view.len() {
            return Err(self.view.flaw(format_args!(
                "{} bytes of data in an inode, more than the bootstrap",
                inode.size
            )));
        }
        let inline = match inode.layout {
            FLAT_PLAIN => false,
            FLAT_INLINE => true,
            other => return Err(self.view.flaw(format_args!("data of layout {other}"))),
        };
        let count = inode.size.div_ceil(block);
        let (view, first) = (self.view, u64::from(inode.union) * block);
        let tail = inode.at + inode.len + inode.xattr_len;
        Ok((0..count).map(move |i| {
            let len = block.min(inode.size - i * block);
            let at = if inline && i + 1 == count {
                tail
            } else {
                first + i * block
            };
            view.slice(at, len, "an inode's data")
        }))
    }

    /// The indexes of the chunks that hold the data of a regular file.
    pub(super) fn chunk_indexes(&self, inode: &RawInode) -> Result<View<'a>, Flaw> {
        if inode.layout != CHUNK_BASED {
            let layout = inode.layout;
            return Err(self
                .view
                .flaw(format_args!("a file's data has layout {layout}")));
        }
        if inode.union & CHUNK_INDEXES == 0 {
            return Err(self.view.flaw("a file's chunks have no indexes"));
        }
        let at = inode.at + (inode.len + inode.xattr_len).next_multiple_of(8);
        let count = inode.size.div_ceil(self.superblock.chunk_size);
        self.view
            .part(at, count.saturating_mul(8), "a file's chunk indexes")
    }
}

impl RawInode {
    /// Major and minor number of a device, as Linux encodes them in 32 bits.
    pub(super) fn device(&self) -> (u64, u64) {
        let number = u64::from(self.union);
        let major = (number >> 8) & 0xfff;
        let minor = (number & 0xff) | ((number >> 12) & 0xf_ff00);
        (major, minor)
    }
}

/// The attribute at the beginning of `view`, and the bytes that it takes.
fn read_xattr(view: &View<'_>) -> Result<(Xattr, u64), Flaw> {
    let what = "an extended attribute";
    let name_len = u64::from(view.u8(0, what)?);
    let prefix = view.u8(1, what)?;
    let value_len = u64::from(view.u16(2, what)?);
    let Some((_, prefix)) = XATTR_PREFIXES.iter().find(|(number, _)| *number == prefix) else {
        return Err(view.flaw(format_args!("{what} has the unknown prefix {prefix}")));
    };
    let mut name = prefix.as_bytes().to_vec();
    name.extend_from_slice(view.slice(4, name_len, what)?);
    let value = view.slice(4 + name_len, value_len, what)?.to_vec();
    Ok(((name, value), 4 + name_len + value_len))
}
