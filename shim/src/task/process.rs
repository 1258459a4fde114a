//! One process of a container, init or exec: state, streams, exit.

use std::cell::{Cell, RefCell};
use std::time::SystemTime;

use tokio::sync::{Mutex, watch};
use xebec_proto::task::StateResponse;

use super::inherit::ProcessRecord;
use super::keys;
use super::state::{self, Operation, State};
use crate::error::{Context, Error, Result};
use crate::io::{Io, Names};
use crate::supervisor::Exit;
use crate::supervisor::message::Change;
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
    /// It comes from an earlier worker, and nobody has asked to start it since.
    inherited: Cell<bool>,
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
            inherited: Cell::new(false),
            exit: watch::Sender::new(None),
        }
    }

    /// A process of an earlier worker.
    pub(super) fn inherited(exec_id: String, record: ProcessRecord) -> Process {
        let document = record.document.into_bytes();
        let process = Process::new(exec_id, record.names, document);
        process.state.set(record.state);
        process.pid.set(record.pid);
        process.inherited.set(true);
        process.exit.send_replace(record.exit);
        process
    }

    /// Keeps this process as it is now.
    pub(super) fn keep(&self, container: &str) -> Change {
        self.record(container, false)
    }

    /// Keeps this process as one that is about to get a pid.
    pub(super) fn keep_launching(&self, container: &str) -> Change {
        self.record(container, true)
    }

    fn record(&self, container: &str, launching: bool) -> Change {
        let is_needed = self.state() == State::Created && !launching;
        let document: &[u8] = if is_needed { &self.document } else { &[] };
        let record = ProcessRecord {
            names: self.names.clone(),
            document: String::from_utf8_lossy(document).into_owned(),
            state: self.state(),
            launching,
            pid: self.pid(),
            exit: self.exit(),
        };
        Change::Put {
            key: keys::process(container, &self.exec_id),
            record: serde_json::json!(record).to_string(),
            fds: None,
        }
    }

    /// Notes the pid of the process that the runtime made.
    pub(super) fn launched(&self, pid: i32) {
        self.pid.set(pid);
    }

    /// True once for a process that an earlier worker has started: that one may have died before
    /// it could answer.
    pub(super) fn was_started_before(&self) -> bool {
        self.inherited.take() && self.state() != State::Created && self.pid() != 0
    }

    /// Pid, 0 before the launch.
    pub(super) fn pid(&self) -> i32 {
        self.pid.get()
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

    /// Refuses what only a living process can be asked for, even if its end is still to be told:
    /// somebody else, runc for example, may have killed it and say so.
    pub(super) fn refuse_if_ended(&self) -> Result<()> {
        if self.state() != State::Stopped && sys::has_ended(self.pid()) {
            return Err(Error::NotFound("process already finished".into()));
        }
        Ok(())
    }

    /// Refuses what needs a process where there is none yet.
    pub(super) fn refuse_if_unborn(&self) -> Result<()> {
        if self.pid() == 0 {
            return Err(Error::FailedPrecondition("process not created".into()));
        }
        Ok(())
    }

    /// Signals this process alone.
    pub(super) fn kill(&self, signal: i32) -> Result<()> {
        self.check(Operation::Kill)?;
        self.refuse_if_unborn()?;
        // The supervisor keeps the pid from being used again while the state allows this.
        match sys::signal(self.pid(), signal) {
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
