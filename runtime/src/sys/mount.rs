//! `mount_setattr` (kernel 5.12) and `open_tree_attr` (kernel 6.15).

use std::ffi::CStr;
use std::mem::size_of;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

/// What `mount_setattr(2)` shall change; `MOUNT_ATTR_*` bits and one `MS_*` propagation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct MountAttr {
    /// Bits to set.
    pub(crate) set: u64,
    /// Bits to clear.
    pub(crate) clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0 for no change.
    pub(crate) propagation: u64,
    /// User namespace for `MOUNT_ATTR_IDMAP`.
    pub(crate) userns_fd: u64,
}

impl MountAttr {
    /// Whether there is nothing to change.
    pub(crate) fn is_noop(&self) -> bool {
        self.set == 0 && self.clear == 0 && self.propagation == 0
    }
}

/// Changes the mount at `path` below `dir` (the mount of `dir` itself when `path` is empty).
pub(crate) fn mount_set_attr(
    dir: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    attr: &MountAttr,
) -> Result<(), Errno> {
    let mut flags = libc::AT_SYMLINK_NOFOLLOW;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `attr` has the layout of struct mount_attr, and its size is passed along.
    super::check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// The libc crate has it for one architecture only; the number is the same for all.
const SYS_OPEN_TREE_ATTR: libc::c_long = 467;

/// A detached clone of what is at `path` below `dir`, with these attributes from the start: of the
/// whole tree with `AT_RECURSIVE` among the flags.
pub(crate) fn clone_tree_with(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: OpenTreeFlags,
    attr: &MountAttr,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match open_tree_with(dir, path, flags, attr) {
        // An older kernel, or a seccomp filter around the runtime that is older.
        Err(Errno::NOSYS | Errno::PERM) => {
            let tree = open_tree(dir, path, flags)?;
            let recursive = flags.contains(OpenTreeFlags::AT_RECURSIVE);
            mount_set_attr(tree.as_fd(), c"", recursive, attr)?;
            Ok(tree)
        }
        opened => opened,
    }
}

/// `open_tree_attr(2)`: opens a mount, or a clone of one, and changes it.
pub(crate) fn open_tree_with(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: OpenTreeFlags,
    attr: &MountAttr,
) -> Result<OwnedFd, Errno> {
    // SAFETY: `attr` has the layout of struct mount_attr, and its size is passed along.
    let opened = super::check(unsafe {
        libc::syscall(
            SYS_OPEN_TREE_ATTR,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags.bits(),
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })?;
    // SAFETY: the kernel has just created this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(opened as i32) })
}
