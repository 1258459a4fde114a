//! One process of a container, init or exec: state, streams, exit.

use std::cell::{Cell, OnceCell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::SystemTime;

use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, watch};
use xebec_proto::task::StateResponse;

use super::exits::Exit;
use super::state::{self, Operation, State};
use crate::error::{Context, Error, Result};
use crate::io::{Io, Names};
use crate::spawner::Launched;
use crate::sys;

/// A process, from its registration to its deletion.
#[derive(Debug)]
pub(super) struct Process {
    /// Exec id; empty for init.
    pub(super) exec_id: String,
    /// Streams as containerd named them.
    pub(super) names: Names,
    /// The JSON of an exec's OCI Process; empty for init.
    pub(super) document: Vec<u8>,
    /// Held by whoever moves the process from one state to the next, so that events come out in
    /// order. Reading the state needs no turn.
    pub(super) turn: Mutex<()>,
    /// The shim's side of the streams.
    pub(super) io: RefCell<Io>,
    state: Cell<State>,
    pid: Cell<i32>,
    pidfd: OnceCell<Rc<AsyncFd<OwnedFd>>>,
    exit: watch::Sender<Option<Exit>>,
}

impl Process {
    /// A process that is registered and has no pid yet.
    pub(super) fn new(exec_id: String, names: Names, document: Vec<u8>) -> Process {
        Process {
            exec_id,
            names,
            document,
            turn: Mutex::new(()),
            io: RefCell::default(),
            state: Cell::new(State::Created),
            pid: Cell::new(0),
            pidfd: OnceCell::new(),
            exit: watch::Sender::new(None),
        }
    }

    /// Notes pid and pidfd of the process that the runtime made.
    pub(super) fn launched(&self, launched: Launched) -> Result<()> {
        let pid = launched.pid;
        let pidfd = sys::watch(launched.pidfd).context(|| format!("watch process {pid}"))?;
        self.pid.set(pid);
        // A process is launched once; the cell is empty.
        let _ = self.pidfd.set(Rc::new(pidfd));
        Ok(())
    }

    /// Pid, 0 before the launch.
    pub(super) fn pid(&self) -> i32 {
        self.pid.get()
    }

    /// The pidfd, once there is a process.
    pub(super) fn pidfd(&self) -> Option<Rc<AsyncFd<OwnedFd>>> {
        self.pidfd.get().cloned()
    }

    /// The state now.
    pub(super) fn state(&self) -> State {
        self.state.get()
    }

    /// Moves on to `state`.
    pub(super) fn set_state(&self, state: State) {
        self.state.set(state);
    }

    /// Refuses `operation` if the state does not allow it.
    pub(super) fn check(&self, operation: Operation) -> Result<()> {
        state::check(self.state(), operation)
    }

    /// Records the end; [`Process::wait`] returns.
    pub(super) fn exited(&self, exit: Exit) {
        self.set_state(State::Stopped);
        self.exit.send_replace(Some(exit));
    }

    /// The recorded end.
    pub(super) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for the recorded end.
    pub(super) async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        // The sender lives as long as `self`.
        let ended = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        ended
            .ok()
            .flatten()
            .unwrap_or_else(|| Exit::now(super::exits::UNKNOWN_STATUS))
    }

    /// Signals this process alone.
    pub(super) fn kill(&self, signal: i32) -> Result<()> {
        self.check(Operation::Kill)?;
        let Some(pidfd) = self.pidfd.get() else {
            return Err(Error::FailedPrecondition("process not created".into()));
        };
        match sys::send_signal(&**pidfd, signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                Err(Error::NotFound("process already finished".into()))
            }
            result => result.context(|| format!("signal process {}", self.pid())),
        }
    }

    /// The answer to a State request.
    pub(super) fn describe(&self, container: &str, bundle: &str) -> StateResponse {
        let exit = self.exit();
        StateResponse {
            id: container.to_owned(),
            bundle: bundle.to_owned(),
            pid: self.pid() as u32,
            status: self.state().status() as i32,
            stdin: self.names.stdin.clone(),
            stdout: self.names.stdout.clone(),
            stderr: self.names.stderr.clone(),
            terminal: self.names.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| timestamp(exit.at)),
            exec_id: self.exec_id.clone(),
        }
    }
}

/// A time as protobuf carries it.
pub(super) fn timestamp(at: SystemTime) -> prost_types::Timestamp {
    at.into()
}
