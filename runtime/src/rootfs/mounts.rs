//! Mounts and kernel parameters, in the child.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, XattrFlags, chmodat, fstat, lsetxattr, readlinkat_raw,
    symlinkat,
};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, fspick, mount as old_mount, move_mount, open_tree,
    unmount,
};
use rustix::process::fchdir;

use super::by_mount::{self, Spot, set_attributes};
use super::copyup::copy_up;
use super::host::{HostPart, HostTree, clone_inside, dress, map_ids, set_propagation};
use super::refusals::{is_on_proc, open_in_proc, refuses_filesystem, refuses_mount_api};
use super::resolve::{Want, make_one, open_inside, open_parent, open_target};
use crate::error::{At as _, Failure, Step};
use crate::plan::{
    BindPlan, FilesystemPlan, FsParam, MountPlan, MountSource, OldMount, ProcTarget, Reach,
    RemountPlan, SysctlPlan,
};
use crate::sys::MountAttr;

/// Mounts of the container's own that are used again: by descriptor, which stays trustworthy
/// whatever becomes of the path.
#[derive(Default)]
pub(crate) struct Kept {
    /// The proc file system, whatever is mounted over `/proc` later.
    pub(crate) proc: Option<OwnedFd>,
    /// What is mounted on `/dev`, even where that is a symlink which somebody else could change.
    pub(crate) dev: Option<OwnedFd>,
    /// That is a tmpfs of our own, which holds nothing but what was made in it.
    new_dev: bool,
}

impl Kept {
    /// Makes the directory of a mount in a `/dev` that has none yet, rather than miss it first. What
    /// stands in the way is for the ordinary path to judge.
    fn make_in_dev(&self, mount: &MountPlan) {
        if let (Some(dev), true) = (&self.dev, self.new_dev)
            && let MountSource::Filesystem(_) = mount.source
            && let Some(name) = name_in_dev(&mount.target)
        {
            let _ = make_one(dev.as_fd(), name, Want::Directory);
        }
    }

    /// Keeps the mount that others will want; `part` keeps the one that is sealed last.
    fn keep(&mut self, mount: &MountPlan, tree: OwnedFd, part: &mut HostPart) -> Result<(), Errno> {
        let filesystem = match &mount.source {
            MountSource::Filesystem(plan) => Some(plan),
            _ => None,
        };
        let sealed_later = filesystem.is_some_and(|plan| plan.late_readonly);
        if mount.in_proc == ProcTarget::Itself {
            self.proc = Some(tree);
        } else if mount.target.as_c_str() == c"dev" {
            if sealed_later {
                part.unsealed = Some(fcntl_dupfd_cloexec(&tree, 3)?);
            }
            self.dev = Some(tree);
            self.new_dev =
                filesystem.is_some_and(|plan| plan.kind.as_c_str() == c"tmpfs" && !plan.copy_up);
        } else if sealed_later {
            part.unsealed = Some(tree);
        }
        Ok(())
    }
}

/// The one component of a target below `/dev`.
fn name_in_dev(target: &CStr) -> Option<&CStr> {
    let name = target.to_bytes_with_nul().strip_prefix(b"dev/")?;
    let single = !name.contains(&b'/');
    CStr::from_bytes_with_nul(name).ok().filter(|_| single)
}

/// Makes all mounts in order. A mount over `/` is the root for everything after it.
pub(crate) fn mount_all<'p>(
    mounts: &'p [MountPlan],
    root: &mut OwnedFd,
    parts: &mut [HostPart],
) -> Result<Kept, Failure<'p>> {
    let mut kept = Kept::default();
    for (mount, part) in mounts.iter().zip(parts) {
        kept.make_in_dev(mount);
        let Some(tree) = mount_one(mount, root.as_fd(), part)? else {
            continue;
        };
        if mount.target.is_empty() {
            *root = fcntl_dupfd_cloexec(&tree, 3).at(Step::Mount, &mount.place)?;
        }
        kept.keep(mount, tree, part).at(Step::Mount, &mount.place)?;
    }
    Ok(kept)
}

