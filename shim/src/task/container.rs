//! One container: how it is made, started, watched and taken away.

mod checkpoint;
mod deletion;
mod exec;
mod restore;
mod successor;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prost::Name;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_local;
use xebec_proto::events::{self, TaskIo};
use xebec_proto::task::CreateTaskRequest;
use xebec_runtime::cgroup::{Cgroup, CgroupPath};

use super::inherit::ContainerRecord;
use super::keys;
use super::process::{Process, timestamp};
use super::record::Record;
use super::service::Shim;
use super::state::{Operation, State};
use super::stats::unreadable;
use super::timings::{Stopwatch, Timings};
use crate::engine::Engine;
use crate::error::{Context, Error, Result};
use crate::events::oom::Counter;
use crate::io::{Io, Names, Setting};
use crate::link::Hold;
use crate::options::{Options, annotations_for_us};
use crate::supervisor::Exit;
use crate::supervisor::message::{Change, Origin};
use crate::{log, mounts, trace};

/// How long a delete waits for output that is still on its way.
const DRAIN: Duration = Duration::from_secs(10);

/// Who hears of what happens to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// How long its start took, if this worker has made it.
    pub(super) timings: Cell<Option<Timings>>,
    setting: Setting,
    /// Path of its cgroup of version 2, if it has one of its own.
    cgroup: OnceCell<String>,
    oom: OnceCell<Counter>,
    told: Told,
    /// The end of init is not the end of all in its pid namespace.
    shares_pids: Cell<bool>,
    /// Init is dead, though its exit may not be published yet: nothing may be started.
    ending: Cell<bool>,
    /// What a start makes init of, if it executes no program.
    restore: RefCell<Option<Origin>>,
    /// CRIU is at it, and it is frozen for that.
    dumping: Cell<bool>,
}

