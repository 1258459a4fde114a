//! The Task service, versions 2 and 3: decodes each request and finds whom it concerns.

use std::cell::RefCell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use prost::Message;
use tokio::sync::Notify;
use xebec_proto::runc_options::ProcessDetails;
use xebec_proto::task::{
    CheckpointTaskRequest, CloseIoRequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use xebec_proto::task_types::ProcessInfo;

use super::calls::{self, Answered, Calls};
use super::container::Container;
use super::document;
use super::dump::{self, Dump};
use super::exits::Exits;
use super::inherit::Inheritance;
use super::process::timestamp;
use super::sandbox::{self, Sandboxes};
use super::state::Operation;
use super::stats;
use crate::blocking;
use crate::error::{Error, Result};
use crate::events::Publisher;
use crate::io::Ends;
use crate::link::Link;
use crate::log;
use crate::spans::Spans;
use crate::supervisor::message::Change;
use crate::ttrpc::Service;

/// What all containers of one daemon share.
#[derive(Debug)]
pub struct Shim {
    /// containerd namespace.
    pub namespace: String,
    /// The socket that this shim serves.
    pub socket: PathBuf,
    /// Takes events.
    pub publisher: Publisher,
    /// Pid of the supervisor, which containerd knows as the shim.
    pub supervisor: u32,
    /// Tells the ends of processes.
    pub exits: Rc<Exits>,
    /// Tells the ends of streams.
    pub ends: Rc<Ends>,
    /// Keeps records and starts processes.
    pub link: Arc<Link>,
    /// Takes the spans of calls.
    pub spans: Rc<Spans>,
    /// Told when the shim is to end.
    pub shutdown: Notify,
}

impl Shim {
    /// Has the shim end once the running calls have their answers.
    pub fn end(&self) {
        self.link.ending();
        self.shutdown.notify_one();
    }

    /// Runs `work`, which may block.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        match blocking::run(work).await {
            Ok(result) => result,
            Err(error) => Err(Error::Io {
                what: "a blocking operation".into(),
                source: error.into(),
            }),
        }
    }
}

/// The containers of one daemon.
#[derive(Debug)]
pub struct TaskService {
    shim: Rc<Shim>,
    containers: RefCell<BTreeMap<String, Rc<Container>>>,
    /// Ids that are being created.
    creating: RefCell<BTreeSet<String>>,
    sandboxes: Sandboxes,
    calls: Calls,
    since: Instant,
}

impl Service for TaskService {
    async fn call(self: Rc<Self>, service: &str, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        if service == dump::SERVICE {
            return self.dump(method).await;
        }
        let asked = Instant::now();
        let result = self.dispatch(service, method, payload).await;
        let (id, exec_id) = calls::subject(method, payload);
        let answered = Answered {
            service,
            method: calls::clipped(method),
            id: calls::clipped(&id),
            exec_id: calls::clipped(&exec_id),
            asked,
            took: asked.elapsed(),
            error: result.as_ref().err(),
        };
        self.calls.note(&answered);
        self.shim.spans.record(&answered);
        result
    }

    fn only_waits(&self, method: &str) -> bool {
        matches!(method, "Wait" | "WaitSandbox" | dump::DUMP)
    }

    /// A creation that was under way has been taken back, a start or deletion goes on where it was,
    /// and the others change nothing or the same again.
    fn is_repeatable(&self, method: &str) -> bool {
        !matches!(
            method,
            "Exec" | "Kill" | "Pause" | "Resume" | "Checkpoint" | "CreateSandbox" | "StartSandbox"
        )
    }
}

impl TaskService {
    /// A service without containers.
    pub fn new(shim: Rc<Shim>) -> TaskService {
        TaskService {
            sandboxes: Sandboxes::new(Rc::clone(&shim)),
            shim,
            containers: RefCell::default(),
            creating: RefCell::default(),
            calls: Calls::default(),
            since: Instant::now(),
        }
    }

    /// Has the method that is meant answer a call.
    async fn dispatch(&self, service: &str, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        if service == sandbox::SERVICE {
            return self
                .sandboxes
                .call(method, payload, !self.has_no_tasks())
                .await;
        }
        if !matches!(
            service,
            "containerd.task.v3.Task" | "containerd.task.v2.Task"
        ) {
            return Err(Error::Unimplemented(format!("service {service}")));
        }
        match method {
            "Create" => reply(self.create(&decode(payload)?).await),
            "Start" => reply(self.start(&decode(payload)?).await),
            "Delete" => reply(self.delete(&decode(payload)?).await),
            "State" => reply(self.state(&decode(payload)?)),
            "Wait" => reply(self.wait(&decode(payload)?).await),
            "Exec" => self.exec(decode(payload)?),
            "Kill" => self.kill(&decode(payload)?).await,
            "Pids" => reply(self.pids(&decode(payload)?)),
            "Pause" => {
                let PauseRequest { id } = decode(payload)?;
                empty(self.container(&id)?.freeze(&self.shim, true).await)
            }
            "Resume" => {
                let ResumeRequest { id } = decode(payload)?;
                empty(self.container(&id)?.freeze(&self.shim, false).await)
            }
            "ResizePty" => self.resize(&decode(payload)?),
            "CloseIO" => self.close_io(&decode(payload)?),
            "Update" => self.update(decode(payload)?).await,
            "Stats" => reply(self.stats(&decode(payload)?)),
            "Connect" => reply(Ok(self.connect(&decode(payload)?))),
            "Shutdown" => self.shutdown(&decode(payload)?),
            "Checkpoint" => {
                let request: CheckpointTaskRequest = decode(payload)?;
                let container = self.container(&request.id)?;
                empty(container.checkpoint(&self.shim, &request).await)
            }
            _ => Err(Error::Unimplemented(format!("method {method}"))),
        }
    }