/// Makes those read-only that had to be writable while what lies below them was made.
pub(crate) fn seal<'p>(mounts: &'p [MountPlan], parts: &[HostPart]) -> Result<(), Failure<'p>> {
    let attr = MountAttr {
        set: libc::MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    for (mount, part) in mounts.iter().zip(parts) {
        if let Some(tree) = &part.unsealed {
            set_attributes(tree.as_fd(), c"", false, &attr).at(Step::Seal, &mount.place)?;
        }
    }
    Ok(())
}

/// The mount, as a descriptor; none when the entry makes none.
fn mount_one<'p>(
    mount: &'p MountPlan,
    root: BorrowedFd<'_>,
    part: &mut HostPart,
) -> Result<Option<OwnedFd>, Failure<'p>> {
    match (&mount.source, part.tree.take()) {
        (MountSource::Filesystem(plan), stand_in) => {
            mount_filesystem(mount, plan, root, (part, stand_in)).map(Some)
        }
        (MountSource::Bind(bind), Some(HostTree::Tree { fd, is_dir })) => {
            let place = open_place(mount, root, wanted(is_dir))?;
            attach_bind(mount, bind, fd, (root, &place)).map(Some)
        }
        (MountSource::Bind(bind), Some(HostTree::Known { fd, is_dir })) => {
            let place = open_place(mount, root, wanted(is_dir))?;
            let tree = bind_by_mount(mount, bind, fd.as_fd(), (root, &place));
            tree.map(Some).at(Step::Mount, &mount.place)
        }
        (MountSource::Bind(_), Some(HostTree::Link(target))) => {
            copy_symlink(&target, mount, root).at(Step::Symlink, &mount.place)?;
            Ok(None)
        }
        (MountSource::Bind(bind), None) => {
            let tree = clone_inside(mount, bind, root, part.user_namespace.as_ref());
            part.tree = Some(tree.at(Step::Mount, &mount.place)?);
            mount_one(mount, root, part)
        }
        (MountSource::Remount(plan), _) => {
            let place = open_place(mount, root, Want::File)?;
            remount(plan, &place, mount)?;
            Ok(None)
        }
    }
}

fn mount_filesystem<'p>(
    mount: &'p MountPlan,
    plan: &'p FilesystemPlan,
    root: BorrowedFd<'_>,
    (part, stand_in): (&mut HostPart, Option<HostTree>),
) -> Result<OwnedFd, Failure<'p>> {
    let mode = inherited_mode(mount, plan, root);
    let place = open_place(mount, root, Want::Directory)?;
    // What the parent made has its ids mapped.
    let (made, namespace) = match part.made.take() {
        Some(tree) => (Ok(tree), None),
        None => (
            make(mount, plan, root, &place, mode),
            part.user_namespace.as_ref(),
        ),
    };
    let attached = made.and_then(|tree| {
        prepare(mount, plan, &tree, &place, mode, namespace)?;
        attach(mount, &tree, &place)?;
        Ok(tree)
    });
    let tree = match attached {
        Err(failure) if refuses_filesystem(failure.errno) || refuses_mount_api(failure.errno) => {
            instead_of(failure, mount, plan, (root, &place, mode), stand_in)?
        }
        attached => attached?,
    };
    for &(kind, recursive) in &mount.propagation {
        set_propagation(tree.as_fd(), kind, recursive).at(Step::Mount, &mount.place)?;
    }
    Ok(tree)
}

/// What there is to do when a file system was refused: the older call, for it may be the newer ones
/// that were, then the host's tree.
fn instead_of<'p>(
    failure: Failure<'p>,
    mount: &'p MountPlan,
    plan: &'p FilesystemPlan,
    (root, place, mode): (BorrowedFd<'_>, &OwnedFd, Option<Mode>),
    stand_in: Option<HostTree>,
) -> Result<OwnedFd, Failure<'p>> {
    if refuses_mount_api(failure.errno)
        && let Ok(tree) = spot(mount, root, place).filesystem(plan, mode)
    {
        prepare(mount, plan, &tree, place, mode, None)?;
        return Ok(tree);
    }
    match (stand_in, &plan.instead) {
        (Some(HostTree::Tree { fd, .. }), Some(bind)) => {
            attach_bind(mount, bind, fd, (root, place))
        }
        (Some(HostTree::Known { fd, .. }), Some(bind)) => {
            bind_by_mount(mount, bind, fd.as_fd(), (root, place)).map_err(|_| failure)
        }
        _ => Err(failure),
    }
}

