//! Containers of an earlier worker, taken over by its successor.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::inherit::{Inherited, InheritedProcess, reconcile};
use super::super::keys;
use super::super::process::Process;
use super::super::record::Record;
use super::super::service::Shim;
use super::super::state::State;
use super::Container;
use crate::error::{Error, Result};
use crate::io::{Io, Stream};
use crate::log;
use crate::supervisor::message::Change;

impl Container {
    /// Takes over a container of an earlier worker. One whose creation was under way is taken
    /// back; then there is none.
    pub(in crate::task) async fn inherit(
        shim: &Rc<Shim>,
        id: &str,
        inherited: Inherited,
    ) -> Result<Option<Rc<Container>>> {
        let lost = || Error::NotFound(format!("container {id}: its record is lost"));
        let record = inherited.record.ok_or_else(lost)?;
        let mut processes = inherited.processes;
        let mut init = processes.remove("").ok_or_else(lost)?;
        let init_record = init.record.ok_or_else(lost)?;
        let is_restoring = init_record.launching && record.restore.is_some();
        let is_made = !init_record.launching || is_restoring;
        let written = Record::read(&record.bundle)
            .inspect_err(|error| log::with(&[("id", &id)]).error(format_args!("{error}")));
        let options = written.ok().flatten().unwrap_or_default().options;
        if let Err(error) = shim
            .spans
            .use_option("TracesEndpoint", &options.traces_endpoint)
        {
            log::with(&[("id", &id)]).error(format_args!("{error}"));
        }
        let process = Process::inherited(String::new(), init_record);
        let container = Container::plan(shim, id, record.bundle, process, &options, record.told);
        if !is_made {
            // Whoever asked for it will ask again, and reads its output already.
            let prefix = keys::container(id);
            let change = Change::TakeBack { prefix };
            shim.link.commit(vec![change], Vec::new());
            container.undo(shim).await;
            return Ok(None);
        }
        container.shares_pids.set(record.shares_pids);
        if let Some(path) = record.cgroup
            && let Err(error) = container.watch_cgroup(shim, path, inherited.oom_kills)
        {
            log::with(&[("id", &id)]).error(format_args!("{error}"));
        }
        container.restore.replace(record.restore);
        if is_restoring {
            container.inherit_restore(shim, init.streams).await;
        } else {
            init.streams.remove(keys::PID);
            container.inherit_streams(&container.init, init.streams);
        }
        let container = Rc::new(container);
        if record.dumping {
            container.end_dump(shim).await;
        }
        container.catch_up(shim).await;
        for (exec_id, process) in processes {
            container.inherit_exec(shim, exec_id, process);
        }
        if container.init.exit().is_none() && container.init.pid() != 0 {
            container.watch(shim, &container.init);
        }
        Ok(Some(container))
    }

    /// The runtime may have done what the record does not say yet.
    async fn catch_up(&self, shim: &Shim) {
        let (engine, id) = (self.engine.clone(), self.id.clone());
        let record = self.init.state();
        // Of one that has ended meanwhile the exit tells.
        let Ok(status) = shim.blocking(move || engine.status(&id)).await else {
            return;
        };
        let state = reconcile(record, &status);
        if record == State::Created && state != record {
            self.announce_start(shim);
        }
        self.init.set_state(state);
    }

    fn inherit_exec(
        self: &Rc<Self>,
        shim: &Rc<Shim>,
        exec_id: String,
        inherited: InheritedProcess,
    ) {
        let Some(record) = inherited.record else {
            return;
        };
        let is_launching = record.launching;
        let mut streams = inherited.streams;
        let pid = streams
            .remove(keys::PID)
            .and_then(|pid| pid.record.parse().ok());
        let process = Rc::new(Process::inherited(exec_id.clone(), record));
        self.execs.borrow_mut().insert(exec_id, Rc::clone(&process));
        if !is_launching {
            self.inherit_streams(&process, streams);
            if process.state() == State::Running {
                self.watch(shim, &process);
            }
            return;
        }
        match pid {
            // A terminal that was on its way is lost with the worker that waited for it.
            Some(pid) if !process.names.terminal => {
                process.launched(pid);
                self.inherit_streams(&process, streams);
                self.announce_exec(shim, &process);
                self.watch(shim, &process);
            }
            _ => self.give_up(shim, &process),
        }
    }

    pub(super) fn inherit_streams(&self, process: &Process, streams: BTreeMap<String, Stream>) {
        match Io::inherit(&process.names, &self.setting, &process.exec_id, streams) {
            Ok(io) => drop(process.io.replace(io)),
            Err(error) => log::with(&[("id", &self.id), ("exec_id", &process.exec_id)])
                .error(format_args!("streams: {error}")),
        }
    }

    /// The processes that somebody waits for, loggers included.
    pub(in crate::task) fn children(&self) -> Vec<i32> {
        let execs = self.execs();
        let processes = std::iter::once(&self.init).chain(&execs);
        processes
            .flat_map(|process| [process.pid(), process.io.borrow().logger_pid()])
            .collect()
    }
}