    /// The debug service.
    async fn dump(&self, method: &str) -> Result<Vec<u8>> {
        if method != dump::DUMP {
            return Err(Error::Unimplemented(format!("method {method}")));
        }
        // Before the supervisor's, which is older and says so.
        let age_ms = self.since.elapsed().as_millis();
        let (insight, streams) = self.shim.link.inquire().await?;
        let answer = Dump {
            version: env!("CARGO_PKG_VERSION"),
            namespace: &self.shim.namespace,
            socket: &self.shim.socket,
            supervisor: dump::Supervisor {
                pid: self.shim.supervisor,
                insight,
            },
            worker: dump::Worker {
                pid: std::process::id(),
                age_ms,
            },
            creating: self.creating.borrow().iter().cloned().collect(),
            sandbox: self.sandboxes.holder().map(|holder| holder.view(&streams)),
            containers: self
                .containers
                .borrow()
                .values()
                .map(|container| container.view(&streams))
                .collect(),
            calls: &self.calls,
        }
        .encode();
        crate::sys::trim_heap();
        answer
    }

    fn has_no_tasks(&self) -> bool {
        self.containers.borrow().is_empty() && self.creating.borrow().is_empty()
    }

    /// Takes over what earlier workers have left; `children` are the processes that were
    /// watched for them.
    pub async fn inherit(&self, inheritance: Inheritance, children: &[i32]) {
        let (sandbox, containers) = inheritance.open();
        if let Some(record) = sandbox {
            self.sandboxes.inherit(&record);
        }
        let mut known = BTreeSet::new();
        for (id, inherited) in containers {
            match Container::inherit(&self.shim, &id, inherited).await {
                Ok(Some(container)) if container.is_told_to_nobody() => {
                    known.extend(container.children());
                    self.sandboxes.hold(container);
                }
                Ok(Some(container)) => {
                    known.extend(container.children());
                    self.containers.borrow_mut().insert(id, container);
                }
                Ok(None) => {}
                Err(error) => {
                    log::with(&[("id", &id)]).error(format_args!("take over: {error}"));
                }
            }
        }
        for pid in children.iter().filter(|pid| !known.contains(pid)) {
            // Launched, but the earlier worker did not come to know.
            if let Err(error) = crate::sys::signal(*pid, libc::SIGKILL) {
                log::debug(format_args!("end process {pid}: {error}"));
            }
            let change = Change::Forget { pid: *pid };
            self.shim.link.commit(vec![change], Vec::new());
        }
    }

    fn container(&self, id: &str) -> Result<Rc<Container>> {
        let found = self.containers.borrow().get(id).cloned();
        found.ok_or_else(|| Error::NotFound("container not created".into()))
    }

    async fn create(&self, request: &CreateTaskRequest) -> Result<CreateTaskResponse> {
        let id = &request.id;
        crate::link::container_id(id)?;
        let known = self.containers.borrow().contains_key(id);
        if known || !self.creating.borrow_mut().insert(id.clone()) {
            return Err(Error::AlreadyExists(format!(
                "container {id} already exists"
            )));
        }
        let created = match self.sandboxes.give(&request.bundle) {
            Ok(()) => Container::create(&self.shim, request).await,
            Err(error) => Err(error),
        };
        self.creating.borrow_mut().remove(id);
        let container = created?;
        let pid = container.init.pid() as u32;
        self.containers.borrow_mut().insert(id.clone(), container);
        Ok(CreateTaskResponse { pid })
    }

    async fn start(&self, request: &StartRequest) -> Result<StartResponse> {
        let container = self.container(&request.id)?;
        let pid = container.start(&self.shim, &request.exec_id).await?;
        Ok(StartResponse { pid: pid as u32 })
    }

    async fn delete(&self, request: &DeleteRequest) -> Result<DeleteResponse> {
        let container = self.container(&request.id)?;
        if !request.exec_id.is_empty() {
            return container.delete_exec(&self.shim, &request.exec_id).await;
        }
        let response = container.delete(&self.shim).await?;
        // Only what is gone for good leaves the map: a delete that failed can be repeated. One
        // that two callers waited for was followed by a new container of that id, perhaps.
        let mut containers = self.containers.borrow_mut();
        if let Entry::Occupied(entry) = containers.entry(request.id.clone())
            && Rc::ptr_eq(entry.get(), &container)
        {
            entry.remove();
        }
        drop(containers);
        crate::sys::trim_heap();
        Ok(response)
    }