/// Attaches the clone of a bind, or binds its source where that is refused.
fn attach_bind<'p>(
    mount: &'p MountPlan,
    bind: &BindPlan,
    tree: OwnedFd,
    (root, place): (BorrowedFd<'_>, &OwnedFd),
) -> Result<OwnedFd, Failure<'p>> {
    match attach(mount, &tree, place) {
        Err(failure) if refuses_mount_api(failure.errno) => {
            bind_by_mount(mount, bind, tree.as_fd(), (root, place)).map_err(|_| failure)
        }
        attached => attached.map(|()| tree),
    }
}

/// Binds the source of a mount, which has to be what `known` is, and gives it its options.
fn bind_by_mount(
    mount: &MountPlan,
    bind: &BindPlan,
    known: BorrowedFd<'_>,
    (root, place): (BorrowedFd<'_>, &OwnedFd),
) -> Result<OwnedFd, Errno> {
    let bound = spot(mount, root, place).bind_source(bind, root, known)?;
    match dress(bound, mount, bind, None) {
        Ok(HostTree::Tree { fd, .. }) => Ok(fd),
        Ok(_) => Err(Errno::BADF),
        Err((_, errno)) => Err(errno),
    }
}

fn spot<'a>(mount: &'a MountPlan, base: BorrowedFd<'a>, place: &'a OwnedFd) -> Spot<'a> {
    Spot {
        base,
        path: &mount.target,
        place: place.as_fd(),
        nofollow: mount.reach == Reach::Existing,
    }
}

fn wanted(is_dir: bool) -> Want {
    if is_dir { Want::Directory } else { Want::File }
}

/// Opens the target; should a symlink have led into a proc file system, it is refused.
fn open_place<'p>(
    mount: &'p MountPlan,
    root: BorrowedFd<'_>,
    want: Want,
) -> Result<OwnedFd, Failure<'p>> {
    let outside = mount.in_proc == ProcTarget::Outside;
    let opened = match mount.reach {
        Reach::Follow if outside => match open_target(root, &mount.target, want, true) {
            Err(Errno::LOOP) => open_target(root, &mount.target, want, false),
            // No symlink led here.
            opened => return opened.at(Step::MountTarget, &mount.place),
        },
        Reach::Follow => open_target(root, &mount.target, want, false),
        Reach::Plain => open_target(root, &mount.target, want, true),
        Reach::Existing => open_inside(root, &mount.target, OFlags::PATH | OFlags::NOFOLLOW, false),
    };
    let place = match (opened, mount.reach) {
        (Err(errno @ (Errno::LOOP | Errno::NOTDIR)), Reach::Plain) => {
            return Err(errno).at(Step::PlainTarget, &mount.place);
        }
        (opened, _) => opened.at(Step::MountTarget, &mount.place)?,
    };
    // A plain target was reached without a symlink.
    if outside
        && mount.reach != Reach::Plain
        && is_on_proc(place.as_fd()).at(Step::MountTarget, &mount.place)?
    {
        return Err(Errno::PERM).at(Step::InsideProc, &mount.place);
    }
    Ok(place)
}

/// The mode of the directory that a tmpfs is to take over; one that is made for it has none to give.
fn inherited_mode(mount: &MountPlan, plan: &FilesystemPlan, root: BorrowedFd<'_>) -> Option<Mode> {
    if !plan.inherit_mode {
        return None;
    }
    let directory = open_inside(root, &mount.target, OFlags::PATH | OFlags::DIRECTORY, false);
    let mode = directory
        .and_then(|directory| fstat(&directory))
        .ok()?
        .st_mode;
    Some(Mode::from_raw_mode(mode & 0o7777))
}

