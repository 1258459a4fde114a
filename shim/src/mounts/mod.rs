//! The root file system of a container: the mounts containerd names, made in order under the
//! bundle and undone together.
//!
//! Everything here may block on disks and daemons; it is called on a blocking thread.

mod options;
mod unmount;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount as sys_mount;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags};
use xebec_proto::types::Mount;
use xebec_runtime::OwnerMap;

use crate::error::{Context, Error, Result};
use options::{Plan, Recursive};
pub use unmount::unmount_rootfs;

/// mount(2) copies at most one page of options; longer ones go through fsconfig(2).
const MOUNT_DATA_MAX: usize = 4095;

/// overlayfs's option for one lower layer.
const LOWER_LAYER: &str = "lowerdir+";

/// Mounts all of `mounts` below `rootfs`, which is created if needed. On an error the mounts
/// already made are gone again.
pub fn mount_rootfs(rootfs: &Path, mounts: &[Mount]) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    match rustix::fs::mkdir(rootfs, Mode::from_raw_mode(0o711)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => Err(error).context(|| format!("create {}", rootfs.display()))?,
    }
    for mount in mounts {
        if let Err(error) = mount_one(rootfs, mount) {
            return Err(match unmount_rootfs(rootfs) {
                Ok(()) => error,
                Err(undo) => Error::InvalidArgument(format!("{error}; undo: {undo}")),
            });
        }
    }
    Ok(())
}

fn mount_one(rootfs: &Path, mount: &Mount) -> Result<()> {
    let target = below(rootfs, &mount.target)?;
    let plan = options::parse(&mount.r#type, &mount.options)?;
    let what = || {
        format!(
            "mount {} ({}) on {}",
            mount.source,
            mount.r#type,
            target.display()
        )
    };
    let owners = match &plan.id_maps {
        Some((uids, gids)) => Some(owner_map(uids, gids)?),
        None => None,
    };
    if let Some(recursive) = plan.bind {
        bind(&mount.source, &target, &plan, recursive, owners.as_ref()).context(what)?;
    } else if mount.r#type.starts_with("fuse.") || mount.r#type.starts_with("fuse3.") {
        fuse(mount, &target).context(what)?;
    } else {
        file_system(mount, &target, &plan, owners.as_ref()).context(what)?;
    }
    if let Some(propagation) = plan.propagation {
        sys_mount::mount_change(&target, propagation).context(what)?;
    }
    Ok(())
}

/// The place of a mount's `target` inside the rootfs; it must not lead outside.
fn below(rootfs: &Path, target: &str) -> Result<PathBuf> {
    let mut path = rootfs.to_owned();
    for part in Path::new(target).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::InvalidArgument(format!("mount target {target:?}")));
            }
        }
    }
    Ok(path)
}

fn owner_map(uids: &str, gids: &str) -> Result<OwnerMap> {
    OwnerMap::new(uids.to_owned(), gids.to_owned())
        .map_err(|error| Error::InvalidArgument(error.to_string()))
}

fn bind(
    source: &str,
    target: &Path,
    plan: &Plan,
    recursive: Recursive,
    owners: Option<&OwnerMap>,
) -> io::Result<()> {
    match (owners, recursive) {
        (Some(owners), _) => {
            attach(
                &mapped(owners, source, recursive == Recursive::Yes)?,
                target,
            )?;
        }
        (None, Recursive::Yes) => sys_mount::mount_bind_recursive(source, target)?,
        (None, Recursive::No) => sys_mount::mount_bind(source, target)?,
    }
    // A bind mount takes its flags only on a second call.
    if !plan.flags.is_empty() {
        sys_mount::mount_remount(target, MountFlags::BIND | plan.flags, "")?;
    }
    Ok(())
}

fn mapped(owners: &OwnerMap, source: &str, recursive: bool) -> io::Result<OwnedFd> {
    owners
        .clone_tree(Path::new(source), recursive)
        .map_err(io::Error::other)
}

fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let from_fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    sys_mount::move_mount(tree, "", rustix::fs::CWD, target, from_fd)?;
    Ok(())
}

