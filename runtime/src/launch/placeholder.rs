//! A process that does nothing, for who wants to see one.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, getppid, set_parent_process_death_signal, waitid,
};

use crate::error::{Error, Result};
use crate::sys::{CloneRequest, clone3, pidfd_send_signal, wait_to_be_killed};

/// Lives until it is dropped, and never longer than its parent.
#[derive(Debug)]
pub(crate) struct Placeholder {
    pub(crate) pid: i32,
    pidfd: OwnedFd,
}

impl Placeholder {
    pub(crate) fn start() -> Result<Self> {
        let parent = rustix::process::getpid();
        let request = CloneRequest {
            flags: 0,
            cgroup: None,
        };
        let (pid, pidfd) = clone3(&request, || wait_with(parent))
            .map_err(Error::os("make a placeholder process"))?;
        Ok(Self { pid, pidfd })
    }
}

/// Waits until it is killed, or `parent` has died.
pub(super) fn wait_with(parent: Pid) -> i32 {
    // A parent that has died before the signal was asked for cannot send it.
    if set_parent_process_death_signal(Some(Signal::KILL)).is_err() || getppid() != Some(parent) {
        return 1;
    }
    wait_to_be_killed();
    0
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // Neither can fail while the child has not been reaped, and nobody else does that.
        let _ = pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let wait = || waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        let _ = rustix::io::retry_on_intr(wait);
    }
}
