//! Attaching the root file system and making it the root, in the child.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, mount_move, move_mount, unmount};
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use super::host::HostTrees;
use crate::error::{At as _, Failure, Step};
use crate::plan::RootfsPlan;
use crate::sys::{MountAttr, mount_set_attr};

/// Cuts the child's mounts off from the host's: nothing it does is seen there.
pub(crate) fn make_private() -> Result<(), Failure<'static>> {
    let attr = MountAttr {
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    mount_set_attr(CWD, c"/", true, &attr).at(Step::Propagation, b"/")
}

/// Attaches the root's tree at its own path, where hooks expect to find it; over `/` when a user
/// namespace's root may not walk that path.
pub(crate) fn attach<'p>(path: &'p CStr, trees: &HostTrees) -> Result<(), Failure<'p>> {
    let to = |path: &CStr| {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(trees.root.as_fd(), c"", CWD, path, flags)
    };
    match to(path) {
        Err(Errno::ACCESS) => to(c"/"),
        result => result,
    }
    .at(Step::AttachRootfs, path.to_bytes())
}

/// Makes `root` the root directory and drops everything outside it.
pub(crate) fn enter(
    plan: &RootfsPlan,
    root: BorrowedFd<'_>,
    no_pivot: bool,
) -> Result<(), Failure<'static>> {
    if plan.readonly {
        let attr = MountAttr {
            set: libc::MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        mount_set_attr(root, c"", false, &attr).at(Step::PivotRoot, b"read-only root")?;
    }
    change_root(root, no_pivot).at(Step::PivotRoot, b"")?;
    if let (libc::MS_SHARED, recursive) = plan.propagation {
        let attr = MountAttr {
            propagation: libc::MS_SHARED,
            ..MountAttr::default()
        };
        mount_set_attr(CWD, c"/", recursive, &attr).at(Step::Propagation, b"/")?;
    }
    Ok(())
}

fn change_root(root: BorrowedFd<'_>, no_pivot: bool) -> Result<(), Errno> {
    fchdir(root)?;
    if no_pivot {
        mount_move(c".", c"/")?;
        chroot(c".")?;
    } else {
        // The old root ends up on top of the new one, whence it is detached.
        pivot_root(c".", c".")?;
        unmount(c".", UnmountFlags::DETACH)?;
    }
    chdir(c"/")
}
