//! Inodes of an index as FUSE attributes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

use crate::index::{Inode, Kind, Node};

/// The inode number of node `id`: node 0 is FUSE's root, number 1.
pub(super) fn number(id: u32) -> INodeNo {
    INodeNo(u64::from(id) + 1)
}

/// The node that an inode number stands for.
pub(super) fn node_id(number: INodeNo) -> Option<u32> {
    number.0.checked_sub(1).and_then(|id| id.try_into().ok())
}

/// The type as FUSE names it.
pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
    }
}

/// What `stat` of a node shows.
pub(super) fn attributes(id: u32, node: Node, inode: &Inode) -> FileAttr {
    let mtime = time(inode.mtime, inode.mtime_nsec);
    let size = match inode.kind() {
        Kind::Directory => 4096,
        _ => inode.size,
    };
    let (major, minor) = inode.rdev();
    FileAttr {
        ino: number(id),
        size,
        blocks: size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: file_type(inode.kind()),
        perm: (inode.mode & 0o7777) as u16,
        nlink: node.nlink,
        uid: inode.uid,
        gid: inode.gid,
        // The kernel's 32-bit encoding of 12 bits of major and 20 of minor number.
        rdev: (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12),
        blksize: 4096,
        flags: 0,
    }
}

/// The answer to a lookup of what is not there: number 0 makes the kernel remember the absence.
pub(super) fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    base.and_then(|base| base.checked_add(Duration::from_nanos(nanoseconds.into())))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_1970() {
        assert_eq!(time(5, 7), UNIX_EPOCH + Duration::new(5, 7));
        assert_eq!(
            time(-1, 500_000_000),
            UNIX_EPOCH - Duration::from_millis(500)
        );
    }

    #[test]
    fn numbers_begin_at_fuses_root() {
        assert_eq!(number(0), INodeNo::ROOT);
        assert_eq!(node_id(number(41)), Some(41));
        assert_eq!(node_id(INodeNo(0)), None);
        assert_eq!(node_id(INodeNo(1 << 40)), None);
    }
}
