//! One container: how it is made, started, watched and taken away.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use prost::Name;
use tokio::task::spawn_local;
use xebec_proto::events::{self, TaskIo};
use xebec_proto::task::{CreateTaskRequest, DeleteResponse, ExecProcessRequest};
use xebec_runtime::cgroup::{Cgroup, CgroupPath};

use super::document;
use super::exits::{self, Exit};
use super::process::{Process, timestamp};
use super::record::Record;
use super::service::Shim;
use super::state::{Operation, State};
use crate::engine::{Engine, Launched, Streams};
use crate::error::{Context, Error, Result};
use crate::events::oom::Counter;
use crate::io::{Io, Names, Setting};
use crate::options::Options;
use crate::{log, mounts};

/// How long a delete waits for output that is still on its way.
const DRAIN: Duration = Duration::from_secs(10);

/// Who hears of what happens to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// containerd, by events.
    Containerd,
    /// Nobody: it is the shim's own.
    Nobody,
}

/// A container and its processes.
#[derive(Debug)]
pub(super) struct Container {
    /// Its id.
    pub(super) id: String,
    /// Its bundle.
    pub(super) bundle: PathBuf,
    /// Who runs it.
    pub(super) engine: Engine,
    /// The first process.
    pub(super) init: Rc<Process>,
    execs: RefCell<BTreeMap<String, Rc<Process>>>,
    setting: Setting,
    cgroup: OnceCell<Cgroup>,
    oom: OnceCell<Rc<Counter>>,
    told: Told,
    /// Init is dead, though its exit may not be published yet: nothing may be started.
    ending: Cell<bool>,
}

impl Container {
    /// Creates a container as `request` says. On an error nothing is left behind.
    pub(super) async fn create(
        shim: &Rc<Shim>,
        request: &CreateTaskRequest,
    ) -> Result<Rc<Container>> {
        if !request.checkpoint.is_empty() {
            let text = "restoring from a checkpoint is not implemented";
            return Err(Error::Unimplemented(text.into()));
        }
        let options = Options::decode(request.options.as_ref())?;
        Container::create_with(shim, request, options, Told::Containerd).await
    }

    /// The same with options that are known already.
    pub(super) async fn create_with(
        shim: &Rc<Shim>,
        request: &CreateTaskRequest,
        options: Options,
        told: Told,
    ) -> Result<Rc<Container>> {
        let options = options.with_environment();
        let container = Container::plan(shim, request, &options, told);
        let record = Record {
            options,
            socket: shim.socket.clone(),
        };
        record.write(&container.bundle)?;

        let (io, streams) = Io::open(&container.init.names, &container.setting).await?;
        let created = container.launch_init(shim, request, streams).await;
        let result = match created {
            Ok(launched) => container.adopt_init(shim, launched, io).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            container.undo(shim).await;
            return Err(error);
        }
        container.announce(shim, request);
        let container = Rc::new(container);
        let watched = Rc::clone(&container);
        let shim = Rc::clone(shim);
        spawn_local(async move { watched.watch_init(&shim).await });
        Ok(container)
    }

