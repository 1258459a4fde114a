//! Freezing, thawing and killing a cgroup, and waiting for its `cgroup.events`.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::Cgroup;
use super::error::{CgroupError, Result};
use super::files::{self, io_error};

/// How long a freeze may take; a process in an uninterruptible system call delays it.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Freezes all processes and waits until the kernel says so; a freeze that does not succeed
    /// in time is undone.
    pub fn freeze(&self) -> Result<()> {
        self.write_control("cgroup.freeze", "1")?;
        let deadline = Instant::now() + FREEZE_DEADLINE;
        if wait_event(self.full_path(), "frozen", "1", deadline)? {
            return Ok(());
        }
        self.write_control("cgroup.freeze", "0")?;
        Err(CgroupError::Timeout {
            path: self.full_path().to_owned(),
            state: "frozen",
            seconds: FREEZE_DEADLINE.as_secs(),
        })
    }

    /// Lets frozen processes run again; returns at once, as their wake-up needs no waiting.
    pub fn thaw(&self) -> Result<()> {
        self.write_control("cgroup.freeze", "0")
    }

    /// Whether the cgroup was asked to freeze (by itself, not by an ancestor).
    pub fn is_frozen(&self) -> Result<bool> {
        let text = files::read_optional(self.fd(), self.full_path(), "cgroup.freeze")?;
        Ok(text.is_some_and(|text| text.trim() == "1"))
    }

    /// Kills every process of the cgroup and its children, forks in progress included.
    pub fn kill(&self) -> Result<()> {
        match files::write(self.fd(), "cgroup.kill", "1") {
            // ENODEV: gone already.
            Ok(()) | Err(Errno::NODEV) => Ok(()),
            Err(Errno::NOENT) if !self.exists() => Ok(()),
            // cgroup.kill came with Linux 5.14; threaded cgroups do not support it.
            Err(Errno::NOENT | Errno::OPNOTSUPP) => self.kill_one_by_one(),
            Err(errno) => Err(io_error(
                "write \"1\" to",
                &self.full_path().join("cgroup.kill"),
                errno,
            )),
        }
    }

    /// A frozen cgroup cannot fork away from the list of its processes.
    fn kill_one_by_one(&self) -> Result<()> {
        self.freeze()?;
        let killed = self.pids(true).and_then(|pids| {
            for pid in pids.into_iter().filter_map(Pid::from_raw) {
                match kill_process(pid, Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(errno) => {
                        return Err(io_error("kill a process of", self.full_path(), errno));
                    }
                }
            }
            Ok(())
        });
        self.thaw().and(killed)
    }

    fn write_control(&self, file: &str, value: &str) -> Result<()> {
        files::write(self.fd(), file, value).map_err(|errno| {
            io_error(
                &format!("write {value:?} to"),
                &self.full_path().join(file),
                errno,
            )
        })
    }
}

/// Waits until `key` has `value` in the `cgroup.events` of `dir`; `false` at the deadline. A
/// cgroup that is gone counts as having reached any state.
pub(super) fn wait_event(dir: &Path, key: &str, value: &str, deadline: Instant) -> Result<bool> {
    let file = dir.join("cgroup.events");
    let fail = |errno| io_error("read", &file, errno);
    let fd = match openat(CWD, &file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(true),
        Err(errno) => return Err(fail(errno)),
    };
    let mut buffer = [0_u8; 256];
    loop {
        // kernfs reports a change since the last read, so read first and poll afterwards.
        let len = match rustix::io::pread(&fd, &mut buffer, 0) {
            Ok(len) => len,
            Err(Errno::NODEV) => return Ok(true),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(fail(errno)),
        };
        if event_value(&buffer[..len], key) == Some(value.as_bytes()) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::PRI)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(io_error("poll", &file, errno)),
        }
    }
}

/// The value of `key` in a flat keyed cgroup file.
fn event_value<'a>(text: &'a [u8], key: &str) -> Option<&'a [u8]> {
    text.split(|b| *b == b'\n')
        .find_map(|line| line.strip_prefix(key.as_bytes())?.strip_prefix(b" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_found_by_its_whole_key() {
        let text = b"populated 1\nfrozen 0\nfrozenish 7\n";
        assert_eq!(event_value(text, "populated"), Some(&b"1"[..]));
        assert_eq!(event_value(text, "frozen"), Some(&b"0"[..]));
        assert_eq!(event_value(text, "froz"), None);
    }
}
