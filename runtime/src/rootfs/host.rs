//! The parent's part: cloning trees of the host before the child exists.
//!
//! Cloned trees are detached mounts; the child attaches them inside. The parent makes them because
//! only it may look up paths of the host with the host's privileges, user namespace or not.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, fstat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{Error, Result, errno_words};
use crate::plan::{BindPlan, IdMaps, MountPlan, MountSource, RootfsPlan};
use crate::sys::{MountAttr, mount_set_attr};

/// Detached clones of everything that a container takes from the host.
#[derive(Debug)]
pub(crate) struct HostTrees {
    /// The root file system.
    pub(crate) root: OwnedFd,
    /// One for each mount of the plan; none where it is a file system of its own.
    pub(crate) binds: Vec<Option<HostTree>>,
    /// One for each device, when devices are bound.
    pub(crate) devices: Vec<OwnedFd>,
}

/// A detached tree.
#[derive(Debug)]
pub(crate) struct HostTree {
    pub(crate) fd: OwnedFd,
    pub(crate) is_dir: bool,
}

impl HostTrees {
    /// Clones all of them; `user_namespace` makes the user namespace of an id-mapped mount.
    pub(crate) fn open(
        plan: &RootfsPlan,
        user_namespace: impl Fn(&IdMaps) -> Result<OwnedFd>,
    ) -> Result<Self> {
        let root = clone_tree(&plan.path, true).map_err(|errno| bad_rootfs(&plan.path, errno))?;
        if !is_directory(root.as_fd())? {
            return Err(bad_rootfs(&plan.path, Errno::NOTDIR));
        }
        // A shared root cannot be pivoted to; it becomes shared afterwards.
        let before_pivot = match plan.propagation {
            (libc::MS_SHARED, _) => (libc::MS_SLAVE, true),
            other => other,
        };
        set_propagation(root.as_fd(), before_pivot)
            .map_err(Error::os("set propagation of rootfs"))?;
        let mut binds = Vec::with_capacity(plan.mounts.len());
        for mount in &plan.mounts {
            binds.push(match &mount.source {
                MountSource::Bind(bind) => Some(clone_bind(mount, bind, &user_namespace)?),
                MountSource::Filesystem(_) => None,
            });
        }
        let mut devices = Vec::new();
        if plan.bind_devices && plan.own_dev {
            for device in &plan.devices {
                let path = device.host.to_string_lossy();
                let tree = clone_tree(&device.host, false)
                    .map_err(|errno| Error::os(format!("bind device {path}"))(errno))?;
                devices.push(tree);
            }
        }
        Ok(Self {
            root,
            binds,
            devices,
        })
    }
}

fn clone_bind(
    mount: &MountPlan,
    bind: &BindPlan,
    user_namespace: &impl Fn(&IdMaps) -> Result<OwnedFd>,
) -> Result<HostTree> {
    let failed = |op: &str, errno: Errno| {
        let source = bind.source.to_string_lossy();
        let target = mount.target.to_string_lossy();
        let reason = errno_words(errno.raw_os_error());
        Error::InvalidArgument(format!(
            "error mounting {source:?} to rootfs at \"/{target}\": {op} {source}: {reason}"
        ))
    };
    let fd = clone_tree(&bind.source, bind.recursive).map_err(|errno| failed("stat", errno))?;
    let mut top = bind.top;
    let mut deep = bind.deep;
    match mount.propagation {
        Some((kind, true)) => deep.propagation = kind,
        Some((kind, false)) => top.propagation = kind,
        None => {}
    }
    if let Some(idmap) = &bind.idmap {
        let namespace = user_namespace(&idmap.maps)?;
        let attr = MountAttr {
            set: libc::MOUNT_ATTR_IDMAP,
            userns_fd: namespace.as_raw_fd() as u64,
            ..MountAttr::default()
        };
        mount_set_attr(fd.as_fd(), c"", idmap.recursive, &attr)
            .map_err(|errno| failed("map ids of", errno))?;
    }
    for (attr, recursive) in [(deep, true), (top, false)] {
        if !attr.is_noop() {
            mount_set_attr(fd.as_fd(), c"", recursive, &attr)
                .map_err(|errno| failed("set options of", errno))?;
        }
    }
    let is_dir = is_directory(fd.as_fd())?;
    Ok(HostTree { fd, is_dir })
}

fn clone_tree(path: &CStr, recursive: bool) -> std::result::Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags)
}

fn set_propagation(
    tree: BorrowedFd<'_>,
    (kind, recursive): (u64, bool),
) -> std::result::Result<(), Errno> {
    let attr = MountAttr {
        propagation: kind,
        ..MountAttr::default()
    };
    mount_set_attr(tree, c"", recursive, &attr)
}

fn is_directory(fd: BorrowedFd<'_>) -> Result<bool> {
    let stat = fstat(fd).map_err(Error::os("fstat"))?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn bad_rootfs(path: &CStr, errno: Errno) -> Error {
    let path = path.to_string_lossy();
    let reason = errno_words(errno.raw_os_error());
    Error::InvalidArgument(format!("invalid rootfs: stat {path}: {reason}"))
}
