//! The daemon's end of the connection to its keeper.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    listen, shutdown, socket_with, socketpair,
};

use super::group::Group;
use super::session::Kept;
use super::wire::{self, Event};
use crate::error::{Error, Result};
use crate::mount::Keeping;

/// A connection; at most one daemon has one.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    pid: u32,
    /// The process, if this daemon has started it.
    child: Mutex<Option<Child>>,
}

/// A keeper that was there already, and what it holds.
pub(crate) type Found = (Link, Option<Group>, Vec<Kept>);

impl Link {
    /// Connects to the keeper that an earlier daemon has left, if there is one, and takes over
    /// what it holds.
    pub(crate) fn to_keeper(path: &Path) -> Result<Option<Found>> {
        let failed = || Error::io::<io::Error>("take over from the keeper at", path);
        let address = address(path)?;
        let socket = new_socket().map_err(failed())?;
        match connect(&socket, &address) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => return Ok(None),
            Err(errno) => return Err(failed()(errno.into())),
        }
        let hello = wire::receive_hello(&socket).map_err(failed())?;
        let sessions = (0..hello.sessions).map(|_| wire::receive_session(&socket));
        let sessions = sessions.collect::<io::Result<_>>().map_err(failed())?;
        let peer = rustix::net::sockopt::socket_peercred(&socket);
        let link = Self {
            pid: peer.map_or(0, |peer| peer.pid.as_raw_nonzero().get() as u32),
            socket,
            child: Mutex::new(None),
        };
        Ok(Some((link, hello.group, sessions)))
    }

    /// Starts a keeper and gives it all that is to be kept.
    pub(crate) fn to_new_keeper<'a>(
        group: Option<&Group>,
        sessions: impl Iterator<Item = &'a Kept>,
        keeping: &Keeping,
    ) -> Result<Self> {
        let path = &keeping.socket;
        let listener = listener(path)?;
        let failed = || Error::io::<io::Error>("start a keeper at", path);
        let flags = SocketFlags::CLOEXEC;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|errno| failed()(errno.into()))?;
        let mut command = Command::new("/proc/self/exe");
        for name in super::stored::VARIABLES {
            command.env_remove(name);
        }
        let child = command
            .arg0(super::NAME)
            .arg("keeper")
            .arg("--deadline")
            .arg(keeping.deadline.as_secs().to_string())
            .arg(path)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(failed())?;
        let link = Self {
            socket,
            pid: child.id(),
            child: Mutex::new(Some(child)),
        };
        let group = group.map(AsFd::as_fd);
        wire::send_start(&link.socket, listener.as_fd(), group).map_err(failed())?;
        // Nothing is mounted before the keeper has what it is to keep.
        wire::receive_hello(&link.socket).map_err(failed())?;
        for kept in sessions {
            wire::send_session(&link.socket, kept, SendFlags::empty()).map_err(failed())?;
        }
        Ok(link)
    }

    /// The keeper's process id.
    pub(crate) fn keeper(&self) -> u32 {
        self.pid
    }

    /// Waits for an event; `None` when the keeper is gone, or after [`Link::close`].
    pub(crate) fn next_event(&self) -> io::Result<Option<Event>> {
        match wire::receive_event(&self.socket) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            received => received,
        }
    }

    /// Tells the keeper that an event was answered. Its death shows elsewhere, here and below.
    pub(crate) fn done(&self, id: i32) {
        told(wire::send_done(&self.socket, id));
    }

    /// Gives the keeper a watch that has just begun.
    pub(crate) fn watch(&self, group: &Group) {
        told(wire::send_group(&self.socket, group.as_fd()));
    }

    /// Gives the keeper a session.
    pub(crate) fn keep(&self, kept: &Kept) {
        told(wire::send_session(&self.socket, kept, SendFlags::empty()).map(drop));
    }

    /// Tells the keeper that a session has ended.
    pub(crate) fn forget(&self, name: &str) {
        told(wire::send_forget(&self.socket, name));
    }

    /// Lets the keeper end.
    pub(crate) fn dismiss(&self) {
        told(wire::send_dismissal(&self.socket));
    }

    /// Ends the connection for every thread.
    pub(crate) fn close(&self) {
        if let Err(error) = shutdown(&self.socket, Shutdown::Both) {
            tracing::debug!(%error, "close the connection to the keeper");
        }
    }

    /// Waits for the process that has ended, if it is ours.
    pub(crate) fn reap(&self) {
        let child = self
            .child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut child) = child {
            // It may be alive and speak nonsense.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn told(sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "the keeper is not told");
    }
}

/// A bound socket that waits for daemons, for its owner alone.
fn listener(path: &Path) -> Result<OwnedFd> {
    let failed = || Error::io::<io::Error>("bind", path);
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(directory)
            .map_err(Error::io("create", directory))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
        _ => {}
    }
    let address = address(path)?;
    let socket = new_socket().map_err(failed())?;
    bind(&socket, &address).map_err(|errno| failed()(errno.into()))?;
    listen(&socket, 4).map_err(|errno| failed()(errno.into()))?;
    Ok(socket)
}

fn address(path: &Path) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(Error::io("name the socket", path))
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok(socket)
}
