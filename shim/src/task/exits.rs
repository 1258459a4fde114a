//! How processes end: each child is watched by its pidfd; orphans that the shim inherits as
//! subreaper are collected when they die.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::SystemTime;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;

use crate::log;
use crate::sys;

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// When the shim learnt of it.
    pub at: SystemTime,
}

impl Exit {
    /// An exit that happens now.
    pub fn now(status: u32) -> Exit {
        Exit {
            status,
            at: SystemTime::now(),
        }
    }
}

/// Status for a process whose real one cannot be known.
pub const UNKNOWN_STATUS: u32 = 255;

/// Opens a pidfd of a child and registers it with the event loop.
pub fn open(pid: i32) -> io::Result<AsyncFd<OwnedFd>> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    sys::watch(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Waits for a child to end and collects its status.
pub async fn wait(pidfd: &AsyncFd<OwnedFd>) -> Exit {
    loop {
        let mut ready = match pidfd.readable().await {
            Ok(ready) => ready,
            Err(error) => return unknown(&error),
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options) {
            Ok(Some(status)) => {
                let code = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => code as u32,
                    (None, Some(signal)) => 128 + signal as u32,
                    (None, None) => UNKNOWN_STATUS,
                };
                return Exit::now(code);
            }
            Ok(None) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(error) => return unknown(&error.into()),
        }
    }
}

fn unknown(error: &io::Error) -> Exit {
    log::error(format_args!("wait for a process: {error}"));
    Exit::now(UNKNOWN_STATUS)
}

/// Keeps the children that somebody waits for apart from orphans.
#[derive(Debug, Default)]
pub struct Reaper {
    claimed: RefCell<HashSet<i32>>,
    launches: Cell<usize>,
}

/// While one exists, a child that dies may be one that is just being started.
#[derive(Debug)]
pub struct Launching(Rc<Reaper>);

impl Reaper {
    /// From now on somebody waits for `pid`.
    pub fn claim(&self, pid: i32) {
        self.claimed.borrow_mut().insert(pid);
    }

    /// `pid` has been waited for.
    pub fn release(&self, pid: i32) {
        self.claimed.borrow_mut().remove(&pid);
        self.collect();
    }

    /// To be held while children may appear that nobody has claimed yet.
    pub fn launching(self: &Rc<Self>) -> Launching {
        self.launches.set(self.launches.get() + 1);
        Launching(Rc::clone(self))
    }

    /// Collects dead orphans whenever a child dies; `signals` reports SIGCHLD.
    pub async fn watch(&self, signals: &AsyncFd<OwnedFd>) -> io::Result<()> {
        loop {
            let mut ready = signals.readable().await?;
            let mut buffer = [0; 4 * 128];
            match rustix::io::read(signals, &mut buffer) {
                Ok(_) => self.collect(),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn collect(&self) {
        while self.launches.get() == 0 {
            let Some(pid) = sys::dead_child() else { return };
            // Its own watcher takes it, and calls here again.
            if self.claimed.borrow().contains(&pid) {
                return;
            }
            let take = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let Some(pid) = Pid::from_raw(pid) else {
                return;
            };
            if rustix::process::waitid(WaitId::Pid(pid), take).is_err() {
                return;
            }
        }
    }
}

impl Drop for Launching {
    fn drop(&mut self) {
        self.0.launches.set(self.0.launches.get() - 1);
        self.0.collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn status_of(script: &str) -> u32 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let exit = wait(&open(child.id() as i32).unwrap()).await;
            // The status was taken already.
            assert!(child.wait().is_err());
            exit.status
        })
    }

    #[test]
    fn exit_codes_and_signals_become_one_status() {
        assert_eq!(status_of("exit 0"), 0);
        assert_eq!(status_of("exit 42"), 42);
        assert_eq!(status_of("kill -KILL $$"), 137);
        assert_eq!(status_of("kill -TERM $$"), 143);
    }
}