/// A new file system that is mounted nowhere yet.
fn make<'p>(
    mount: &'p MountPlan,
    plan: &'p FilesystemPlan,
    root: BorrowedFd<'_>,
    place: &OwnedFd,
    mode: Option<Mode>,
) -> Result<OwnedFd, Failure<'p>> {
    if let Some(old) = &plan.old_call {
        return make_by_old_call(mount, plan, old, (root, place))
            .at(Step::Filesystem, &mount.place);
    }
    new_filesystem(plan, &mount.place, mode)
}

/// A new file system by `fsconfig`; `place` names the mount for errors.
pub(super) fn new_filesystem<'p>(
    plan: &'p FilesystemPlan,
    place: &'p [u8],
    mode: Option<Mode>,
) -> Result<OwnedFd, Failure<'p>> {
    let context = fsopen(&*plan.kind, FsOpenFlags::FSOPEN_CLOEXEC).at(Step::Filesystem, place)?;
    set_params(context.as_fd(), &plan.params)?;
    if let Some(mode) = mode {
        let digits = octal(mode);
        let digits = CStr::from_bytes_until_nul(&digits).unwrap_or(c"0755");
        fsconfig_set_string(context.as_fd(), c"mode", digits)
            .at(Step::FilesystemOption, b"mode")?;
    }
    fsconfig_create(context.as_fd()).at(Step::Filesystem, place)?;
    let attrs = MountAttrFlags::from_bits_retain(plan.attrs as u32);
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attrs).at(Step::Filesystem, place)
}

/// A mode in four digits, with the zero byte that the kernel wants.
pub(super) fn octal(mode: Mode) -> [u8; 5] {
    let digit = |shift: u32| b'0' + (mode.as_raw_mode() >> shift & 7) as u8;
    [digit(9), digit(6), digit(3), digit(0), 0]
}

fn set_params<'p>(context: BorrowedFd<'_>, params: &'p [FsParam]) -> Result<(), Failure<'p>> {
    for FsParam { key, value, words } in params {
        match value {
            Some(value) => fsconfig_set_string(context, &**key, &**value),
            None => fsconfig_set_flag(context, &**key),
        }
        .at(Step::FilesystemOption, words)?;
    }
    Ok(())
}

/// The older call can only mount: so the file system is mounted at its place, by way of the
/// working directory rather than a path, cloned, and unmounted again.
fn make_by_old_call(
    mount: &MountPlan,
    plan: &FilesystemPlan,
    old: &OldMount,
    (root, place): (BorrowedFd<'_>, &OwnedFd),
) -> Result<OwnedFd, Errno> {
    fchdir(place)?;
    let flags = MountFlags::from_bits_retain(old.flags);
    old_mount(&*old.source, c".", &*plan.kind, flags, Some(&*old.data))?;
    let mounted = open_inside(root, &mount.target, OFlags::PATH | OFlags::DIRECTORY, false)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&mounted, c"", flags);
    fchdir(&mounted)?;
    unmount(c".", UnmountFlags::DETACH)?;
    tree
}

/// What a new file system gets while it is still the child's alone.
fn prepare<'p>(
    mount: &'p MountPlan,
    plan: &'p FilesystemPlan,
    tree: &OwnedFd,
    place: &OwnedFd,
    mode: Option<Mode>,
    user_namespace: Option<&OwnedFd>,
) -> Result<(), Failure<'p>> {
    if let Some(mode) = mode {
        // What the parent has made does not have it yet.
        chmodat(tree, c".", mode, AtFlags::empty()).at(Step::Mount, &mount.place)?;
    }
    if plan.copy_up {
        copy_up(place.as_fd(), tree.as_fd()).at(Step::CopyUp, &mount.place)?;
    }
    if let Some(label) = &plan.root_label {
        label_root(tree, label.to_bytes()).at(Step::LabelMount, &mount.place)?;
    }
    if let (Some(idmap), Some(namespace)) = (&plan.idmap, user_namespace) {
        map_ids(tree.as_fd(), idmap.recursive, namespace).at(Step::MapIds, &mount.place)?;
    }
    Ok(())
}

