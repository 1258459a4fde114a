//! What a host may refuse, and what is done instead: the one place that knows.
//!
//! A security module around this runtime (LXC's profiles), a user namespace that does not own what
//! a file system shows, or the lack of `CAP_MKNOD` answer calls of the ordinary way with an error.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen,
};

use super::resolve::open_inside;
use crate::sys::{MountAttr, clone_tree_with};

/// `PROC_SUPER_MAGIC` of `linux/magic.h`.
const PROC_MAGIC: rustix::fs::FsWord = 0x9fa0;
/// The root directory of every proc file system (`PROC_ROOT_INO` of `linux/proc_ns.h`).
const PROC_ROOT: u64 = 1;

/// Whether a new file system was refused for what it shows, so that the host's view may stand in.
pub(super) fn refuses_filesystem(errno: Errno) -> bool {
    matches!(errno, Errno::PERM | Errno::ACCESS | Errno::BUSY)
}

/// Whether the mount API itself may have been refused, so that `mount(2)` is tried.
pub(super) fn refuses_mount_api(errno: Errno) -> bool {
    matches!(errno, Errno::PERM | Errno::ACCESS | Errno::NOSYS)
}

/// Whether a device node cannot be made here, so that the host's is bound.
pub(super) fn refuses_nodes(errno: Errno) -> bool {
    errno == Errno::PERM
}

/// The host's node of a device, as a detached mount; the caller sees the host's paths. It is private:
/// what is mounted over it later is not mounted over the host's.
pub(super) fn node_of_host(path: &CStr, flags: OpenTreeFlags) -> Result<OwnedFd, Errno> {
    clone_tree_with(CWD, path, flags, &PRIVATE)
}

/// Cuts a mount off from all others.
pub(super) const PRIVATE: MountAttr = MountAttr {
    set: 0,
    clear: 0,
    propagation: libc::MS_PRIVATE,
    userns_fd: 0,
};

/// Whether something lies on a proc file system.
pub(super) fn is_on_proc(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(fstatfs(fd)?.f_type == PROC_MAGIC)
}

/// Whether something is the root of a proc file system.
pub(super) fn is_whole_proc(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(is_on_proc(fd)? && fstat(fd)?.st_ino == PROC_ROOT)
}

/// A proc file system that nobody can have tampered with: a new one that is mounted nowhere, or,
/// where a security module around the runtime refuses that (LXC), the container's own.
pub(crate) fn trusted_proc(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let detached = new_proc().and_then(|proc| {
        // AppArmor lets nobody open files by what it calls a disconnected path.
        open_in_proc(proc.as_fd(), c"uptime", OFlags::RDONLY).map(|_| proc)
    });
    match detached {
        Err(Errno::ACCESS | Errno::PERM | Errno::NOSYS) => own_proc(root),
        result => result,
    }
}

/// The container's `/proc`, after a check that it is the root of a proc file system.
fn own_proc(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let proc = open_inside(root, c"proc", OFlags::PATH | OFlags::DIRECTORY, true)?;
    if is_whole_proc(proc.as_fd())? {
        Ok(proc)
    } else {
        Err(Errno::NODEV)
    }
}

/// Opens a file of a proc file system itself, whatever may be mounted inside it
/// (CVE-2025-52881).
pub(crate) fn open_in_proc(
    proc: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    openat2(proc, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// A proc file system of the child's pid namespace that is mounted nowhere.
fn new_proc() -> Result<OwnedFd, Errno> {
    let context = fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}
