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
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen,
    shutdown, socket_with, socketpair,
};

use super::group::Group;
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

impl Link {
    /// Connects to the keeper that an earlier daemon has left, if there is one, and takes the
    /// group over.
    pub(crate) fn to_keeper(path: &Path) -> Result<Option<(Self, Group)>> {
        let failed = || Error::io::<io::Error>("take over from the keeper at", path);
        let address = address(path)?;
        let socket = new_socket().map_err(failed())?;
        match connect(&socket, &address) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => return Ok(None),
            Err(errno) => return Err(failed()(errno.into())),
        }
        let group = wire::receive_hello(&socket).map_err(failed())?;
        let peer = rustix::net::sockopt::socket_peercred(&socket);
        let link = Self {
            pid: peer.map_or(0, |peer| peer.pid.as_raw_nonzero().get() as u32),
            socket,
            child: Mutex::new(None),
        };
        Ok(Some((link, group)))
    }

    /// Starts a keeper and gives it the group.
    pub(crate) fn to_new_keeper(group: &Group, keeping: &Keeping) -> Result<Self> {
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
        wire::send_start(&link.socket, group.as_fd(), listener.as_fd()).map_err(failed())?;
        // Nothing is mounted before the keeper has what it is to keep.
        wire::receive_hello(&link.socket).map_err(failed())?;
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

    /// Tells the keeper that an event was answered. Its death shows elsewhere.
    pub(crate) fn done(&self, id: i32) {
        if let Err(error) = wire::send_done(&self.socket, id) {
            tracing::debug!(%error, "tell the keeper of an answer");
        }
    }

    /// Lets the keeper end.
    pub(crate) fn dismiss(&self) {
        if let Err(error) = wire::send_dismissal(&self.socket) {
            tracing::debug!(%error, "dismiss the keeper");
        }
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
