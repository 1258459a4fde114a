//! The parent's part: cloning trees of the host before the child exists.
//!
//! Cloned trees are detached mounts; the child attaches them inside. The parent makes them because
//! only it may look up paths of the host with the host's privileges, user namespace or not.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, StatVfsMountFlags, fstat, fstatvfs, major, minor, open,
    readlinkat, statat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::by_mount::set_attributes;
use super::mounts::new_filesystem;
use super::namespace::{HostPaths, RootNamespace};
use super::refusals::{is_whole_proc, node_of_host, refuses_mount_api};
use super::resolve::open_inside;
use crate::error::{At as _, Error, Failure, Result, Step, errno_words};
use crate::plan::{
    BindPlan, DevicePlan, FilesystemPlan, IdMaps, IdmapSource, MountIdmap, MountPlan, MountSource,
    RootChange, RootfsPlan, SourceSymlink,
};
use crate::sys::{MountAttr, mount_set_attr};

/// Everything that a container takes from the host.
#[derive(Debug)]
pub(crate) struct HostTrees {
    pub(crate) root: RootTree,
    /// One for each mount of the plan.
    pub(crate) mounts: Vec<HostPart>,
    /// One for each device, when devices are bound: clones or, as with the root, themselves.
    pub(crate) devices: Vec<OwnedFd>,
}

/// The root file system.
#[derive(Debug)]
pub(crate) enum RootTree {
    /// A detached clone; where the host refuses those, the directory itself.
    Clone(OwnedFd),
    /// A clone that is the root of a mount namespace already.
    Namespace(RootNamespace),
}

/// What one mount takes from the host, and what the child keeps of it.
#[derive(Debug, Default)]
pub(crate) struct HostPart {
    pub(crate) tree: Option<HostTree>,
    /// A new file system that only the parent can map the ids of.
    pub(crate) made: Option<OwnedFd>,
    /// User namespace whose maps a new file system is seen through.
    pub(crate) user_namespace: Option<OwnedFd>,
    /// The mount, once the child has made it, if it is to become read-only at the end.
    pub(crate) unsealed: Option<OwnedFd>,
}

/// A source on the host.
#[derive(Debug)]
pub(crate) enum HostTree {
    /// A detached clone.
    Tree { fd: OwnedFd, is_dir: bool },
    /// The source itself: the host refuses clones, and the child is to bind just this.
    Known { fd: OwnedFd, is_dir: bool },
    /// A symlink that is made again inside; its target.
    Link(CString),
}

/// What cannot cover `/proc`.
const NOT_PROC: &str = "cannot be mounted because it is not of type proc";

type Failed<T> = std::result::Result<T, (&'static str, Errno)>;

impl HostTrees {
    /// Clones all of them; `user_namespace` makes the user namespace of an id-mapped mount.
    pub(crate) fn open(
        plan: &RootfsPlan,
        change: RootChange,
        user_namespace: impl Fn(&IdMaps) -> Result<OwnedFd>,
    ) -> Result<Self> {
        let root = RootTree::open(&plan.path, change)?;
        let mut devices = Vec::new();
        if plan.bind_devices && plan.own_dev {
            for device in plan.devices.iter().filter(|it| it.needs_privilege()) {
                let path = device.host.to_string_lossy();
                let node = open_node(device);
                devices
                    .push(node.map_err(|errno| Error::os(format!("bind device {path}"))(errno))?);
            }
        }
        Ok(Self {
            root,
            mounts: open_parts(&plan.mounts, user_namespace)?,
            devices,
        })
    }
}

impl RootTree {
    /// A mount namespace where the plan asks for it and the kernel has it, or else a clone.
    fn open(path: &CStr, change: RootChange) -> Result<Self> {
        if change != RootChange::Enter {
            return open_root(path).map(Self::Clone);
        }
        match RootNamespace::open(path) {
            Ok(namespace) => Ok(Self::Namespace(namespace)),
            Err(refusal) => {
                let root = open_root(path)?;
                RootNamespace::remember(refusal);
                Ok(Self::Clone(root))
            }
        }
    }

    /// The child's part: the root directory, in the mount namespace where everything is made.
    pub(crate) fn enter(
        &mut self,
    ) -> std::result::Result<(&mut OwnedFd, HostPaths<'_>), Failure<'static>> {
        match self {
            Self::Clone(root) => Ok((root, HostPaths::Here)),
            Self::Namespace(namespace) => namespace.enter(),
        }
    }
}

fn open_root(path: &CStr) -> Result<OwnedFd> {
    let (root, is_clone) = clone_or_know(path, true, true).map_err(|e| bad_rootfs(path, e))?;
    if !is_directory(root.as_fd()).map_err(|e| bad_rootfs(path, e))? {
        return Err(bad_rootfs(path, Errno::NOTDIR));
    }
    if is_clone {
        match isolate_root(root.as_fd()) {
            Err(errno) if refuses_changes(errno) => {
                return know(path, true).map_err(|e| bad_rootfs(path, e));
            }
            done => done.map_err(Error::os("set propagation of rootfs"))?,
        }
    }
    Ok(root)
}

/// The host's node at the path of a device; the container may call it otherwise than the host does.
fn open_node(device: &DevicePlan) -> std::result::Result<OwnedFd, Errno> {
    match node_or_know(&device.host) {
        Err(Errno::NOENT) => {
            let path = path_of_number(device).ok_or(Errno::NOENT)?;
            let node = node_or_know(&path)?;
            let found = fstat(&node)?;
            let fits = FileType::from_raw_mode(found.st_mode) == device.kind
                && found.st_rdev == device.number;
            if fits { Ok(node) } else { Err(Errno::NOENT) }
        }
        node => node,
    }
}

/// Where the host has the node of a device, as the kernel names it.
fn path_of_number(device: &DevicePlan) -> Option<CString> {
    let kind = match device.kind {
        FileType::BlockDevice => "block",
        _ => "char",
    };
    let (major, minor) = (major(device.number), minor(device.number));
    let event = std::fs::read_to_string(format!("/sys/dev/{kind}/{major}:{minor}/uevent")).ok()?;
    let name = event
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))?;
    CString::new(format!("/dev/{name}")).ok()
}

