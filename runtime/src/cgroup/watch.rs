//! Waiting for what happens to a cgroup: out-of-memory kills, and the end of its last process.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::Cgroup;
use super::error::Result;
use super::files::io_error;
use super::stats::MemoryEvents;

/// What a [`Watch`] has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A process was killed for want of memory.
    OutOfMemory,
    /// There is no process any more.
    Empty,
    /// Nothing until the deadline.
    Deadline,
}

/// Looks at `memory.events` and `cgroup.events`, which the kernel reports changes of.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    events: OwnedFd,
    /// Absent without the memory controller.
    memory: Option<OwnedFd>,
    kills: u64,
}

impl Cgroup {
    /// Starts to watch; kills before that are not told.
    pub fn watch(&self) -> Result<Watch> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let open = |file| openat(self.fd(), file, flags, Mode::empty());
        let failed = |file| move |errno| io_error("open", &self.full_path().join(file), errno);
        let memory = match open("memory.events") {
            Err(Errno::NOENT) => None,
            opened => Some(opened.map_err(failed("memory.events"))?),
        };
        let mut watch = Watch {
            path: self.full_path().to_owned(),
            events: open("cgroup.events").map_err(failed("cgroup.events"))?,
            memory,
            kills: 0,
        };
        watch.has_new_kills()?;
        Ok(watch)
    }
}

impl Watch {
    /// The next event; kills come before the end that they may have brought about.
    pub fn next(&mut self, deadline: Instant) -> Result<Event> {
        loop {
            // kernfs reports a change since the last read, so read first and poll afterwards.
            let empty = self.is_empty()?;
            if self.has_new_kills()? {
                return Ok(Event::OutOfMemory);
            }
            if empty {
                return Ok(Event::Empty);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Event::Deadline);
            }
            self.sleep(left)?;
        }
    }

    fn sleep(&self, left: Duration) -> Result<()> {
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let files = [Some(&self.events), self.memory.as_ref()];
        let mut polled: Vec<_> = files
            .into_iter()
            .flatten()
            .map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI))
            .collect();
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(io_error("poll", &self.path, errno)),
        }
    }

    fn is_empty(&self) -> Result<bool> {
        let text = self.read(&self.events, "cgroup.events")?;
        Ok(text.is_none_or(|text| text.lines().any(|line| line == "populated 0")))
    }

    fn has_new_kills(&mut self) -> Result<bool> {
        let text = match &self.memory {
            Some(memory) => self.read(memory, "memory.events")?,
            None => None,
        };
        let kills = text.map_or(self.kills, |text| MemoryEvents::parse(&text).oom_kill);
        Ok(kills > std::mem::replace(&mut self.kills, kills))
    }

    /// The content, which fits; `None` when the cgroup is gone.
    fn read(&self, file: &OwnedFd, name: &str) -> Result<Option<String>> {
        let mut text = [0; 1024];
        match rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut text, 0)) {
            Ok(length) => Ok(Some(String::from_utf8_lossy(&text[..length]).into_owned())),
            Err(Errno::NODEV) => Ok(None),
            Err(errno) => Err(io_error("read", &self.path.join(name), errno)),
        }
    }
}
