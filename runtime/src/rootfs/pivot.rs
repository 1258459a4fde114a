//! Attaching the root file system and making it the root, in the child.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, UnmountFlags, mount, mount_move, move_mount, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use super::by_mount::{Spot, is_same, set_attributes};
use super::host::isolate_root;
use super::refusals::refuses_mount_api;
use crate::error::{At as _, Failure, Step};
use crate::plan::{RootChange, RootfsPlan};
use crate::sys::{MountAttr, mount_set_attr};

/// Cuts the child's mounts off from the host's: nothing it does is seen there.
pub(crate) fn make_private() -> Result<(), Failure<'static>> {
    let attr = MountAttr {
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    set_attributes(CWD, c"/", true, &attr).at(Step::Propagation, b"/")
}

/// Attaches the root's tree at its own path, where hooks expect to find it; over `/` when a user
/// namespace's root may not walk that path, or a mount namespace that is joined has none.
pub(crate) fn attach<'p>(
    path: &'p CStr,
    root: &mut OwnedFd,
    change: RootChange,
) -> Result<(), Failure<'p>> {
    let tree = root.as_fd();
    let to = |path: &CStr| {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(tree, c"", CWD, path, flags)
    };
    let attached = match to(path) {
        // On the host itself it stays apart from what the host shares with others.
        Ok(()) if change == RootChange::Chroot => {
            let attr = MountAttr {
                propagation: libc::MS_PRIVATE,
                ..MountAttr::default()
            };
            mount_set_attr(tree, c"", true, &attr)
        }
        Err(Errno::ACCESS | Errno::NOENT) if change != RootChange::Chroot => to(c"/"),
        result => result,
    };
    match attached {
        // What is no clone cannot be attached at all. On the host itself the mount has to be the
        // one that the parent knows of.
        Err(errno)
            if (refuses_mount_api(errno) || errno == Errno::INVAL)
                && change != RootChange::Chroot =>
        {
            bind_root(path, tree)
                .map(|bound| *root = bound)
                .map_err(|_| errno)
        }
        attached => attached,
    }
    .at(Step::AttachRootfs, path.to_bytes())
}

/// Binds the root, which has to be what `known` is, to its own path; the new mount.
fn bind_root(path: &CStr, known: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base = open(c"/", flags, Mode::empty())?;
    let place = open(path, flags, Mode::empty())?;
    if !is_same(place.as_fd(), known)? {
        return Err(Errno::STALE);
    }
    let spot = Spot {
        base: base.as_fd(),
        path,
        place: place.as_fd(),
        nofollow: false,
    };
    let bound = spot.bind(place.as_fd(), true)?;
    isolate_root(bound.as_fd())?;
    Ok(bound)
}

/// Makes `root` the root directory and drops everything outside it.
pub(crate) fn enter(
    plan: &RootfsPlan,
    root: BorrowedFd<'_>,
    change: RootChange,
) -> Result<(), Failure<'static>> {
    if plan.readonly {
        let attr = MountAttr {
            set: libc::MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        set_attributes(root, c"", false, &attr).at(Step::PivotRoot, b"read-only root")?;
    }
    change_root(root, change).at(Step::PivotRoot, b"")?;
    let (kind, recursive) = plan.propagation;
    if (kind, recursive) == AS_BORN {
        return Ok(());
    }
    let attr = MountAttr {
        propagation: kind,
        ..MountAttr::default()
    };
    set_attributes(CWD, c"/", recursive, &attr).at(Step::Propagation, b"/")
}

/// Propagation that the tree has already: a slave wherever the host shares with it.
const AS_BORN: (u64, bool) = (libc::MS_SLAVE, true);

fn change_root(root: BorrowedFd<'_>, change: RootChange) -> Result<(), Errno> {
    if change == RootChange::Enter {
        return Ok(());
    }
    fchdir(root)?;
    match change {
        RootChange::Enter => {}
        RootChange::Pivot => {
            // The old root ends up on top of the new one, whence it is detached.
            pivot_root(c".", c".")?;
            unmount(c".", UnmountFlags::DETACH)?;
        }
        RootChange::Move => {
            hide_host()?;
            mount_move(c".", c"/")?;
            chroot(c".")?;
        }
        RootChange::Chroot => chroot(c".")?,
    }
    chdir(c"/")
}

/// Without a pivot the host's mounts stay in the namespace: at least no complete proc or sysfs is
/// left there to be mounted again by a user namespace inside.
fn hide_host() -> Result<(), Errno> {
    for path in [c"/proc", c"/sys"] {
        match unmount(path, UnmountFlags::DETACH) {
            // Nothing is mounted there.
            Ok(()) | Err(Errno::NOENT) => {}
            // In a user namespace they are locked to what they lie on, and can only be covered.
            Err(Errno::INVAL | Errno::PERM) => {
                let covered = mount(c"tmpfs", path, c"tmpfs", MountFlags::RDONLY, None);
                covered.or_else(|errno| match errno {
                    Errno::NOENT => Ok(()),
                    errno => Err(errno),
                })?;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