/// Opens what each mount takes from the host.
pub(crate) fn open_parts(
    mounts: &[MountPlan],
    user_namespace: impl Fn(&IdMaps) -> Result<OwnedFd>,
) -> Result<Vec<HostPart>> {
    let mut parts = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let idmap = match &mount.source {
            MountSource::Bind(bind) => &bind.idmap,
            MountSource::Filesystem(fs) => &fs.idmap,
            MountSource::Remount(_) => &None,
        };
        let user_namespace = match idmap {
            Some(idmap) => Some(open_user_namespace(idmap, &user_namespace)?),
            None => None,
        };
        let mut part = HostPart::default();
        match &mount.source {
            MountSource::Bind(bind) if bind.inside.is_some() => {
                part.user_namespace = user_namespace;
            }
            MountSource::Bind(bind) => {
                let tree = clone_bind(mount, bind, user_namespace.as_ref());
                part.tree = Some(tree.map_err(|failed| bad_source(mount, bind, failed))?);
            }
            MountSource::Filesystem(fs) => {
                part.made = make_mapped(mount, fs, user_namespace.as_ref())?;
                part.user_namespace = user_namespace;
                part.tree = stand_in(mount, fs);
            }
            MountSource::Remount(_) => {}
        }
        parts.push(part);
    }
    Ok(parts)
}

/// The tree in place of a file system that may be refused; a host without it offers none. What the
/// container mounts inside it does not show on the host.
fn stand_in(mount: &MountPlan, fs: &FilesystemPlan) -> Option<HostTree> {
    let tree = clone_bind(mount, fs.instead.as_ref()?, None).ok()?;
    if let HostTree::Tree { fd, .. } = &tree {
        set_propagation(fd.as_fd(), libc::MS_SLAVE, true).ok()?;
    }
    Some(tree)
}

/// The root of a user namespace has no say over another one, whose maps its file system is to be
/// seen through: the parent, which has, makes the file system.
fn make_mapped(
    mount: &MountPlan,
    fs: &FilesystemPlan,
    namespace: Option<&OwnedFd>,
) -> Result<Option<OwnedFd>> {
    let (true, Some(idmap), Some(namespace)) = (fs.made_by_parent, &fs.idmap, namespace) else {
        return Ok(None);
    };
    let made = new_filesystem(fs, &mount.place, None).and_then(|tree| {
        map_ids(tree.as_fd(), idmap.recursive, namespace).at(Step::MapIds, &mount.place)?;
        Ok(tree)
    });
    made.map(Some)
        .map_err(|failure| Error::Init(failure.into()))
}

