//! Taking a root file system away.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::{Context, Result};

/// `f_type` of overlayfs.
const OVERLAYFS: i64 = 0x794c_7630;
/// Stack of a thread that makes one system call.
const STACK: usize = 64 * 1024;

/// Unmounts everything at and below `rootfs`. Nothing mounted is success.
///
/// The last unmount of an overlay writes all dirty data of the file system below it to disk, the
/// node's other containers' too, which takes seconds where disks are busy; clients of containerd
/// give up before. So an overlay is only taken from its place here: what keeps it alive is let go on
/// a thread that nobody waits for. Other file systems are gone on return, because who removes
/// their device does so next.
pub fn unmount_rootfs(rootfs: &Path) -> Result<()> {
    let lazily = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
    loop {
        let overlay = overlay(rootfs);
        let unmounted = match &overlay {
            Some(_) => unmount(rootfs, lazily),
            None => match unmount(rootfs, UnmountFlags::NOFOLLOW) {
                // Something holds it or is mounted inside: the kernel finishes when that is gone.
                Err(Errno::BUSY) => unmount(rootfs, lazily),
                result => result,
            },
        };
        match unmounted {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error).context(|| format!("unmount {}", rootfs.display())),
        }
        if let Some(held) = overlay {
            let_go(held);
        }
    }
}

/// Holds what is mounted at `rootfs` if that is an overlay.
fn overlay(rootfs: &Path) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let held = rustix::fs::open(rootfs, flags, Mode::empty()).ok()?;
    let is_overlay = rustix::fs::fstatfs(&held).is_ok_and(|stat| stat.f_type == OVERLAYFS);
    is_overlay.then_some(held)
}

/// Closes the last holder of a mount, without waiting where a thread can be had.
fn let_go(held: OwnedFd) {
    let closing = thread::Builder::new()
        .name("xebec-unmount".into())
        .stack_size(STACK)
        .spawn(move || drop(held));
    // Without a thread the descriptor was closed with the closure.
    drop::<io::Result<_>>(closing);
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::time::{Duration, Instant};

    use rustix::mount::{MountFlags, mount};

    use super::super::is_mount_point;
    use super::*;

    #[test]
    fn unmounting_what_is_not_mounted_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        unmount_rootfs(directory.path()).unwrap();
        unmount_rootfs(&directory.path().join("absent")).unwrap();
        assert!(!is_mount_point(directory.path()));
    }

    #[test]
    fn an_overlay_leaves_its_place_at_once_and_its_layers_soon() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        mount("none", directory.path(), "tmpfs", MountFlags::empty(), None).unwrap();
        for name in ["lower", "upper", "work", "rootfs"] {
            fs::create_dir(place(name)).unwrap();
        }
        // With an index the kernel refuses layers that another overlay uses.
        let options = format!(
            "index=on,lowerdir={},upperdir={},workdir={}",
            place("lower").display(),
            place("upper").display(),
            place("work").display()
        );
        let options = CString::new(options).unwrap();
        let rootfs = place("rootfs");
        let mounted = || mount("o", &rootfs, "overlay", MountFlags::empty(), &*options);
        mounted().unwrap();
        fs::write(rootfs.join("file"), "written").unwrap();
        mount("none", &rootfs, "tmpfs", MountFlags::empty(), None).unwrap();

        unmount_rootfs(&rootfs).unwrap();
        assert!(!is_mount_point(&rootfs));
        assert_eq!(fs::read(place("upper/file")).unwrap(), b"written");
        let deadline = Instant::now() + Duration::from_mins(1);
        while mounted() == Err(Errno::BUSY) {
            assert!(Instant::now() < deadline, "the layers are still in use");
            thread::sleep(Duration::from_millis(10));
        }
        unmount_rootfs(&rootfs).unwrap();
        unmount(directory.path(), UnmountFlags::DETACH).unwrap();
    }
}