impl Container {
    /// Creates a container as `request` says. On an error nothing is left behind.
    pub(super) async fn create(
        shim: &Rc<Shim>,
        request: &CreateTaskRequest,
    ) -> Result<Rc<Container>> {
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
        let mut watch = Stopwatch::start();
        let bundle = PathBuf::from(&request.bundle);
        let annotations = annotations_for_us(&bundle)?;
        let options = options
            .with_environment()
            .with_annotations(&bundle, &annotations)?;
        shim.spans
            .use_option("TracesEndpoint", &options.traces_endpoint)?;
        let names = Names {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let init = Process::new(String::new(), names, Vec::new());
        let container = Container::plan(shim, &request.id, bundle, init, &options, told);
        let record = Record {
            options,
            socket: shim.socket.clone(),
        };
        record.write(&container.bundle)?;
        let origin = container
            .origin(shim, request, (&record.options, &annotations))
            .await?;

        let kept = vec![
            container.keep(),
            container.init.keep_launching(&container.id),
        ];
        shim.link.commit(kept, Vec::new());
        let timings = match container.make(shim, request, origin.is_some()).await {
            Ok(timings) => timings,
            Err(error) => {
                container.undo(shim).await;
                return Err(error);
            }
        };
        let create = watch.lap("create").micros();
        let timings = Timings { create, ..timings };
        container.timings.set(Some(timings));
        container.restore.replace(origin);
        container.announce(shim, request);
        let container = Rc::new(container);
        if container.init.pid() != 0 {
            container.watch(shim, &container.init);
        }
        Ok(container)
    }

    fn plan(
        shim: &Shim,
        id: &str,
        bundle: PathBuf,
        init: Process,
        options: &Options,
        told: Told,
    ) -> Container {
        let engine = Engine::new(options, &shim.namespace, Some(Arc::clone(&shim.link)));
        let setting = Setting {
            namespace: shim.namespace.clone(),
            id: id.to_owned(),
            bundle: bundle.clone(),
            overflow: options.overflow(),
            owner: (options.io_uid, options.io_gid),
            console_directory: engine
                .wants_console_path()
                .then(|| shim.socket.parent().unwrap_or(Path::new("/run")).to_owned()),
            link: Arc::clone(&shim.link),
            exits: Rc::clone(&shim.exits),
            ends: Rc::clone(&shim.ends),
        };
        Container {
            id: id.to_owned(),
            bundle,
            engine,
            init: Rc::new(init),
            execs: RefCell::default(),
            timings: Cell::default(),
            setting,
            cgroup: OnceCell::new(),
            oom: OnceCell::new(),
            told,
            shares_pids: Cell::new(false),
            ending: Cell::new(false),
            restore: RefCell::default(),
            dumping: Cell::new(false),
        }
    }

    /// Keeps what concerns the container as a whole.
    fn keep(&self) -> Change {
        let record = ContainerRecord {
            bundle: self.bundle.clone(),
            cgroup: self.cgroup.get().cloned(),
            shares_pids: self.shares_pids.get(),
            told: self.told,
            restore: self.restore.borrow().clone(),
            dumping: self.dumping.get(),
        };
        Change::Put {
            key: keys::container(&self.id),
            record: serde_json::json!(record).to_string(),
            fds: None,
        }
    }

    /// Opens the streams, mounts the rootfs and lets the runtime create init. What comes from a
    /// checkpoint or a template gets its init, and so its streams, at its start: until then whoever asked for it may
    /// still change the rootfs.
    async fn make(
        &self,
        shim: &Shim,
        request: &CreateTaskRequest,
        is_restored: bool,
    ) -> Result<Timings> {
        let mut watch = Stopwatch::start();
        if is_restored {
            self.mount(shim, request).await?;
            return Ok(Timings {
                mount: watch.lap("mount").micros(),
                ..Timings::default()
            });
        }
        let (io, streams) = Io::open(&self.init.names, &self.setting, "").await?;
        let opened = watch.lap("streams");
        self.mount(shim, request).await?;
        let mount = watch.lap("mount");
        let hold = self.hold(shim);
        let pid = self.engine.create(&self.id, &self.bundle, streams).await?;
        let launch = watch.lap("launch");
        self.settle(shim, pid, hold, io).await?;
        let console = watch.lap("console");
        trace::note(&[opened, mount, launch, console]);
        Ok(Timings {
            streams: opened.micros(),
            mount: mount.micros(),
            launch: launch.micros(),
            console: console.micros(),
            ..Timings::default()
        })
    }

    async fn mount(&self, shim: &Shim, request: &CreateTaskRequest) -> Result<()> {
        let (target, rootfs) = (self.bundle.join("rootfs"), request.rootfs.clone());
        shim.blocking(move || mounts::mount_rootfs(&target, &rootfs))
            .await
    }

    /// Takes the process that the runtime has made for init, and its streams.
    async fn settle(&self, shim: &Shim, pid: i32, hold: Option<Hold>, mut io: Io) -> Result<()> {
        self.init.launched(pid);
        shim.link.commit_soon(vec![Change::Watch { pid }]);
        drop(hold);
        io.attach_terminal(&self.init.names, &self.setting, "")
            .await?;
        self.init.io.replace(io);
        self.look_at_init(shim, pid)
    }

    /// Finds out in which namespace and cgroup init is.
    fn look_at_init(&self, shim: &Shim, pid: i32) -> Result<()> {
        self.shares_pids.set(!leads_pid_namespace(pid));
        match cgroup_of(pid)? {
            Some(path) => self.watch_cgroup(shim, path, 0),
            None => Ok(()),
        }
    }

    /// To be held until a new process is watched.
    fn hold(&self, shim: &Shim) -> Option<Hold> {
        self.engine.leaves_orphans().then(|| shim.link.hold())
    }

    /// Watches the cgroup at `path` for out-of-memory kills, of which `seen` are told.
    fn watch_cgroup(&self, shim: &Shim, path: String, seen: u64) -> Result<()> {
        let full = match open_cgroup(&path) {
            Ok(cgroup) => cgroup.full_path().to_owned(),
            Err(error) => {
                // Signals, pause and delete go through the runtime; metrics and OOM events do not.
                log::with(&[("id", &self.id)])
                    .warn(format_args!("no metrics: cgroup {path}: {error}"));
                return Ok(());
            }
        };
        let counter = Counter::watch(&self.id, &full, seen, &shim.publisher)
            .context(|| format!("watch {}", full.display()))?;
        if let Some(counter) = counter {
            // Both cells are set here alone.
            let _ = self.oom.set(counter);
        }
        let _ = self.cgroup.set(path);
        Ok(())
    }

    /// Takes back a creation that failed half-way.
    async fn undo(&self, shim: &Shim) {
        if let Err(error) = self.remove(shim, true).await {
            log::with(&[("id", &self.id)]).error(format_args!("clean up: {error}"));
        }
        let mut changes = vec![Change::Drop {
            prefix: keys::container(&self.id),
        }];
        let pid = self.init.pid();
        if pid != 0 {
            shim.exits.wait(pid).await;
            shim.exits.forget(pid);
            changes.push(Change::Forget { pid });
        }
        shim.link.commit(changes, Vec::new());
    }

    /// True for one that is the shim's own.
    pub(super) fn is_told_to_nobody(&self) -> bool {
        self.told == Told::Nobody
    }

    /// Commits changes, and tells of them whoever hears of this container.
    fn publish<M: Name>(&self, shim: &Shim, changes: Vec<Change>, topic: &str, event: &M) {
        match self.told {
            Told::Containerd => shim.publisher.publish(changes, topic, event),
            Told::Nobody => shim.link.commit(changes, Vec::new()),
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
        self.publish(shim, self.keep_settled(), "/tasks/create", &event);
    }

    /// Keeps the container and init as they are now, and has its streams move.
    fn keep_settled(&self) -> Vec<Change> {
        let mut changes = vec![self.keep(), self.init.keep(&self.id)];
        let names = &self.init.names;
        let streams = [&names.stdin, &names.stdout, &names.stderr];
        if streams.iter().any(|name| !name.is_empty()) {
            let prefix = keys::process(&self.id, "");
            changes.push(Change::Release { prefix });
        }
        changes
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

    /// The pids of init and of the execs that run.
    pub(super) fn running(&self) -> Vec<i32> {
        let runs = |process: &Rc<Process>| process.exit().is_none() && process.pid() != 0;
        let mut processes = self.execs();
        processes.insert(0, Rc::clone(&self.init));
        let running = processes.iter().filter(|process| runs(process));
        running.map(|process| process.pid()).collect()
    }

    /// Path of its cgroup, if it has one of its own of version 2.
    pub(super) fn cgroup_path(&self) -> Option<&str> {
        self.cgroup.get().map(String::as_str)
    }

    /// How many of its processes were killed for lack of memory, if anybody counts.
    pub(super) fn oom_kills(&self) -> Option<u64> {
        self.oom.get().map(Counter::kills)
    }

    /// The container's cgroup, if it has one of version 2. It is opened for each use, which costs
    /// less than a descriptor for each container.
    pub(super) fn cgroup(&self) -> Result<Cgroup> {
        let absent = || Error::NotFound("cgroup does not exist".into());
        open_cgroup(self.cgroup.get().ok_or_else(absent)?).map_err(unreadable)
    }

    /// Starts init or a registered exec and returns its pid.
    pub(super) async fn start(self: &Rc<Self>, shim: &Rc<Shim>, exec_id: &str) -> Result<i32> {
        let process = self.process(exec_id)?;
        let _turn = process.turn.lock().await;
        if process.was_started_before() {
            return Ok(process.pid());
        }
        process.check(Operation::Start)?;
        let restore = self.restore.borrow().clone();
        if let Some(origin) = restore.filter(|_| exec_id.is_empty()) {
            self.restore(shim, &origin).await?;
        } else if exec_id.is_empty() {
            self.start_init(shim).await?;
        } else if let Err(error) = self.start_exec(shim, &process).await {
            self.give_up(shim, &process);
            return Err(error);
        }
        Ok(process.pid())
    }

    async fn start_init(&self, shim: &Shim) -> Result<()> {
        let mut watch = Stopwatch::start();
        let (engine, id) = (self.engine.clone(), self.id.clone());
        shim.blocking(move || engine.start(&id)).await?;
        let start = watch.lap("start");
        trace::note(&[start]);
        self.announce_start(shim);
        self.took(start.micros());
        Ok(())
    }

    /// Notes how long the start took, in microseconds.
    fn took(&self, start: u32) {
        if let Some(timings) = self.timings.get() {
            let timings = Timings { start, ..timings };
            self.timings.set(Some(timings));
            timings.log(&self.id);
        }
    }

    fn announce_start(&self, shim: &Shim) {
        self.init.set_state(State::Running);
        let event = events::TaskStart {
            container_id: self.id.clone(),
            pid: self.init.pid() as u32,
        };
        self.publish(shim, self.keep_settled(), "/tasks/start", &event);
    }

    /// Waits for the end of a process in the background.
    fn watch(self: &Rc<Self>, shim: &Rc<Shim>, process: &Rc<Process>) {
        let (container, process, shim) = (Rc::clone(self), Rc::clone(process), Rc::clone(shim));
        spawn_local(async move {
            let exit = shim.exits.wait(process.pid()).await;
            if process.exec_id.is_empty() {
                container.end_all().await;
            }
            let _turn = process.turn.lock().await;
            container.publish_exit(&shim, &process, exit);
        });
    }

    /// Init is dead: waits for the ends of all execs, which come before its own.
    async fn end_all(&self) {
        self.ending.set(true);
        // The kernel ends the processes of a private pid namespace; in a shared one nobody does.
        if self.shares_pids.get()
            && self.cgroup.get().is_some()
            && let Err(error) = self
                .cgroup()
                .and_then(|cgroup| cgroup.kill().map_err(unreadable))
        {
            log::with(&[("id", &self.id)]).error(format_args!("kill what is left: {error}"));
        }
        for exec in self.execs() {
            let starting = exec.turn.lock().await;
            drop(starting);
            if exec.state() == State::Running {
                exec.wait().await;
            }
        }
    }

    /// Publishes an exit, after the start of the process.
    fn publish_exit(&self, shim: &Shim, process: &Process, exit: Exit) {
        if let Some(counter) = self.oom.get() {
            counter.check();
        }
        process.exited(exit);
        let pid = process.pid();
        shim.exits.forget(pid);
        let id = if process.exec_id.is_empty() {
            &self.id
        } else {
            &process.exec_id
        };
        let event = events::TaskExit {
            container_id: self.id.clone(),
            id: id.clone(),
            pid: pid as u32,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)),
        };
        let changes = vec![process.keep(&self.id), Change::Forget { pid }];
        self.publish(shim, changes, "/tasks/exit", &event);
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
            let kept = vec![self.init.keep(&self.id)];
            let event = events::TaskPaused { container_id };
            self.publish(shim, kept, "/tasks/paused", &event);
        } else {
            self.init.set_state(State::Running);
            let kept = vec![self.init.keep(&self.id)];
            let event = events::TaskResumed { container_id };
            self.publish(shim, kept, "/tasks/resumed", &event);
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
            process.refuse_if_ended()?;
            return process.kill(signal as i32);
        }
        process.check(Operation::Kill)?;
        process.refuse_if_unborn()?;
        let (engine, id) = (self.engine.clone(), self.id.clone());
        shim.blocking(move || engine.kill_all(&id, signal as i32))
            .await
    }
}

/// The path of a process' cgroup of version 2; `None` if that is the root, which is nobody's own.
fn cgroup_of(pid: i32) -> Result<Option<String>> {
    let file = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&file).context(|| format!("read {file}"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    Ok(path.filter(|path| *path != "/").map(str::to_owned))
}

fn open_cgroup(path: &str) -> xebec_runtime::cgroup::Result<Cgroup> {
    Cgroup::open(&CgroupPath::resolve(Some(path), "")?)
}

/// True if the process is pid 1 of its pid namespace, whose end is the end of all in it.
fn leads_pid_namespace(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        numbers.and_then(|numbers| numbers.split_whitespace().last()) == Some("1")
    })
}
