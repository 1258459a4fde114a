//! The spawner: a single-threaded child of the daemon, forked before the daemon has threads,
//! that runs the runtime library's create and exec.
//!
//! Cloning a container from a process with threads is fragile, and from a large one is slow; the
//! spawner is neither. It clones with CLONE_PARENT, so that containers are the daemon's children.

mod child;
pub(crate) mod wire;

use std::io;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Context, Error, Result};
use crate::sys::{self, Fork};
pub(crate) use wire::{Launch, Request};
use wire::{Message, Reply};

/// The daemon's end.
#[derive(Debug)]
pub struct Spawner {
    /// Held for one request and its answer.
    exchange: Mutex<()>,
    current: Mutex<Arc<Current>>,
}

/// A running spawner process.
#[derive(Debug)]
struct Current {
    socket: UnixStream,
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
        Ok(Spawner {
            exchange: Mutex::new(()),
            current: Mutex::new(Arc::new(fork()?)),
        })
    }

    /// Forks a successor of a spawner that has died. Fails while there are several threads.
    pub fn fork_again(&self) -> Result<()> {
        let successor = Arc::new(fork()?);
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = successor;
        Ok(())
    }

    /// Pid of the spawner process.
    pub fn pid(&self) -> i32 {
        self.current().pid
    }

    /// Ends the wait for an answer that will not come. The end of the connection alone does not
    /// tell: containers that wait for their start hold a copy of the other side.
    pub fn give_up(&self) {
        // Not connected is what is wanted.
        let _ = self.current().socket.shutdown(Shutdown::Both);
    }

    fn current(&self) -> Arc<Current> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    /// Starts a process; blocks until it is there. The error is the runtime's own text.
    pub(crate) fn launch(
        &self,
        request: &Request,
        document: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> std::result::Result<Launched, String> {
        let _turn = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current();
        let exchange = || -> io::Result<Option<Message<Reply>>> {
            wire::send(&current.socket, request, document, fds)?;
            wire::receive(&current.socket)
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

fn fork() -> Result<Current> {
    let (ours, theirs) = UnixStream::pair().context(|| "make the spawner's socket".into())?;
    match sys::fork().context(|| "fork the spawner".into())? {
        Fork::Child => {
            drop(ours);
            child::run(theirs)
        }
        Fork::Parent(pid) => Ok(Current { socket: ours, pid }),
    }
}

/// Checks an id before it becomes part of a path.
pub(crate) fn container_id(id: &str) -> Result<xebec_runtime::ContainerId> {
    id.parse()
        .map_err(|error: xebec_runtime::Error| Error::InvalidArgument(error.to_string()))
}
