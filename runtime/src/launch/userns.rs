//! User namespaces that exist only to carry id maps: for id-mapped mounts.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::error::{Error, Result};
use crate::plan::IdMaps;
use crate::sys::{CloneRequest, clone3, pidfd_send_signal};

/// Makes a user namespace with these maps and returns a descriptor that keeps it alive.
///
/// It takes a short-lived process: the kernel has no call for a namespace without one.
pub(crate) fn user_namespace(maps: &IdMaps) -> Result<OwnedFd> {
    let request = CloneRequest {
        flags: libc::CLONE_NEWUSER as u64,
        cgroup: None,
    };
    let (pid, pidfd) = clone3(&request, || {
        crate::sys::wait_to_be_killed();
        0
    })
    .map_err(Error::os("create user namespace"))?;
    let made = write_maps(pid, maps).and_then(|()| {
        let path = format!("/proc/{pid}/ns/user");
        open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(Error::file("open", path))
    });
    pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).map_err(Error::os("kill helper process"))?;
    waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        .map_err(Error::os("wait for helper process"))?;
    made
}

/// Writes the maps of a new user namespace through its first process.
pub(super) fn write_maps(pid: i32, maps: &IdMaps) -> Result<()> {
    for (name, text) in [("uid_map", &maps.uid), ("gid_map", &maps.gid)] {
        let path = format!("/proc/{pid}/{name}");
        fs::write(&path, text).map_err(Error::file("write", path))?;
    }
    Ok(())
}