    fn state(&self, request: &StateRequest) -> Result<StateResponse> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        Ok(process.describe(&container.id, &container.bundle.to_string_lossy()))
    }

    async fn wait(&self, request: &WaitRequest) -> Result<WaitResponse> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        let exit = process.wait().await;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)),
        })
    }

    fn exec(&self, request: ExecProcessRequest) -> Result<Vec<u8>> {
        let container = self.container(&request.id)?;
        empty(container.add_exec(&self.shim, request))
    }

    async fn kill(&self, request: &KillRequest) -> Result<Vec<u8>> {
        let container = self.container(&request.id)?;
        let KillRequest {
            exec_id,
            signal,
            all,
            ..
        } = request;
        empty(container.kill(&self.shim, exec_id, *signal, *all).await)
    }

    /// An ended init is listed until it is deleted: a restarted containerd takes a task without
    /// processes for one that has never been, and its exit would be lost.
    fn pids(&self, request: &PidsRequest) -> Result<PidsResponse> {
        let container = self.container(&request.id)?;
        let execs = container.execs();
        let details = |pid: i32| {
            let exec = execs.iter().find(|exec| exec.pid() == pid)?;
            Some(xebec_proto::pack(&ProcessDetails {
                exec_id: exec.exec_id.clone(),
            }))
        };
        let cgroup = container.cgroup();
        let pids = cgroup.and_then(|cgroup| cgroup.pids(true).map_err(stats::unreadable));
        let mut pids = match pids {
            Ok(pids) => pids,
            // The cgroup may have ended with init.
            Err(_) if container.init.exit().is_some() => Vec::new(),
            // It has none of its own: those that the shim has started are known all the same.
            Err(Error::NotFound(_)) => container.running(),
            Err(error) => return Err(error),
        };
        if pids.is_empty() {
            // containerd takes a task without processes for a leak when it comes back, kills the
            // shim, and reports an exit of its own beside the one that the shim has to tell.
            pids.push(container.init.pid());
        }
        let processes = pids.into_iter().map(|pid| ProcessInfo {
            pid: pid as u32,
            info: details(pid),
        });
        Ok(PidsResponse {
            processes: processes.collect(),
        })
    }

    fn resize(&self, request: &ResizePtyRequest) -> Result<Vec<u8>> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        process.io.borrow().resize(request.width, request.height);
        empty(Ok(()))
    }

    fn close_io(&self, request: &CloseIoRequest) -> Result<Vec<u8>> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        if request.stdin {
            process.io.borrow().close_stdin();
        }
        empty(Ok(()))
    }

    async fn update(&self, request: UpdateTaskRequest) -> Result<Vec<u8>> {
        let container = self.container(&request.id)?;
        container.init.check(Operation::Update)?;
        if request.resources.is_none() && !request.annotations.is_empty() {
            // Annotations are notes for the runtime, and ours acts on none.
            return empty(Ok(()));
        }
        let resources = document::of(request.resources, "LinuxResources")?;
        let (engine, id) = (container.engine.clone(), request.id);
        empty(
            self.shim
                .blocking(move || engine.update(&id, &resources))
                .await,
        )
    }

    fn stats(&self, request: &StatsRequest) -> Result<StatsResponse> {
        let container = self.container(&request.id)?;
        let stats = container.cgroup()?.stats().map_err(stats::unreadable)?;
        Ok(StatsResponse {
            stats: Some(xebec_proto::pack(&stats::metrics(&stats))),
        })
    }

    fn connect(&self, request: &ConnectRequest) -> ConnectResponse {
        let pid = self
            .container(&request.id)
            .map_or(0, |container| container.init.pid());
        ConnectResponse {
            shim_pid: self.shim.supervisor,
            task_pid: pid as u32,
            version: String::new(),
        }
    }

    fn shutdown(&self, _: &ShutdownRequest) -> Result<Vec<u8>> {
        // Others of the pod still live here.
        if self.has_no_tasks() && self.sandboxes.is_empty() {
            self.shim.end();
        }
        empty(Ok(()))
    }
}

pub(super) fn decode<M: Message + Default>(payload: &[u8]) -> Result<M> {
    M::decode(payload).map_err(|error| Error::InvalidArgument(format!("request: {error}")))
}

pub(super) fn reply<M: Message>(result: Result<M>) -> Result<Vec<u8>> {
    result.map(|message| message.encode_to_vec())
}

/// The encoding of `google.protobuf.Empty` is no bytes at all.
pub(super) fn empty(result: Result<()>) -> Result<Vec<u8>> {
    result.map(|()| Vec::new())
}