fn file_system(
    mount: &Mount,
    target: &Path,
    plan: &Plan,
    owners: Option<&OwnerMap>,
) -> io::Result<()> {
    let data = plan.data.join(",");
    if data.len() <= MOUNT_DATA_MAX && owners.is_none() {
        let data = std::ffi::CString::new(data)?;
        sys_mount::mount(&*mount.source, target, &*mount.r#type, plan.flags, &*data)?;
        return Ok(());
    }
    let context = sys_mount::fsopen(&*mount.r#type, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context_fd = &context;
    if !mount.source.is_empty() {
        sys_mount::fsconfig_set_string(context_fd, "source", &*mount.source)?;
    }
    // A detached tree ends with its descriptor: these have to live until the overlay is made.
    let mut layers = Vec::new();
    for (key, value) in fsconfig_steps(&plan.data) {
        match (value, owners) {
            // The lower layers are the image's; what the container writes has its owners already.
            // Detached trees as layers came with Linux 6.15.
            (Some(layer), Some(owners)) if key == LOWER_LAYER => {
                let layer = mapped(owners, layer, false)?;
                sys_mount::fsconfig_set_fd(context_fd, key, &layer)?;
                layers.push(layer);
            }
            (Some(value), _) => sys_mount::fsconfig_set_string(context_fd, key, value)?,
            (None, _) => sys_mount::fsconfig_set_flag(context_fd, key)?,
        }
    }
    if plan.flags.contains(MountFlags::RDONLY) {
        sys_mount::fsconfig_set_flag(context_fd, "ro")?;
    }
    sys_mount::fsconfig_create(context_fd)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let tree = sys_mount::fsmount(context_fd, flags, attributes(plan.flags))?;
    attach(&tree, target)
}

/// Options as fsconfig(2) takes them. A value holds 256 bytes at most, so the lower layers of
/// an overlay go one by one (`lowerdir+`, Linux 6.7).
fn fsconfig_steps(data: &[String]) -> Vec<(&str, Option<&str>)> {
    let mut steps = Vec::new();
    for option in data {
        match option.split_once('=') {
            None => steps.push((option.as_str(), None)),
            Some(("lowerdir", layers)) => {
                steps.extend(layers.split(':').map(|layer| (LOWER_LAYER, Some(layer))));
            }
            Some((key, value)) => steps.push((key, Some(value))),
        }
    }
    steps
}

fn attributes(flags: MountFlags) -> MountAttrFlags {
    const PAIRS: &[(MountFlags, MountAttrFlags)] = &[
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (
            MountFlags::STRICTATIME,
            MountAttrFlags::MOUNT_ATTR_STRICTATIME,
        ),
        (
            MountFlags::NODIRATIME,
            MountAttrFlags::MOUNT_ATTR_NODIRATIME,
        ),
    ];
    let mut attributes = MountAttrFlags::empty();
    for (flag, attribute) in PAIRS {
        attributes.set(*attribute, flags.contains(*flag));
    }
    attributes
}

/// FUSE file systems with a program of their own are mounted by mount(8)'s helper.
fn fuse(mount: &Mount, target: &Path) -> io::Result<()> {
    let output = Command::new("mount")
        .args([
            "-t",
            &mount.r#type,
            "-o",
            &mount.options.join(","),
            &mount.source,
        ])
        .arg(target)
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "mount helper: {}: {}",
        output.status,
        text.trim()
    )))
}

/// True if `path` is a mount point.
pub fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        let mask = rustix::fs::StatxFlags::BASIC_STATS;
        rustix::fs::statx(rustix::fs::CWD, path, flags, mask).map(|stat| stat.stx_attributes)
    };
    device(path).is_ok_and(|a| a.contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_stays_inside_the_rootfs() {
        let rootfs = Path::new("/b/rootfs");
        assert_eq!(below(rootfs, "").unwrap(), rootfs);
        assert_eq!(
            below(rootfs, "/data/x").unwrap(),
            Path::new("/b/rootfs/data/x")
        );
        assert!(below(rootfs, "../../etc").is_err());
    }

    #[test]
    fn long_overlay_options_become_one_step_a_layer() {
        let data = [
            "index=off".to_owned(),
            "lowerdir=/a:/b".to_owned(),
            "volatile".to_owned(),
        ];
        assert_eq!(
            fsconfig_steps(&data),
            [
                ("index", Some("off")),
                ("lowerdir+", Some("/a")),
                ("lowerdir+", Some("/b")),
                ("volatile", None)
            ]
        );
    }
}