    fn plan(shim: &Shim, request: &CreateTaskRequest, options: &Options, told: Told) -> Container {
        let engine = Engine::new(options, &shim.namespace, Some(shim.spawner.clone()));
        let names = Names {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let setting = Setting {
            namespace: shim.namespace.clone(),
            id: request.id.clone(),
            owner: (options.io_uid, options.io_gid),
            console_directory: engine
                .wants_console_path()
                .then(|| shim.socket.parent().unwrap_or(Path::new("/run")).to_owned()),
            reaper: Rc::clone(&shim.reaper),
        };
        Container {
            id: request.id.clone(),
            bundle: PathBuf::from(&request.bundle),
            engine,
            init: Rc::new(Process::new(String::new(), names, Vec::new())),
            execs: RefCell::default(),
            setting,
            cgroup: OnceCell::new(),
            oom: OnceCell::new(),
            told,
            ending: Cell::new(false),
        }
    }

    /// Mounts the rootfs and lets the runtime create init, both off the event loop.
    async fn launch_init(
        &self,
        shim: &Shim,
        request: &CreateTaskRequest,
        streams: Streams,
    ) -> Result<Launched> {
        let (engine, id, bundle) = (self.engine.clone(), self.id.clone(), self.bundle.clone());
        let rootfs = request.rootfs.clone();
        // Until it is claimed, the new process looks like an orphan.
        let launching = shim.reaper.launching();
        let launched = shim
            .blocking(move || {
                mounts::mount_rootfs(&bundle.join("rootfs"), &rootfs)?;
                engine.create(&id, &bundle, &streams)
            })
            .await?;
        shim.reaper.claim(launched.pid);
        drop(launching);
        Ok(launched)
    }

    /// Takes over a created init: its pid, terminal and cgroup.
    async fn adopt_init(&self, shim: &Shim, launched: Launched, mut io: Io) -> Result<()> {
        let pid = launched.pid;
        self.init.launched(launched)?;
        io.attach_terminal(&self.init.names).await?;
        self.init.io.replace(io);
        if let Some(cgroup) = open_cgroup(pid)? {
            let path = cgroup.full_path();
            let counter = shim
                .oom
                .add(&self.id, path, &shim.publisher)
                .context(|| format!("watch {}", path.display()))?;
            if let Some(counter) = counter {
                // Both cells are set here alone.
                let _ = self.oom.set(counter);
            }
            let _ = self.cgroup.set(cgroup);
        }
        Ok(())
    }

    /// Takes back a creation that failed half-way.
    async fn undo(&self, shim: &Shim) {
        if let Err(error) = self.remove(shim, true).await {
            log::error(format_args!("clean up container {}: {error}", self.id));
        }
        if let Some(pidfd) = self.init.pidfd() {
            exits::wait(&pidfd).await;
            shim.reaper.release(self.init.pid());
        }
    }

    fn publish<M: Name>(&self, shim: &Shim, topic: &str, event: &M) {
        if self.told == Told::Containerd {
            shim.publisher.publish(topic, event);
        }
    }

    fn announce(&self, shim: &Shim, request: &CreateTaskRequest) {
        let event = events::TaskCreate {
            container_id: self.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: Some(TaskIo {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
            }),
            checkpoint: request.checkpoint.clone(),
            pid: self.init.pid() as u32,
        };
        self.publish(shim, "/tasks/create", &event);
    }

    /// Init or the exec of that id.
    pub(super) fn process(&self, exec_id: &str) -> Result<Rc<Process>> {
        if exec_id.is_empty() {
            return Ok(Rc::clone(&self.init));
        }
        let found = self.execs.borrow().get(exec_id).cloned();
        found.ok_or_else(|| Error::NotFound(format!("process does not exist {exec_id}")))
    }

    /// All further processes.
    pub(super) fn execs(&self) -> Vec<Rc<Process>> {
        self.execs.borrow().values().cloned().collect()
    }

    /// The container's cgroup, if it has one of version 2.
    pub(super) fn cgroup(&self) -> Result<&Cgroup> {
        self.cgroup
            .get()
            .ok_or_else(|| Error::NotFound("cgroup does not exist".into()))
    }

    /// Registers a further process; it starts later.
    pub(super) fn add_exec(&self, shim: &Shim, request: ExecProcessRequest) -> Result<()> {
        let exec_id = request.exec_id;
        // The id becomes part of file names.
        crate::spawner::container_id(&exec_id)?;
        if self.execs.borrow().contains_key(&exec_id) || exec_id == self.id {
            return Err(Error::AlreadyExists(format!(
                "id {exec_id}: already exists"
            )));
        }
        self.init.check(Operation::Exec)?;
        let document = document::process(request.spec, request.terminal)?;
        let names = Names {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let process = Process::new(exec_id.clone(), names, document);
        self.execs
            .borrow_mut()
            .insert(exec_id.clone(), Rc::new(process));
        let event = events::TaskExecAdded {
            container_id: self.id.clone(),
            exec_id,
        };
        self.publish(shim, "/tasks/exec-added", &event);
        Ok(())
    }

    /// Starts init or a registered exec and returns its pid.
    pub(super) async fn start(self: &Rc<Self>, shim: &Rc<Shim>, exec_id: &str) -> Result<i32> {
        let process = self.process(exec_id)?;
        let _turn = process.turn.lock().await;
        process.check(Operation::Start)?;
        if exec_id.is_empty() {
            self.start_init(shim).await?;
        } else if let Err(error) = self.start_exec(shim, &process).await {
            process.exited(Exit::now(exits::UNKNOWN_STATUS));
            return Err(error);
        }
        Ok(process.pid())
    }

    async fn start_init(&self, shim: &Shim) -> Result<()> {
        let (engine, id) = (self.engine.clone(), self.id.clone());
        shim.blocking(move || engine.start(&id)).await?;
        self.init.set_state(State::Running);
        let event = events::TaskStart {
            container_id: self.id.clone(),
            pid: self.init.pid() as u32,
        };
        self.publish(shim, "/tasks/start", &event);
        Ok(())
    }

    async fn start_exec(self: &Rc<Self>, shim: &Rc<Shim>, process: &Rc<Process>) -> Result<()> {
        if self.ending.get() {
            return Err(Error::FailedPrecondition(
                "cannot exec in a stopped state".into(),
            ));
        }
        self.init.check(Operation::Exec)?;
        let (mut io, streams) = Io::open(&process.names, &self.setting).await?;
        let (engine, id, bundle) = (self.engine.clone(), self.id.clone(), self.bundle.clone());
        let (exec_id, document) = (process.exec_id.clone(), process.document.clone());
        // Until it is claimed, the new process looks like an orphan.
        let launching = shim.reaper.launching();
        let launched = shim
            .blocking(move || engine.exec(&id, &bundle, &exec_id, &document, &streams))
            .await?;
        let pid = launched.pid;
        shim.reaper.claim(pid);
        drop(launching);
        process.launched(launched)?;
        process.set_state(State::Running);
        if let Err(error) = io.attach_terminal(&process.names).await {
            process.kill(libc::SIGKILL)?;
            log::error(format_args!(
                "exec {} of {}: {error}",
                process.exec_id, self.id
            ));
        }
        process.io.replace(io);
        let event = events::TaskExecStarted {
            container_id: self.id.clone(),
            exec_id: process.exec_id.clone(),
            pid: pid as u32,
        };
        self.publish(shim, "/tasks/exec-started", &event);
        let (container, process, shim) = (Rc::clone(self), Rc::clone(process), Rc::clone(shim));
        spawn_local(async move { container.watch_exec(&shim, &process).await });
        Ok(())
    }

    /// Publishes the exit of an exec, after its start.
    async fn watch_exec(&self, shim: &Shim, process: &Process) {
        let Some(pidfd) = process.pidfd() else { return };
        let exit = exits::wait(&pidfd).await;
        shim.reaper.release(process.pid());
        let _turn = process.turn.lock().await;
        if let Some(counter) = self.oom.get() {
            counter.check();
        }
        process.exited(exit);
        self.publish_exit(shim, process, &process.exec_id, exit);
    }

    /// Publishes the exit of init, after its start and after the exits of all execs.
    async fn watch_init(&self, shim: &Shim) {
        let Some(pidfd) = self.init.pidfd() else {
            return;
        };
        let shares_pids = !leads_pid_namespace(self.init.pid());
        let exit = exits::wait(&pidfd).await;
        shim.reaper.release(self.init.pid());
        self.ending.set(true);
        // The kernel ends the processes of a private pid namespace; in a shared one nobody does.
        if shares_pids
            && let Some(cgroup) = self.cgroup.get()
            && let Err(error) = cgroup.kill()
        {
            log::error(format_args!("kill what is left of {}: {error}", self.id));
        }
        for exec in self.execs() {
            let starting = exec.turn.lock().await;
            drop(starting);
            if exec.state() == State::Running {
                exec.wait().await;
            }
        }
        let _turn = self.init.turn.lock().await;
        if let Some(counter) = self.oom.get() {
            counter.check();
        }
        self.init.exited(exit);
        self.publish_exit(shim, &self.init, &self.id, exit);
    }

    fn publish_exit(&self, shim: &Shim, process: &Process, id: &str, exit: Exit) {
        let event = events::TaskExit {
            container_id: self.id.clone(),
            id: id.to_owned(),
            pid: process.pid() as u32,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)),
        };
        self.publish(shim, "/tasks/exit", &event);
    }

