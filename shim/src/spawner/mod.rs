//! The spawner: a single-threaded child of the daemon, forked before the daemon has threads,
//! that runs the runtime library's create and exec.
//!
//! Cloning a container from a process with threads is fragile, and from a large one is slow; the
//! spawner is neither. It clones with CLONE_PARENT, so that containers are the daemon's children.

mod child;
pub(crate) mod wire;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use crate::error::{Context, Error, Result};
use crate::sys::{self, Fork};
pub(crate) use wire::{Launch, Request};
use wire::{Message, Reply};

/// The daemon's end.
#[derive(Debug)]
pub struct Spawner {
    socket: Mutex<UnixStream>,
    pid: i32,
}

/// A process that was started: pid and pidfd.
#[derive(Debug)]
pub struct Launched {
    /// Pid in this pid namespace.
    pub pid: i32,
    /// Stays valid whatever happens to the pid.
    pub pidfd: OwnedFd,
}

impl Spawner {
    /// Forks the spawner. Must be called while the process has a single thread.
    pub fn fork() -> Result<Spawner> {
        let (ours, theirs) = UnixStream::pair().context(|| "make the spawner's socket".into())?;
        match sys::fork().context(|| "fork the spawner".into())? {
            Fork::Child => {
                drop(ours);
                child::run(theirs)
            }
            Fork::Parent(pid) => Ok(Spawner {
                socket: Mutex::new(ours),
                pid,
            }),
        }
    }

    /// Pid of the spawner process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Starts a process; blocks until it is there. The error is the runtime's own text.
    pub(crate) fn launch(
        &self,
        request: &Request,
        document: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> std::result::Result<Launched, String> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let exchange = || -> io::Result<Option<Message<Reply>>> {
            wire::send(&socket, request, document, fds)?;
            wire::receive(&socket)
        };
        match exchange() {
            Ok(Some(Message {
                head: Reply::Launched { pid },
                mut fds,
                ..
            })) => match fds.pop() {
                Some(pidfd) => Ok(Launched { pid, pidfd }),
                None => Err(format!("the spawner sent no pidfd for process {pid}")),
            },
            Ok(Some(Message {
                head: Reply::Failed { message },
                ..
            })) => Err(message),
            Ok(None) => Err("the spawner process is gone".to_owned()),
            Err(error) => Err(format!("talk to the spawner: {error}")),
        }
    }
}

/// Checks an id before it becomes part of a path.
pub(crate) fn container_id(id: &str) -> Result<xebec_runtime::ContainerId> {
    id.parse()
        .map_err(|error: xebec_runtime::Error| Error::InvalidArgument(error.to_string()))
}
