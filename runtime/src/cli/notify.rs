//! Readiness: what the container's program tells its own socket is passed on to the service
//! manager that started us (`sd_notify(3)`).

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use xebec_runtime::{ContainerId, Error, Result};

use super::Context;

/// How long the service manager may take to read what it was told.
const BARRIER_DEADLINE: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};

/// The way of one word from a container to the service manager.
pub(super) struct Readiness {
    inside: UnixDatagram,
    manager: SocketAddr,
}

/// The service manager's socket, when it waits for a word.
pub(super) fn manager_socket() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())
}

impl Readiness {
    /// Opens the way for a container that has been created and not yet started; none when nobody
    /// waits, or the container was created without one.
    pub(super) fn open(context: &Context, id: &ContainerId) -> Result<Option<Self>> {
        let Some(name) = manager_socket() else {
            return Ok(None);
        };
        let manager = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
            _ => SocketAddr::from_pathname(&name),
        };
        let manager = manager.map_err(Error::file("use NOTIFY_SOCKET", name))?;
        let inside = context.runtime.notify_socket(id)?;
        Ok(inside.map(|inside| Self { inside, manager }))
    }

    /// Waits until the program says that it is ready, or has ended without a word; `main` is the
    /// process that the service manager is to watch.
    pub(super) fn relay(&self, process: BorrowedFd<'_>, main: i32) -> Result<()> {
        let mut datagram = [0; 4096];
        loop {
            let mut fds = [
                PollFd::new(&self.inside, PollFlags::IN),
                PollFd::from_borrowed_fd(process, PollFlags::IN),
            ];
            rustix::io::retry_on_intr(|| poll(&mut fds, None))
                .map_err(Error::os("wait for readiness"))?;
            if fds[0].revents().is_empty() {
                return Ok(());
            }
            let length = self
                .inside
                .recv(&mut datagram)
                .map_err(Error::os("read readiness"))?;
            if let Some(ready) = ready_line(&datagram[..length]) {
                return self
                    .tell(ready, main)
                    .map_err(Error::os("pass readiness on"));
            }
        }
    }

    fn tell(&self, ready: &[u8], main: i32) -> io::Result<()> {
        let client = UnixDatagram::unbound()?;
        client.connect_addr(&self.manager)?;
        client.send(&[ready, b"\n"].concat())?;
        client.send(format!("MAINPID={main}\n").as_bytes())?;
        barrier(&client)
    }
}

/// Waits until the manager has read everything: it closes what comes with the last message then.
fn barrier(client: &UnixDatagram) -> io::Result<()> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [theirs.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let data = [IoSlice::new(b"BARRIER=1")];
    sendmsg(client, &data, &mut control, SendFlags::NOSIGNAL)?;
    drop(theirs);
    let mut fds = [PollFd::new(&ours, PollFlags::IN)];
    // A manager that does not know the word keeps nobody waiting for ever.
    rustix::io::retry_on_intr(|| poll(&mut fds, Some(&BARRIER_DEADLINE)))?;
    Ok(())
}

/// The line of a message that tells readiness.
fn ready_line(datagram: &[u8]) -> Option<&[u8]> {
    datagram
        .split(|byte| *byte == b'\n')
        .find(|line| line.starts_with(b"READY="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_may_stand_in_any_line() {
        assert_eq!(ready_line(b"READY=1"), Some(&b"READY=1"[..]));
        assert_eq!(ready_line(b"STATUS=up\nREADY=1\n"), Some(&b"READY=1"[..]));
        assert_eq!(ready_line(b"STATUS=READY=1"), None);
    }
}
