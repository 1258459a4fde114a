//! Masked and read-only paths, in the child and before the root is changed.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, fstat, makedev, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use super::by_mount::{Spot, set_attributes};
use super::mounts::move_to;
use super::refusals::{node_of_host, refuses_mount_api};
use super::resolve::open_inside;
use crate::error::{At as _, Failure, Step};
use crate::sys::{MountAttr, clone_tree_with, mount_set_attr};

/// Makes each path and all below it read-only; what does not exist needs no protection.
pub(crate) fn protect_paths<'p>(
    paths: &'p [CString],
    root: BorrowedFd<'_>,
) -> Result<(), Failure<'p>> {
    let attr = MountAttr {
        set: libc::MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    let flags = OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    for path in paths {
        let detail = path.to_bytes();
        let place = match open_inside(root, path, OFlags::PATH, false) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(errno) => return Err(errno).at(Step::ReadonlyPath, detail),
        };
        let covered = clone_tree_with(place.as_fd(), c"", flags, &attr)
            .and_then(|tree| move_to(tree.as_fd(), place.as_fd()));
        match covered {
            Err(errno) if refuses_mount_api(errno) => protect_by_mount(spot(root, path, &place))
                .map_err(|_| errno)
                .at(Step::ReadonlyPath, detail)?,
            covered => covered.at(Step::ReadonlyPath, detail)?,
        }
    }
    Ok(())
}

/// Binds a path to itself and makes it read-only: with all mounts below, if that call is allowed.
fn protect_by_mount(spot: Spot<'_>) -> Result<(), Errno> {
    let bound = spot.bind(spot.place, true)?;
    let attr = MountAttr {
        set: libc::MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    match mount_set_attr(bound.as_fd(), c"", true, &attr) {
        Err(errno) if refuses_mount_api(errno) => set_attributes(bound.as_fd(), c"", false, &attr),
        done => done,
    }
}

fn spot<'a>(root: BorrowedFd<'a>, path: &'a CStr, place: &'a OwnedFd) -> Spot<'a> {
    Spot {
        base: root,
        path,
        place: place.as_fd(),
        nofollow: false,
    }
}

/// Hides each path: a file below the null device, a directory below one empty read-only tmpfs that
/// all of them share.
pub(crate) fn hide_paths<'p>(
    paths: &'p [CString],
    root: BorrowedFd<'_>,
    null: Option<Result<OwnedFd, Errno>>,
) -> Result<(), Failure<'p>> {
    let mut covers = Covers {
        null,
        over_file: None,
        over_directory: None,
    };
    for path in paths {
        let detail = path.to_bytes();
        let place = match open_inside(root, path, OFlags::PATH, false) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(errno) => return Err(errno).at(Step::Mask, detail),
        };
        match covers.put_over(place.as_fd()) {
            Err(errno) if refuses_mount_api(errno) => hide_by_mount(spot(root, path, &place))
                .map_err(|_| errno)
                .at(Step::Mask, detail)?,
            covered => covered.at(Step::Mask, detail)?,
        }
    }
    Ok(())
}

fn hide_by_mount(spot: Spot<'_>) -> Result<(), Errno> {
    let mounted = if FileType::from_raw_mode(fstat(spot.place)?.st_mode) == FileType::Directory {
        spot.empty_directory()
    } else {
        spot.bind(known_null()?.as_fd(), false)
    };
    mounted.map(drop)
}

/// What masked paths are covered with. Once a cover is attached it can be cloned again and again.
struct Covers {
    /// The host's null device, until it covers a file or was refused to.
    null: Option<Result<OwnedFd, Errno>>,
    over_file: Option<OwnedFd>,
    over_directory: Option<OwnedFd>,
}

impl Covers {
    fn put_over(&mut self, place: BorrowedFd<'_>) -> Result<(), Errno> {
        if FileType::from_raw_mode(fstat(place)?.st_mode) == FileType::Directory {
            cover(place, &mut self.over_directory, empty_tmpfs)
        } else {
            let null = || self.null.take().unwrap_or(Err(Errno::PERM));
            cover(place, &mut self.over_file, null)
        }
    }
}

fn cover(
    place: BorrowedFd<'_>,
    attached: &mut Option<OwnedFd>,
    make: impl FnOnce() -> Result<OwnedFd, Errno>,
) -> Result<(), Errno> {
    if let Some(attached) = attached {
        return move_to(clone_of(attached.as_fd())?.as_fd(), place);
    }
    let new = make()?;
    move_to(new.as_fd(), place)?;
    *attached = Some(new);
    Ok(())
}

/// The null device of the host as a detached mount, to be called while the host's paths are there.
pub(crate) fn host_null() -> Result<OwnedFd, Errno> {
    checked_null(node_of_host(NULL, OpenTreeFlags::AT_SYMLINK_NOFOLLOW)?)
}

/// The same as it is, for a bind.
fn known_null() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    checked_null(open(NULL, flags, Mode::empty())?)
}

const NULL: &CStr = c"/dev/null";

/// Checked by its number, because a mask of anything else would be a way out (CVE-2025-31133).
fn checked_null(null: OwnedFd) -> Result<OwnedFd, Errno> {
    let stat = fstat(&null)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == makedev(1, 3);
    if is_null { Ok(null) } else { Err(Errno::NODEV) }
}

fn empty_tmpfs() -> Result<OwnedFd, Errno> {
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), c"source", c"tmpfs")?;
    fsconfig_set_flag(context.as_fd(), c"ro")?;
    fsconfig_set_string(context.as_fd(), c"nr_inodes", c"1")?;
    fsconfig_create(context.as_fd())?;
    let attrs = MountAttrFlags::MOUNT_ATTR_RDONLY;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attrs)
}

fn clone_of(tree: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(tree, c"", flags)
}