    /// Freezes or thaws the container.
    pub(super) async fn freeze(&self, shim: &Shim, frozen: bool) -> Result<()> {
        let _turn = self.init.turn.lock().await;
        self.init.check(if frozen {
            Operation::Pause
        } else {
            Operation::Resume
        })?;
        let (engine, id) = (self.engine.clone(), self.id.clone());
        shim.blocking(move || {
            if frozen {
                engine.pause(&id)
            } else {
                engine.resume(&id)
            }
        })
        .await?;
        let container_id = self.id.clone();
        if frozen {
            self.init.set_state(State::Paused);
            self.publish(shim, "/tasks/paused", &events::TaskPaused { container_id });
        } else {
            self.init.set_state(State::Running);
            self.publish(
                shim,
                "/tasks/resumed",
                &events::TaskResumed { container_id },
            );
        }
        Ok(())
    }

    /// Signals one process, or all of them.
    pub(super) async fn kill(
        &self,
        shim: &Shim,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> Result<()> {
        let process = self.process(exec_id)?;
        if !all || !exec_id.is_empty() {
            return process.kill(signal as i32);
        }
        process.check(Operation::Kill)?;
        let (engine, id) = (self.engine.clone(), self.id.clone());
        shim.blocking(move || engine.kill_all(&id, signal as i32))
            .await
    }

    /// Deletes an exec: nothing but its streams and its entry are left of it.
    pub(super) async fn delete_exec(&self, exec_id: &str) -> Result<DeleteResponse> {
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
        let pid_file = self.bundle.join(format!("{exec_id}.pid"));
        match std::fs::remove_file(&pid_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                log::warn(format_args!("remove {}: {error}", pid_file.display()));
            }
            _ => {}
        }
        Ok(deleted(&process))
    }

