//! The first steps of a process that is started many times a second.

use std::os::fd::IntoRawFd as _;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::stdio::{stderr, stdin, stdout};

use crate::sys;

/// What the standard library's own entry point does for a program: 0, 1 and 2 are open, so that
/// nothing else gets their numbers, and a reader that is gone is an error and not the end.
///
/// And what suits a short life: a heap that grows once, not by a page or two.
pub fn begin() {
    let (first, second, third) = (stdin(), stdout(), stderr());
    let mut streams = [&first, &second, &third].map(|fd| PollFd::new(fd, PollFlags::empty()));
    let known = poll(&mut streams, Some(&Timespec::default()));
    let closed = |stream: &PollFd<'_>| stream.revents().contains(PollFlags::NVAL);
    for _ in streams
        .iter()
        .filter(|stream| known.is_ok() && closed(stream))
    {
        // The lowest free number is that of the closed stream.
        if let Ok(null) = open(c"/dev/null", OFlags::RDWR, Mode::empty()) {
            let _ = null.into_raw_fd();
        }
    }
    sys::ignore_broken_pipes();
    sys::grow_heap_by(HEAP);
}

/// More than any command needs beside what it reads.
const HEAP: i32 = 1 << 20;