fn open_user_namespace(
    idmap: &MountIdmap,
    make: impl Fn(&IdMaps) -> Result<OwnedFd>,
) -> Result<OwnedFd> {
    match &idmap.from {
        IdmapSource::Maps(maps) => make(maps),
        IdmapSource::Namespace(path) => {
            open(&**path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(Error::file(
                "open namespace",
                path.to_string_lossy().into_owned(),
            ))
        }
    }
}

fn clone_bind(
    mount: &MountPlan,
    bind: &BindPlan,
    user_namespace: Option<&OwnedFd>,
) -> Failed<HostTree> {
    if bind.symlink == SourceSymlink::Copy {
        let stat = statat(CWD, &*bind.source, AtFlags::SYMLINK_NOFOLLOW).map_err(at("stat"))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let target = readlinkat(CWD, &*bind.source, Vec::new()).map_err(at("readlink"))?;
            return Ok(HostTree::Link(target));
        }
    }
    let follow = bind.symlink != SourceSymlink::Bind;
    match clone_or_know(&bind.source, bind.recursive, follow).map_err(at("stat"))? {
        (_, false) if bind.idmap.is_some() => Err(("clone", Errno::PERM)),
        (fd, false) => known(fd).map_err(at("stat")),
        (fd, true) => match dress(fd, mount, bind, user_namespace) {
            Err((_, errno)) if bind.idmap.is_none() && refuses_changes(errno) => {
                know(&bind.source, follow)
                    .and_then(known)
                    .map_err(at("stat"))
            }
            dressed => dressed,
        },
    }
}

/// The child's part: clones a source that an earlier mount has brought into the root.
pub(super) fn clone_inside(
    mount: &MountPlan,
    bind: &BindPlan,
    root: BorrowedFd<'_>,
    user_namespace: Option<&OwnedFd>,
) -> std::result::Result<HostTree, Errno> {
    let path = bind.inside.as_deref().ok_or(Errno::BADF)?;
    if bind.idmap.is_some() && user_namespace.is_none() {
        return Err(Errno::PERM);
    }
    let nofollow = match bind.symlink {
        SourceSymlink::Bind => OFlags::NOFOLLOW,
        SourceSymlink::Follow | SourceSymlink::Copy => OFlags::empty(),
    };
    let source = open_inside(root, path, OFlags::PATH | nofollow, false)?;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if bind.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    match open_tree(&source, c"", flags) {
        Err(errno) if refuses_mount_api(errno) => known(source),
        tree => match dress(tree?, mount, bind, user_namespace) {
            Err((_, errno)) if bind.idmap.is_none() && refuses_changes(errno) => known(source),
            dressed => dressed.map_err(|(_, errno)| errno),
        },
    }
}

fn known(fd: OwnedFd) -> std::result::Result<HostTree, Errno> {
    let is_dir = is_directory(fd.as_fd())?;
    Ok(HostTree::Known { fd, is_dir })
}

/// Checks a new clone, or what was mounted in its place, and gives it the options of its mount.
pub(super) fn dress(
    fd: OwnedFd,
    mount: &MountPlan,
    bind: &BindPlan,
    user_namespace: Option<&OwnedFd>,
) -> Failed<HostTree> {
    if bind.must_be_proc && !is_whole_proc(fd.as_fd()).map_err(at("statfs"))? {
        return Err((NOT_PROC, Errno::PERM));
    }
    if let (Some(idmap), Some(namespace)) = (&bind.idmap, user_namespace) {
        map_ids(fd.as_fd(), idmap.recursive, namespace).map_err(at("map ids of"))?;
    }
    if !bind.deep.is_noop() {
        set_attributes(fd.as_fd(), c"", true, &bind.deep).map_err(at("set options of"))?;
    }
    set_top(fd.as_fd(), bind).map_err(at("set options of"))?;
    for &(kind, recursive) in &mount.propagation {
        set_propagation(fd.as_fd(), kind, recursive).map_err(at("set propagation of"))?;
    }
    let is_dir = is_directory(fd.as_fd()).map_err(at("stat"))?;
    Ok(HostTree::Tree { fd, is_dir })
}

/// Sets the options of a bind; to a user namespace the source's locked ones go along.
fn set_top(tree: BorrowedFd<'_>, bind: &BindPlan) -> std::result::Result<(), Errno> {
    let exact = bind.top.exact();
    if exact.is_noop() {
        return Ok(());
    }
    let done = if bind.top.locked {
        Err(Errno::PERM)
    } else {
        set_attributes(tree, c"", false, &exact)
    };
    // The kernel says the same when this runtime is in a user namespace itself.
    match done {
        Err(Errno::PERM) => {
            let beside = bind.top.beside_locked(attributes_of(tree)?);
            set_attributes(tree, c"", false, &beside.ok_or(Errno::PERM)?)
        }
        done => done,
    }
}

