//! One hook, from the clone to its end. Nothing here allocates: it runs in the container's own
//! process, too.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{SeekFrom, ftruncate, seek};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, chdir, kill_process_group, setpgid, waitid,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::error::Result;
use crate::plan::HookPlan;
use crate::sys::{self, CStrArray};

/// Memory files that stand for a hook's streams, and one for the reason why it did not start.
#[derive(Debug)]
pub(super) struct HookFiles {
    pub(super) state: OwnedFd,
    pub(super) output: OwnedFd,
    pub(super) errors: OwnedFd,
    pub(super) reason: OwnedFd,
}

impl HookFiles {
    /// Empty ones.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            state: super::memory_file()?,
            output: super::memory_file()?,
            errors: super::memory_file()?,
            reason: super::memory_file()?,
        })
    }

    pub(super) fn raw_fds(&self) -> [RawFd; 4] {
        [&self.state, &self.output, &self.errors, &self.reason].map(AsRawFd::as_raw_fd)
    }
}

/// How a hook ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// It and its process group were killed after so many seconds.
    TimedOut(i32),
    /// `execve` answered with this errno.
    NotExecuted(i32),
}

/// Runs a hook in `directory`, in a process group of its own.
pub(super) fn run(
    hook: &HookPlan,
    files: &HookFiles,
    directory: &CStr,
    env: &CStrArray,
) -> std::result::Result<Outcome, Errno> {
    seek(&files.state, SeekFrom::Start(0))?;
    for file in [&files.output, &files.errors, &files.reason] {
        // What the hook before has written is of no more interest.
        ftruncate(file, 0)?;
        seek(file, SeekFrom::Start(0))?;
    }
    let request = sys::CloneRequest {
        flags: 0,
        cgroup: None,
    };
    let (pid, pidfd) = sys::clone3(&request, || {
        let errno = become_hook(hook, files, directory, env);
        let _ = rustix::io::write(&files.reason, &errno.raw_os_error().to_ne_bytes());
        127
    })?;
    if let Some(limit) = hook.timeout
        && !ends_within(pidfd.as_fd(), limit)?
    {
        if let Some(group) = Pid::from_raw(pid) {
            // It fails only when the group is gone, or not there yet.
            let _ = kill_process_group(group, Signal::KILL);
        }
        sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL)?;
        wait(pidfd.as_fd())?;
        return Ok(Outcome::TimedOut(limit.as_secs() as i32));
    }
    let outcome = wait(pidfd.as_fd())?;
    let mut reason = [0; 4];
    Ok(match rustix::io::pread(&files.reason, &mut reason, 0)? {
        4 => Outcome::NotExecuted(i32::from_ne_bytes(reason)),
        _ => outcome,
    })
}

/// Comes back only when it cannot be executed.
fn become_hook(hook: &HookPlan, files: &HookFiles, directory: &CStr, env: &CStrArray) -> Errno {
    sys::default_dispositions();
    sys::unblock_all();
    let prepare = || {
        setpgid(None, None)?;
        dup2_stdin(&files.state)?;
        dup2_stdout(&files.output)?;
        dup2_stderr(&files.errors)
    };
    if let Err(errno) = prepare() {
        return errno;
    }
    // For what the runtime's caller left open; a filter may be in the way.
    let _ = sys::close_on_exec_from(3);
    // A hook whose directory has gone still runs, where its caller is.
    let _ = chdir(directory);
    sys::execve(&hook.path, &hook.argv, env)
}

fn wait(pidfd: BorrowedFd<'_>) -> std::result::Result<Outcome, Errno> {
    let ended = || waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED);
    let status = rustix::io::retry_on_intr(ended)?;
    Ok(match status {
        Some(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Outcome::Exited(code),
            (None, signal) => Outcome::Killed(signal.unwrap_or(0)),
        },
        None => Outcome::Killed(0),
    })
}

fn ends_within(pidfd: BorrowedFd<'_>, limit: Duration) -> std::result::Result<bool, Errno> {
    let timeout = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut polled, Some(&timeout))).map(|ready| ready > 0)
}
