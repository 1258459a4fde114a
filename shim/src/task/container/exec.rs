//! Further processes of a container, from their registration to their deletion.

use std::rc::Rc;

use xebec_proto::events;
use xebec_proto::task::{DeleteResponse, ExecProcessRequest};

use super::deletion::deleted;
use super::{Container, DRAIN};
use crate::error::{Error, Result};
use crate::io::{Io, Names};
use crate::log;
use crate::supervisor::Exit;
use crate::supervisor::message::Change;
use crate::task::document;
use crate::task::exits::UNKNOWN_STATUS;
use crate::task::keys;
use crate::task::process::Process;
use crate::task::service::Shim;
use crate::task::state::{Operation, State};
use crate::task::timings::Stopwatch;
use crate::trace;

impl Container {
    /// Registers a further process; it starts later.
    pub(in crate::task) fn add_exec(&self, shim: &Shim, request: ExecProcessRequest) -> Result<()> {
        let exec_id = request.exec_id;
        // The id becomes part of file names.
        crate::link::container_id(&exec_id)?;
        if self.execs.borrow().contains_key(&exec_id) || exec_id == self.id {
            return Err(Error::AlreadyExists(format!(
                "id {exec_id}: already exists"
            )));
        }
        self.init.check(Operation::Exec)?;
        self.init.refuse_if_unborn()?;
        let document = document::process(request.spec, request.terminal)?;
        let names = Names {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let process = Process::new(exec_id.clone(), names, document);
        let kept = vec![process.keep(&self.id)];
        self.execs
            .borrow_mut()
            .insert(exec_id.clone(), Rc::new(process));
        let event = events::TaskExecAdded {
            container_id: self.id.clone(),
            exec_id,
        };
        self.publish(shim, kept, "/tasks/exec-added", &event);
        Ok(())
    }

    /// An exec could not be started.
    pub(super) fn give_up(&self, shim: &Shim, process: &Process) {
        process.exited(Exit::now(UNKNOWN_STATUS));
        let prefix = keys::process(&self.id, &process.exec_id);
        let changes = vec![Change::Drop { prefix }, process.keep(&self.id)];
        shim.link.commit(changes, Vec::new());
    }

    pub(super) async fn start_exec(
        self: &Rc<Self>,
        shim: &Rc<Shim>,
        process: &Rc<Process>,
    ) -> Result<()> {
        if self.ending.get() {
            return Err(Error::FailedPrecondition(
                "cannot exec in a stopped state".into(),
            ));
        }
        self.init.check(Operation::Exec)?;
        shim.link
            .commit_soon(vec![process.keep_launching(&self.id)]);
        let mut watch = Stopwatch::start();
        let (mut io, streams) = Io::open(&process.names, &self.setting, &process.exec_id).await?;
        let opened = watch.lap("streams");
        let hold = self.hold(shim);
        let pid = self
            .engine
            .exec(
                &self.id,
                &self.bundle,
                &process.exec_id,
                &process.document,
                streams,
            )
            .await?;
        let launch = watch.lap("launch");
        process.launched(pid);
        shim.link.commit_soon(vec![Change::Watch { pid }]);
        drop(hold);
        process.set_state(State::Running);
        let terminal = io.attach_terminal(&process.names, &self.setting, &process.exec_id);
        if let Err(error) = terminal.await {
            process.kill(libc::SIGKILL)?;
            log::with(&[("id", &self.id), ("exec_id", &process.exec_id)])
                .error(format_args!("terminal: {error}"));
        }
        trace::note(&[opened, launch, watch.lap("console")]);
        process.io.replace(io);
        self.announce_exec(shim, process);
        self.watch(shim, process);
        Ok(())
    }

    pub(super) fn announce_exec(&self, shim: &Shim, process: &Process) {
        process.set_state(State::Running);
        let event = events::TaskExecStarted {
            container_id: self.id.clone(),
            exec_id: process.exec_id.clone(),
            pid: process.pid() as u32,
        };
        let kept = vec![process.keep(&self.id)];
        self.publish(shim, kept, "/tasks/exec-started", &event);
    }

    /// Deletes an exec: nothing but its streams and its entry are left of it.
    pub(in crate::task) async fn delete_exec(
        &self,
        shim: &Shim,
        exec_id: &str,
    ) -> Result<DeleteResponse> {
        let process = self.process(exec_id)?;
        let _turn = process.turn.lock().await;
        if process.state() == State::Deleted {
            return Ok(deleted(&process));
        }
        process.check(Operation::Delete)?;
        let mut io = process.io.take();
        io.drain(DRAIN).await;
        process.set_state(State::Deleted);
        self.execs.borrow_mut().remove(exec_id);
        let prefix = keys::process(&self.id, exec_id);
        shim.link.commit_soon(vec![Change::Drop { prefix }]);
        Ok(deleted(&process))
    }
}
