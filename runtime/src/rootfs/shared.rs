//! The root of a container in the mount namespace of the host: its mount outlives its processes.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::{Error, Result};

/// `STATX_MNT_ID_UNIQUE`: a number that no other mount gets (Linux 6.8).
const UNIQUE_MOUNT_ID: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// The number of the mount that a descriptor is of.
pub(crate) fn mount_id(fd: &impl AsFd) -> Result<u64> {
    statx(fd, c"", AtFlags::EMPTY_PATH, UNIQUE_MOUNT_ID)
        .map(|found| found.stx_mnt_id)
        .map_err(Error::os("examine the mount of the rootfs"))
}

/// Unmounts what is at `path`, and below, if it is that mount.
pub(crate) fn unmount_root(path: &Path, mount: u64) -> Result<()> {
    let failed = |errno| Error::file("unmount", path)(errno);
    match statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, UNIQUE_MOUNT_ID) {
        Ok(found) if found.stx_mnt_id == mount => {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            unmount(path, flags).map_err(failed)
        }
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(failed(errno)),
    }
}
