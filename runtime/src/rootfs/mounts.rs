//! Mounts and kernel parameters, in the child.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FsWord, Mode, OFlags, ResolveFlags, chmodat, fstat, fstatfs, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::host::HostTree;
use super::resolve::{Want, open_inside, open_target};
use crate::error::{At as _, Failure, Step};
use crate::plan::{FilesystemPlan, FsParam, MountPlan, MountSource, RootfsPlan, SysctlPlan};
use crate::sys::{MountAttr, mount_set_attr};

/// `PROC_SUPER_MAGIC` of `linux/magic.h`.
const PROC_SUPER_MAGIC: FsWord = 0x9fa0;
/// The root directory of every proc file system (`PROC_ROOT_INO` of `linux/proc_ns.h`).
const PROC_ROOT_INODE: u64 = 1;

/// Makes all mounts in order; returns the container's own proc file system, when it has one.
///
/// That descriptor stays trustworthy whatever is mounted over `/proc` later.
pub(crate) fn mount_all<'p>(
    plan: &'p RootfsPlan,
    root: BorrowedFd<'_>,
    binds: &mut [Option<HostTree>],
) -> Result<Option<OwnedFd>, Failure<'p>> {
    let mut proc = None;
    for (mount, bind) in plan.mounts.iter().zip(binds) {
        let tree = match (&mount.source, bind.take()) {
            (MountSource::Filesystem(filesystem), _) => {
                let tree = make_filesystem(filesystem, mount)?;
                attach_filesystem(mount, filesystem, root, &tree)?;
                tree
            }
            (MountSource::Bind(_), Some(tree)) => {
                let want = if tree.is_dir {
                    Want::Directory
                } else {
                    Want::File
                };
                attach_at(mount, root, &tree.fd, want)?;
                tree.fd
            }
            (MountSource::Bind(_), None) => {
                return Err(Errno::BADF).at(Step::Mount, mount.target.to_bytes());
            }
        };
        if mount.plain_target && mount.target.as_c_str() == c"proc" {
            proc = Some(tree);
        }
    }
    Ok(proc)
}

fn make_filesystem<'p>(
    plan: &'p FilesystemPlan,
    mount: &'p MountPlan,
) -> Result<OwnedFd, Failure<'p>> {
    let target = mount.target.to_bytes();
    let context =
        fsopen(plan.kind.as_c_str(), FsOpenFlags::FSOPEN_CLOEXEC).at(Step::Filesystem, target)?;
    for param in &plan.params {
        match param {
            FsParam::Flag(key) => fsconfig_set_flag(context.as_fd(), key.as_c_str())
                .at(Step::FilesystemOption, key.to_bytes())?,
            FsParam::Text(key, value) => {
                fsconfig_set_string(context.as_fd(), key.as_c_str(), value.as_c_str())
                    .at(Step::FilesystemOption, key.to_bytes())?;
            }
        }
    }
    fsconfig_create(context.as_fd()).at(Step::Filesystem, target)?;
    let attrs = MountAttrFlags::from_bits_retain(plan.attrs as u32);
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attrs).at(Step::Filesystem, target)
}

fn attach_filesystem<'p>(
    mount: &'p MountPlan,
    plan: &'p FilesystemPlan,
    root: BorrowedFd<'_>,
    tree: &OwnedFd,
) -> Result<(), Failure<'p>> {
    let target = mount.target.to_bytes();
    let place = open_place(mount, root, Want::Directory).at(Step::MountTarget, target)?;
    if plan.inherit_mode {
        let mode = Mode::from_raw_mode(fstat(&place).at(Step::MountTarget, target)?.st_mode);
        // The new tree is still the child's alone, and it is writable unless it was asked to be
        // read-only from the start.
        match chmodat(tree, c".", mode, AtFlags::empty()) {
            Ok(()) | Err(Errno::ROFS) => {}
            Err(errno) => return Err(errno).at(Step::Mount, target),
        }
    }
    move_to(tree.as_fd(), place.as_fd()).at(Step::Mount, target)?;
    if let Some((kind, recursive)) = mount.propagation {
        let attr = MountAttr {
            propagation: kind,
            ..MountAttr::default()
        };
        mount_set_attr(tree.as_fd(), c"", recursive, &attr).at(Step::Mount, target)?;
    }
    Ok(())
}

fn attach_at<'p>(
    mount: &'p MountPlan,
    root: BorrowedFd<'_>,
    tree: &OwnedFd,
    want: Want,
) -> Result<(), Failure<'p>> {
    let target = mount.target.to_bytes();
    let place = open_place(mount, root, want).at(Step::MountTarget, target)?;
    move_to(tree.as_fd(), place.as_fd()).at(Step::Mount, target)
}

/// Opens the place of a mount. A symlink of the image must not lead it into `/proc`, where it
/// could fake what the runtime or the payload reads (CVE-2025-52881); by its name the plan has
/// checked it already.
fn open_place(mount: &MountPlan, root: BorrowedFd<'_>, want: Want) -> Result<OwnedFd, Errno> {
    let place = open_target(root, &mount.target, want, mount.plain_target)?;
    let name = mount.target.to_bytes();
    let is_checked = name == b"proc" || name.starts_with(b"proc/");
    if !is_checked && is_on_proc(place.as_fd())? {
        return Err(Errno::LOOP);
    }
    Ok(place)
}

/// Attaches a detached tree at an open place.
pub(super) fn move_to(tree: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", place, c"", flags)
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
    if is_on_proc(proc.as_fd())? && fstat(&proc)?.st_ino == PROC_ROOT_INODE {
        Ok(proc)
    } else {
        Err(Errno::NODEV)
    }
}

fn is_on_proc(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(fstatfs(fd)?.f_type == PROC_SUPER_MAGIC)
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

/// Sets kernel parameters of the container's namespaces through a proc that nobody can have
/// tampered with (CVE-2025-52881).
pub(crate) fn write_sysctls<'p>(
    sysctls: &'p [SysctlPlan],
    proc: BorrowedFd<'_>,
) -> Result<(), Failure<'p>> {
    for sysctl in sysctls {
        let file = sysctl.file.to_bytes();
        let fd = open_in_proc(proc, &sysctl.file, OFlags::WRONLY).at(Step::Sysctl, file)?;
        rustix::io::write(&fd, &sysctl.value).at(Step::Sysctl, file)?;
    }
    Ok(())
}
