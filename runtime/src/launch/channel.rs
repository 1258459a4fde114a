//! What parent and child tell each other: small packets over one socket pair.

use std::cell::Cell;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::error::{ChildFailure, Error, Failure, Result, Step};
use crate::sys;

/// Longest detail that is sent: a path.
const DETAIL_MAX: usize = 4096;
/// Kind, step and errno before the detail.
const HEAD: usize = 7;

const KIND_FAILED: u8 = 0;
const KIND_MOUNTED: u8 = 1;
const KIND_READY: u8 = 2;
const KIND_EXECUTING: u8 = 3;
const KIND_FORKED: u8 = 4;
const KIND_LISTENER: u8 = 5;

/// The child's end.
#[derive(Debug)]
pub(crate) struct ChildEnd {
    socket: OwnedFd,
    /// The parent's end, of which the child is born with a copy; -1 once that is closed.
    parent: Cell<RawFd>,
}

/// The parent's end.
#[derive(Debug)]
pub(crate) struct ParentEnd(OwnedFd);

/// What the child reports.
#[derive(Clone, Copy, Debug)]
pub(super) enum Report<'p> {
    /// It cannot go on.
    Failed(Failure<'p>),
    /// Everything is mounted; it waits for a word because there are hooks to run.
    Mounted,
    /// It waits for `start`.
    Ready,
    /// The next thing it does is `execve`.
    Executing,
    /// The intermediate process has made init, with this pid.
    Forked(i32),
    /// Its filter has a listener, under this number; it waits for a word.
    Listener(i32),
}

/// What the parent reads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    Failed(ChildFailure),
    Mounted,
    Ready,
    Executing,
    Forked(i32),
    Listener(i32),
    /// Nobody holds the child's end any more: it executes its program, or is dead.
    Closed,
}

/// A connected pair, closed on exec.
pub(crate) fn pair() -> Result<(ParentEnd, ChildEnd)> {
    let flags = SocketFlags::CLOEXEC;
    let (parent, child) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(Error::os("socketpair"))?;
    let child = ChildEnd {
        socket: child,
        parent: Cell::new(parent.as_raw_fd()),
    };
    Ok((ParentEnd(parent), child))
}

impl ChildEnd {
    /// Its number, to be kept when others are closed.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// The same under a number above `last`, for a child that wants those below for others.
    pub(super) fn above(self, last: RawFd) -> Result<Self> {
        let socket = fcntl_dupfd_cloexec(&self.socket, last + 1).map_err(Error::os("dup"))?;
        Ok(Self {
            socket,
            parent: self.parent,
        })
    }

    /// The first thing that a child does: with its own copy of the parent's end it would not
    /// notice that the parent is gone. Only for a process made by [`sys::clone3`].
    pub(super) fn settle_in(&self) {
        // Fails only on a bad descriptor.
        let _ = sys::close_one(self.parent.replace(-1));
    }

    /// Sends a report; an error means that the parent is gone, and then nobody has made sure that
    /// this process will be found again.
    pub(super) fn send(&self, report: Report<'_>) -> std::result::Result<(), Errno> {
        let mut packet = [0u8; HEAD + DETAIL_MAX];
        let (kind, step, number, detail): (u8, u16, i32, &[u8]) = match report {
            Report::Failed(f) => (KIND_FAILED, f.step as u16, f.errno.raw_os_error(), f.detail),
            Report::Mounted => (KIND_MOUNTED, 0, 0, b""),
            Report::Ready => (KIND_READY, 0, 0, b""),
            Report::Executing => (KIND_EXECUTING, 0, 0, b""),
            Report::Forked(pid) => (KIND_FORKED, 0, pid, b""),
            Report::Listener(fd) => (KIND_LISTENER, 0, fd, b""),
        };
        let detail = &detail[..detail.len().min(DETAIL_MAX)];
        packet[0] = kind;
        packet[1..3].copy_from_slice(&step.to_ne_bytes());
        packet[3..HEAD].copy_from_slice(&number.to_ne_bytes());
        packet[HEAD..HEAD + detail.len()].copy_from_slice(detail);
        // write(2) rather than send(2): it is what every seccomp profile allows.
        rustix::io::write(&self.socket, &packet[..HEAD + detail.len()]).map(drop)
    }

    /// Waits for the parent's word; its death ends the wait with an error.
    pub(super) fn wait_for_word(&self) -> std::result::Result<(), Errno> {
        let mut word = [0];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut word))? {
            0 => Err(Errno::PIPE),
            _ => Ok(()),
        }
    }
}

impl ParentEnd {
    /// Lets the child go on.
    pub(super) fn give_word(&self) -> Result<()> {
        rustix::io::write(&self.0, &[1])
            .map(drop)
            .map_err(Error::os("release the new process"))
    }

    /// Reads the next message.
    pub(super) fn receive(&self) -> Result<Message> {
        let mut packet = [0u8; HEAD + DETAIL_MAX];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut packet));
        match length {
            // A child that died with unread words in its queue resets the connection.
            Ok(0) | Err(Errno::CONNRESET) => Ok(Message::Closed),
            Ok(length) => parse(&packet[..length]),
            Err(errno) => Err(Error::os("read from the new process")(errno)),
        }
    }
}

fn parse(packet: &[u8]) -> Result<Message> {
    let garbled = || Error::Os {
        op: "read from the new process".to_owned(),
        source: std::io::ErrorKind::InvalidData.into(),
    };
    let (head, detail) = packet.split_at_checked(HEAD).ok_or_else(garbled)?;
    let number = i32::from_ne_bytes([head[3], head[4], head[5], head[6]]);
    Ok(match head[0] {
        KIND_FAILED => Message::Failed(ChildFailure {
            step: Step::from_raw(u16::from_ne_bytes([head[1], head[2]])).ok_or_else(garbled)?,
            errno: number,
            detail: String::from_utf8_lossy(detail).into_owned(),
        }),
        KIND_MOUNTED => Message::Mounted,
        KIND_READY => Message::Ready,
        KIND_EXECUTING => Message::Executing,
        KIND_FORKED => Message::Forked(number),
        KIND_LISTENER => Message::Listener(number),
        _ => return Err(garbled()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_arrives_as_it_was_sent() {
        let (parent, child) = pair().expect("socketpair");
        let detail = b"/no/such";
        let failed = Report::Failed(Failure {
            step: Step::Mount,
            errno: Errno::NOENT,
            detail,
        });
        child.send(failed).expect("sent");
        child.send(Report::Forked(42)).expect("sent");
        drop(child);
        let failure = ChildFailure {
            step: Step::Mount,
            errno: libc::ENOENT,
            detail: "/no/such".to_owned(),
        };
        assert_eq!(parent.receive().expect("packet"), Message::Failed(failure));
        assert_eq!(parent.receive().expect("packet"), Message::Forked(42));
        assert_eq!(parent.receive().expect("end"), Message::Closed);
    }

    #[test]
    fn a_garbled_packet_is_an_error() {
        for bad in [
            &b""[..],
            b"\x00",
            b"\x09\0\0\0\0\0\0",
            b"\x00\xff\xff\0\0\0\0",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_dead_parent_ends_the_wait_and_is_noticed_by_who_reports() {
        let (parent, child) = pair().expect("socketpair");
        drop(parent);
        assert_eq!(child.send(Report::Ready), Err(Errno::PIPE));
        assert_eq!(child.wait_for_word(), Err(Errno::PIPE));
    }
}