/// Labels the root directory by way of the working directory: a descriptor of a mere path takes
/// no attributes.
fn label_root(tree: &OwnedFd, label: &[u8]) -> Result<(), Errno> {
    fchdir(tree)?;
    match lsetxattr(c".", c"security.selinux", label, XattrFlags::empty()) {
        // A kernel without SELinux has nothing that could read it.
        Err(Errno::NOTSUP) => Ok(()),
        result => result,
    }
}

fn attach<'p>(mount: &'p MountPlan, tree: &OwnedFd, place: &OwnedFd) -> Result<(), Failure<'p>> {
    move_to(tree.as_fd(), place.as_fd())
        .map_err(|errno| match (kind_of(tree), kind_of(place)) {
            // What mount(2) says, and clients look for.
            (Ok(source), Ok(target)) if source != target => Errno::NOTDIR,
            _ => errno,
        })
        .at(Step::Mount, &mount.place)
}

/// Whether it is a directory.
fn kind_of(fd: &OwnedFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

/// Attaches a detached tree at an open place.
pub(super) fn move_to(tree: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", place, c"", flags)
}

/// Makes a symlink; one with the same target may be there already.
fn copy_symlink(target: &CStr, mount: &MountPlan, root: BorrowedFd<'_>) -> Result<(), Errno> {
    let (parent, name) = open_parent(root, &mount.target)?;
    match symlinkat(target, &parent, name) {
        Err(Errno::EXIST) => {
            let mut present = [0; 4096];
            let length =
                readlinkat_raw(&parent, name, &mut present[..]).map_err(|_| Errno::EXIST)?;
            if &present[..length] == target.to_bytes() {
                Ok(())
            } else {
                Err(Errno::EXIST)
            }
        }
        result => result,
    }
}

fn remount<'p>(
    plan: &'p RemountPlan,
    place: &OwnedFd,
    mount: &'p MountPlan,
) -> Result<(), Failure<'p>> {
    if let Some(params) = &plan.reconfigure {
        match reconfigure(place, params, mount) {
            Err(failure) if refuses_mount_api(failure.errno) => {
                by_mount::reconfigure(place.as_fd(), params, &plan.attr).map_err(|_| failure)?;
            }
            done => done?,
        }
    }
    set_attributes(place.as_fd(), c"", false, &plan.attr).at(Step::Remount, &mount.place)?;
    for &(kind, recursive) in &mount.propagation {
        set_propagation(place.as_fd(), kind, recursive).at(Step::Remount, &mount.place)?;
    }
    Ok(())
}

fn reconfigure<'p>(
    place: &OwnedFd,
    params: &'p [FsParam],
    mount: &'p MountPlan,
) -> Result<(), Failure<'p>> {
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let context = fspick(place, c"", flags).at(Step::Remount, &mount.place)?;
    set_params(context.as_fd(), params)?;
    fsconfig_reconfigure(context.as_fd()).at(Step::Remount, &mount.place)
}

/// Takes away the mount at `target`: its top one, and whatever is mounted below it.
pub(crate) fn unmount_at(root: BorrowedFd<'_>, target: &CStr) -> Result<(), Errno> {
    if target.is_empty() {
        return Err(Errno::BUSY);
    }
    let place = open_inside(root, target, OFlags::PATH | OFlags::NOFOLLOW, false)?;
    if kind_of(&place)? {
        fchdir(&place)?;
        return unmount(c".", UnmountFlags::DETACH);
    }
    // A file cannot be a working directory; its name is looked up in one.
    let (parent, name) = open_parent(root, target)?;
    fchdir(&parent)?;
    unmount(name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_directly_in_dev_is_made_ahead() {
        assert_eq!(name_in_dev(c"dev/pts"), Some(c"pts"));
        for target in [c"dev", c"device/x", c"dev/net/tun", c"sys/dev"] {
            assert_eq!(name_in_dev(target), None, "{target:?}");
        }
    }
}
