//! Standard streams of a new process.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Stat, Uid, fchown, fstat, makedev, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, socketpair,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};

use crate::error::{At as _, Error, Failure, Result, Step};
use crate::request::{Console, Stdio};
use crate::rootfs::send_terminal;

/// Streams as the child takes them over.
#[derive(Debug)]
pub(crate) enum ChildStdio {
    /// The parent's own.
    Inherit,
    /// These three.
    Fds([OwnedFd; 3]),
    /// The slave of a terminal, three times.
    Terminal(OwnedFd),
}

impl ChildStdio {
    /// Prepares the streams of a request; all of them are out of the way of 0, 1 and 2.
    pub(crate) fn new(stdio: Stdio) -> Result<Self> {
        let Stdio::Fds {
            stdin,
            stdout,
            stderr,
        } = stdio
        else {
            return Ok(Self::Inherit);
        };
        Ok(Self::Fds([
            stream(stdin)?,
            stream(stdout)?,
            stream(stderr)?,
        ]))
    }
}

fn stream(given: Option<OwnedFd>) -> Result<OwnedFd> {
    let fd = match given {
        Some(fd) => fd,
        None => open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(Error::file("open", "/dev/null"))?,
    };
    fcntl_dupfd_cloexec(&fd, 3).map_err(Error::os("duplicate a standard stream"))
}

/// Where the terminal's master will be sent.
#[derive(Debug)]
pub(crate) struct TerminalReceiver {
    pub(super) socket: OwnedFd,
    /// It prints what comes, so a line feed shall stay one character.
    pub(super) prints: bool,
}

impl TerminalReceiver {
    /// Hands the master of a terminal over that somebody else has opened.
    pub(crate) fn hand_over(&self, master: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
        send_terminal(self.socket.as_fd(), master)
    }
}

/// The connection that the terminal's master will be sent over; and, when that leads to the caller,
/// its other end, for [`crate::receive_descriptor`].
pub(crate) fn connect_console(
    console: Console,
    terminal: bool,
) -> Result<(Option<TerminalReceiver>, Option<OwnedFd>)> {
    let receiver = |socket, prints| Some(TerminalReceiver { socket, prints });
    Ok(match (console, terminal) {
        // A way for the terminal may be at hand before it is known whether there is one.
        (Console::None | Console::SocketFd(_) | Console::Foreground, false) => (None, None),
        (Console::None, true) => {
            return Err(Error::InvalidArgument(
                "cannot allocate tty if runc will detach without setting console socket".into(),
            ));
        }
        (Console::SocketPath(_), false) => {
            return Err(Error::InvalidArgument(
                "cannot use console socket if runc will not detach or allocate tty".into(),
            ));
        }
        (Console::SocketFd(socket), true) => (receiver(socket, false), None),
        (Console::SocketPath(path), true) => (receiver(connect_to(&path)?, false), None),
        (Console::Foreground, true) => {
            let flags = SocketFlags::CLOEXEC;
            let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
                .map_err(Error::os("socketpair"))?;
            (receiver(theirs, true), Some(ours))
        }
    })
}

/// Connects to a unix socket.
pub(crate) fn connect_to(path: &Path) -> Result<OwnedFd> {
    let address = SocketAddrUnix::new(path).map_err(Error::file("connect to", path))?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Error::os("socket"))?;
    connect(&socket, &address).map_err(Error::file("connect to", path))?;
    Ok(socket)
}

/// Puts the streams in place and gives them to the user, as far as they can be given.
pub(super) fn place_streams(
    stdio: &ChildStdio,
    uid: u32,
) -> std::result::Result<(), Failure<'static>> {
    let place = |fds: [BorrowedFd<'_>; 3]| {
        dup2_stdin(fds[0])?;
        dup2_stdout(fds[1])?;
        dup2_stderr(fds[2])
    };
    match stdio {
        ChildStdio::Inherit => Ok(()),
        ChildStdio::Fds([first, second, third]) => {
            place([first.as_fd(), second.as_fd(), third.as_fd()])
        }
        ChildStdio::Terminal(slave) => place([slave.as_fd(); 3]),
    }
    .at(Step::Stdio, b"")?;
    use_own_null().at(Step::Stdio, b"/dev/null")?;
    if uid != 0 {
        for fd in [stdin(), stdout(), stderr()] {
            give_to(fd, uid).at(Step::Stdio, b"chown")?;
        }
    }
    Ok(())
}

/// Streams that are the host's null device become the container's, as with runc: a file of a mount
/// that the container does not have could not be written into a checkpoint.
fn use_own_null() -> std::result::Result<(), Errno> {
    let is_null = |stat: Stat| {
        let kind = FileType::from_raw_mode(stat.st_mode);
        kind == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3)
    };
    let nulls = [stdin(), stdout(), stderr()].map(|fd| fstat(fd).is_ok_and(is_null));
    if nulls == [false; 3] {
        return Ok(());
    }
    // An image may have no such device, or something else of that name.
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let own = match open(c"/dev/null", flags, Mode::empty()) {
        Ok(own) if fstat(&own).is_ok_and(is_null) => own,
        _ => return Ok(()),
    };
    let [first, second, third] = nulls;
    if first {
        dup2_stdin(&own)?;
    }
    if second {
        dup2_stdout(&own)?;
    }
    if third {
        dup2_stderr(&own)?;
    }
    Ok(())
}

/// Changes the owner of a stream, so that `/proc/self/fd/1` can be reopened by the user.
fn give_to(fd: BorrowedFd<'_>, uid: u32) -> std::result::Result<(), Errno> {
    let stat = match fstat(fd) {
        Ok(stat) => stat,
        // A stream that the caller had closed stays closed.
        Err(Errno::BADF) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    if stat.st_uid == uid || stat.st_rdev == makedev(1, 3) {
        return Ok(());
    }
    match fchown(fd, Some(Uid::from_raw(uid)), None) {
        // Not every file system, and not every user namespace, can express the owner.
        Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