    /// Deletes the container. After an error it can be tried again; who tries while another
    /// caller is at it, because its client has lost patience, gets the same answer.
    pub(super) async fn delete(&self, shim: &Shim) -> Result<DeleteResponse> {
        self.end_created().await?;
        let _turn = self.init.turn.lock().await;
        if self.init.state() == State::Deleted {
            return Ok(deleted(&self.init));
        }
        self.init.check(Operation::Delete)?;
        let mut io = self.init.io.take();
        io.drain(DRAIN).await;
        self.remove(shim, false).await?;
        self.init.set_state(State::Deleted);
        let response = deleted(&self.init);
        let event = events::TaskDelete {
            container_id: self.id.clone(),
            pid: response.pid,
            exit_status: response.exit_status,
            exited_at: response.exited_at,
            id: self.id.clone(),
        };
        self.publish(shim, "/tasks/delete", &event);
        Ok(response)
    }

    /// A created init is ended before its container is deleted, so that its exit comes first.
    async fn end_created(&self) -> Result<()> {
        if self.init.state() != State::Created {
            return Ok(());
        }
        match self.init.kill(libc::SIGKILL) {
            Ok(()) | Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        self.init.wait().await;
        Ok(())
    }

    /// Removes what the runtime holds and unmounts the rootfs.
    async fn remove(&self, shim: &Shim, force: bool) -> Result<()> {
        let (engine, id, bundle) = (self.engine.clone(), self.id.clone(), self.bundle.clone());
        shim.blocking(move || {
            engine.delete(&id, force)?;
            mounts::unmount_rootfs(&bundle.join("rootfs"))
        })
        .await
    }
}

fn deleted(process: &Process) -> DeleteResponse {
    let exit = process.exit();
    DeleteResponse {
        pid: process.pid() as u32,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map(|exit| timestamp(exit.at)),
    }
}

/// The version 2 cgroup of a process; `None` if that is the root, which is nobody's own.
fn open_cgroup(pid: i32) -> Result<Option<Cgroup>> {
    let file = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&file).context(|| format!("read {file}"))?;
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::")) else {
        return Ok(None);
    };
    if path == "/" {
        return Ok(None);
    }
    let open = || Cgroup::open(&CgroupPath::resolve(Some(path), "")?);
    match open() {
        Ok(cgroup) => Ok(Some(cgroup)),
        Err(error) => {
            // Signals, pause and delete go through the runtime; metrics and OOM events do not.
            log::warn(format_args!(
                "no metrics for process {pid}: cgroup {path}: {error}"
            ));
            Ok(None)
        }
    }
}

/// True if the process is pid 1 of its pid namespace, whose end is the end of all in it.
fn leads_pid_namespace(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        numbers.and_then(|numbers| numbers.split_whitespace().last()) == Some("1")
    })
}