/// `MOUNT_ATTR_*` of a mount, from what statvfs tells.
pub(super) fn attributes_of(tree: BorrowedFd<'_>) -> std::result::Result<u64, Errno> {
    const FLAGS: [(StatVfsMountFlags, u64); 5] = [
        (StatVfsMountFlags::RDONLY, libc::MOUNT_ATTR_RDONLY),
        (StatVfsMountFlags::NOSUID, libc::MOUNT_ATTR_NOSUID),
        (StatVfsMountFlags::NODEV, libc::MOUNT_ATTR_NODEV),
        (StatVfsMountFlags::NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (StatVfsMountFlags::NOATIME, libc::MOUNT_ATTR_NOATIME),
    ];
    let flags = fstatvfs(tree)?.f_flag;
    let mut attributes = FLAGS
        .iter()
        .filter(|(flag, _)| flags.contains(*flag))
        .fold(0, |attributes, (_, attribute)| attributes | attribute);
    if !flags.intersects(StatVfsMountFlags::NOATIME | StatVfsMountFlags::RELATIME) {
        attributes |= libc::MOUNT_ATTR_STRICTATIME;
    }
    Ok(attributes)
}

/// Has a detached tree seen through the maps of a user namespace.
pub(super) fn map_ids(
    tree: BorrowedFd<'_>,
    recursive: bool,
    namespace: &OwnedFd,
) -> std::result::Result<(), Errno> {
    let attr = MountAttr {
        set: libc::MOUNT_ATTR_IDMAP,
        userns_fd: namespace.as_raw_fd() as u64,
        ..MountAttr::default()
    };
    mount_set_attr(tree, c"", recursive, &attr)
}

/// A clone of the tree at `path` with the ids of a user namespace.
pub(crate) fn mapped_clone(
    path: &CStr,
    recursive: bool,
    user_namespace: &OwnedFd,
) -> std::result::Result<OwnedFd, Errno> {
    let tree = clone_tree(path, recursive, true)?;
    map_ids(tree.as_fd(), recursive, user_namespace)?;
    Ok(tree)
}

fn clone_tree(path: &CStr, recursive: bool, follow: bool) -> std::result::Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if !follow {
        flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    }
    open_tree(CWD, path, flags)
}

/// A clone, or, where clones are refused, what is at the path itself; tells whether it is a clone.
fn clone_or_know(
    path: &CStr,
    recursive: bool,
    follow: bool,
) -> std::result::Result<(OwnedFd, bool), Errno> {
    match clone_tree(path, recursive, follow) {
        Err(errno) if refuses_mount_api(errno) => {
            // What cannot be opened was refused for what it is.
            let itself = know(path, follow).map_err(|_| errno)?;
            Ok((itself, false))
        }
        tree => Ok((tree?, true)),
    }
}

/// The same of a device's node, whose clone is private.
fn node_or_know(path: &CStr) -> std::result::Result<OwnedFd, Errno> {
    match node_of_host(path, OpenTreeFlags::empty()) {
        Err(errno) if refuses_mount_api(errno) => know(path, true).map_err(|_| errno),
        node => node,
    }
}

fn know(path: &CStr, follow: bool) -> std::result::Result<OwnedFd, Errno> {
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    if !follow {
        flags |= OFlags::NOFOLLOW;
    }
    open(path, flags, Mode::empty())
}

/// Whether a change of a clone failed because no clone may be changed: nor may anything else, then.
fn refuses_changes(errno: Errno) -> bool {
    refuses_mount_api(errno) && mount_set_attr(CWD, c"/", false, &MountAttr::default()).is_err()
}

/// Nothing that is mounted inside the root shows on the host; what the host mounts below a mount
/// of its own in there still arrives. The root's own propagation is set after the pivot.
pub(super) fn isolate_root(root: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    set_propagation(root, libc::MS_SLAVE, true)?;
    set_propagation(root, libc::MS_PRIVATE, false)
}

/// Changes the propagation of a mount, or of its whole tree.
pub(super) fn set_propagation(
    tree: BorrowedFd<'_>,
    kind: u64,
    recursive: bool,
) -> std::result::Result<(), Errno> {
    let attr = MountAttr {
        propagation: kind,
        ..MountAttr::default()
    };
    set_attributes(tree, c"", recursive, &attr)
}

fn is_directory(fd: BorrowedFd<'_>) -> std::result::Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

/// Adapter for `map_err`: what was attempted on the source.
fn at(op: &'static str) -> impl FnOnce(Errno) -> (&'static str, Errno) {
    move |errno| (op, errno)
}

fn bad_source(mount: &MountPlan, bind: &BindPlan, (op, errno): (&str, Errno)) -> Error {
    let place = String::from_utf8_lossy(&mount.place);
    if op == NOT_PROC {
        return Error::InvalidArgument(format!("error mounting {place}: {op}"));
    }
    let source = bind.source.to_string_lossy();
    let reason = errno_words(errno.raw_os_error());
    Error::InvalidArgument(format!("error mounting {place}: {op} {source}: {reason}"))
}

fn bad_rootfs(path: &CStr, errno: Errno) -> Error {
    let path = path.to_string_lossy();
    let reason = errno_words(errno.raw_os_error());
    Error::InvalidArgument(format!("invalid rootfs: stat {path}: {reason}"))
}
