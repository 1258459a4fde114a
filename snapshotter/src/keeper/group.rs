//! A fanotify group: files whose readers wait for an answer.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::sys::fanotify::{self, Waiting};

/// What becomes of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes on: the bytes are there.
    Allow,
    /// It fails with EIO.
    Deny,
}

const ALLOW: u32 = 1;
const DENY: u32 = 2;
/// Where an answer holds the error that a denied read gets (Linux 6.14).
const ERROR_SHIFT: u32 = 24;
const EIO: u32 = 5;
/// Numbers that events of a dead keeper may have: it has no more descriptors.
const MOST_EVENTS: i32 = 1 << 20;
/// That many unused numbers in a row, and there are no further events.
const GAP: i32 = 4096;

/// The group's descriptor.
#[derive(Debug)]
pub(crate) struct Group(OwnedFd);

impl Group {
    /// A group without any file. Fails where the kernel has no such events, and for everyone
    /// without CAP_SYS_ADMIN in the first user namespace.
    pub(crate) fn new() -> io::Result<Self> {
        fanotify::new_group().map(Self)
    }

    /// Makes everyone who reads `path` (relative to `dir`) wait for an answer.
    pub(crate) fn watch(&self, dir: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        fanotify::watch(self.as_fd(), dir, &c_path(path)?)
    }

    /// Lets everyone read `path` again; it holds all of its bytes.
    pub(crate) fn unwatch(&self, dir: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        fanotify::unwatch(self.as_fd(), dir, &c_path(path)?)
    }

    /// Lets everyone read and write who comes by way of the mount `tree`.
    pub(crate) fn ignore_mount(&self, tree: BorrowedFd<'_>) -> io::Result<()> {
        fanotify::ignore_mount(self.as_fd(), tree)
    }

    /// The next read that waits.
    pub(crate) fn next_event(&self) -> io::Result<Option<Waiting>> {
        fanotify::next_event(self.as_fd())
    }

    /// Answers the event `id`; one that is not there (any more) is no error.
    pub(crate) fn answer(&self, id: i32, verdict: Verdict) -> io::Result<()> {
        self.answer_known(id, verdict).map(drop)
    }

    /// Denies what a dead keeper had taken from the queue and told nobody: a wrong number is no
    /// error, so all are tried.
    pub(crate) fn deny_lost(&self) {
        let mut last = 0;
        for id in 0..MOST_EVENTS {
            match self.answer_known(id, Verdict::Deny) {
                Ok(true) => {
                    tracing::error!("a read got EIO, since the keeper died with it");
                    last = id;
                }
                _ if id - last > GAP => return,
                _ => {}
            }
        }
    }

    /// Answers the event `id`; whether there was one.
    fn answer_known(&self, id: i32, verdict: Verdict) -> io::Result<bool> {
        let response = match verdict {
            Verdict::Allow => ALLOW,
            Verdict::Deny => DENY | EIO << ERROR_SHIFT,
        };
        match self.write(id, response) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn write(&self, id: i32, response: u32) -> rustix::io::Result<()> {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&id.to_ne_bytes());
        bytes[4..].copy_from_slice(&response.to_ne_bytes());
        rustix::io::write(&self.0, &bytes).map(drop)
    }

    /// Whether any file is watched that still exists.
    pub(crate) fn watches_anything(&self) -> io::Result<bool> {
        use std::os::fd::AsRawFd;
        let info = format!("/proc/self/fdinfo/{}", self.0.as_raw_fd());
        let text = std::fs::read_to_string(info)?;
        Ok(text.lines().any(|line| line.starts_with("fanotify ino:")))
    }
}

impl From<OwnedFd> for Group {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}
