//! Nodes and links of `/dev`, in the child.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, mknodat, open, statat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::by_mount::{Spot, is_same};
use super::mounts::move_to;
use super::namespace::HostPaths;
use super::refusals::{refuses_mount_api, refuses_nodes};
use super::resolve::{Want, open_parent, open_target};
use crate::error::{At as _, Failure, Step};
use crate::plan::{DevicePlan, RootfsPlan};

/// Links that every container has (runtime-spec, "Default Devices" and "/dev symbolic links").
const LINKS: [(&CStr, &CStr); 4] = [
    (c"/proc/self/fd", c"fd"),
    (c"/proc/self/fd/0", c"stdin"),
    (c"/proc/self/fd/1", c"stdout"),
    (c"/proc/self/fd/2", c"stderr"),
];

/// Fills a `/dev` that belongs to the container; the caller has set the umask to 0.
///
/// `dev` is what was mounted there. Without it `/dev` is a directory of the image, and must be a
/// plain one: a symlink would have nodes made and names removed elsewhere (CVE-2026-41579).
pub(crate) fn fill_dev<'p>(
    plan: &'p RootfsPlan,
    (root, dev): (BorrowedFd<'_>, Option<&OwnedFd>),
    bound: &[OwnedFd],
    host: HostPaths<'_>,
) -> Result<(), Failure<'p>> {
    let opened;
    let dev = if let Some(dev) = dev {
        dev.as_fd()
    } else {
        opened = open_target(root, c"dev", Want::Directory, true).at(Step::Device, b"/dev")?;
        opened.as_fd()
    };
    let mut bound = bound.iter();
    for device in &plan.devices {
        let (base, path) = place_of(device, root, dev);
        let node = if device.needs_privilege() {
            bound.next()
        } else {
            None
        };
        let made = match node {
            Some(tree) => bind_node(device, (base, path), Some(tree), host),
            None => match make_node(device, base, path) {
                Err(errno) if refuses_nodes(errno) => bind_node(device, (base, path), None, host),
                made => made,
            },
        };
        made.at(Step::Device, device.host.to_bytes())?;
    }
    for (target, name) in LINKS {
        link(target, dev, name)?;
    }
    link_ptmx(dev).at(Step::Device, b"/dev/ptmx")?;
    if statat(root, c"proc/kcore", AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        link(c"/proc/kcore", dev, c"core")?;
    }
    Ok(())
}

/// pts/ptmx of the container's own devpts, never a node of the host's.
fn link_ptmx(dev: BorrowedFd<'_>) -> Result<(), Errno> {
    let link = || symlinkat(c"pts/ptmx", dev, c"ptmx");
    match link() {
        Err(Errno::EXIST) => {
            unlinkat(dev, c"ptmx", AtFlags::empty())?;
            link()
        }
        made => made,
    }
}

fn link(target: &CStr, dev: BorrowedFd<'_>, name: &'static CStr) -> Result<(), Failure<'static>> {
    match symlinkat(target, dev, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).at(Step::Device, name.to_bytes()),
    }
}

/// Where the node goes: below `/dev` itself, or somewhere in the root.
fn place_of<'d>(
    device: &'d DevicePlan,
    root: BorrowedFd<'d>,
    dev: BorrowedFd<'d>,
) -> (BorrowedFd<'d>, &'d CStr) {
    let below_dev = device.target.to_bytes_with_nul().strip_prefix(b"dev/");
    match below_dev.map(CStr::from_bytes_with_nul) {
        Some(Ok(path)) => (dev, path),
        _ => (root, &device.target),
    }
}

/// Puts the host's node there: the parent's clone of it, or one that is made now.
fn bind_node(
    device: &DevicePlan,
    (base, path): (BorrowedFd<'_>, &CStr),
    tree: Option<&OwnedFd>,
    host: HostPaths<'_>,
) -> Result<(), Errno> {
    let place = open_target(base, path, Want::File, false)?;
    let attached = match tree {
        Some(tree) => move_to(tree.as_fd(), place.as_fd()),
        None => host
            .node(&device.host)
            .and_then(|tree| move_to(tree.as_fd(), place.as_fd())),
    };
    match attached {
        // What is no clone cannot be attached at all.
        Err(errno)
            if (refuses_mount_api(errno) || errno == Errno::INVAL)
                && matches!(host, HostPaths::Here) =>
        {
            let spot = Spot {
                base,
                path,
                place: place.as_fd(),
                nofollow: false,
            };
            bind_by_mount(device, spot, tree).map_err(|_| errno)
        }
        attached => attached,
    }
}

/// Binds the node at the host's path, if it is the device, and that which the parent has opened.
fn bind_by_mount(
    device: &DevicePlan,
    spot: Spot<'_>,
    known: Option<&OwnedFd>,
) -> Result<(), Errno> {
    let node = open(&*device.host, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&node)?;
    let same = match known {
        Some(known) => is_same(node.as_fd(), known.as_fd())?,
        None => is_device(device, &stat),
    };
    if same {
        spot.bind(node.as_fd(), false).map(drop)
    } else {
        Err(Errno::NODEV)
    }
}

fn make_node(device: &DevicePlan, base: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    let holder;
    let (dir, name) = if path.to_bytes().contains(&b'/') {
        let (parent, name) = open_parent(base, path)?;
        holder = parent;
        (holder.as_fd(), name)
    } else {
        (base, path)
    };
    match mknodat(dir, name, device.kind, device.mode, device.number) {
        Ok(()) => {}
        Err(Errno::EXIST) => return verify_node(device, dir, name),
        Err(errno) => return Err(errno),
    }
    if device.uid != 0 || device.gid != 0 {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// What the image or another mount put there already must be that very device.
fn verify_node(device: &DevicePlan, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if is_device(device, &stat) {
        Ok(())
    } else {
        Err(Errno::EXIST)
    }
}

fn is_device(device: &DevicePlan, stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == device.kind
        && (device.kind == FileType::Fifo || stat.st_rdev == device.number)
}
