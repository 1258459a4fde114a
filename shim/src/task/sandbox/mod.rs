//! The Sandbox service: containerd's `sandboxer = "shim"`. A pod is held by a process of ours that
//! only waits, a container like any other but for its root file system, which is this program.
//! containerd hears of it by this service alone, not by events of tasks.

mod files;
mod spec;

use std::cell::{OnceCell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use prost::Message;
use prost_types::Any;
use serde::{Deserialize, Serialize};
use xebec_proto::sandbox::{
    CreateSandboxRequest, PingRequest, PlatformRequest, PlatformResponse, PodSandboxConfig,
    SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse,
    ShutdownSandboxRequest, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest,
    UpdateSandboxRequest, WaitSandboxRequest, WaitSandboxResponse,
};
use xebec_proto::task::CreateTaskRequest;
use xebec_proto::types::{Metric, Platform};

use super::container::{Container, Told};
use super::document;
use super::keys;
use super::process::timestamp;
use super::record::Record;
use super::service::{Shim, decode, empty, reply};
use super::state::State;
use super::stats;
use crate::error::{Context, Error, Result};
use crate::log;
use crate::options::Options;
use crate::supervisor::message::Change;
pub(crate) use files::unmount;

/// Name of the service.
pub(super) const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";
/// CRI's description of a pod, as the type of the options of a sandbox.
const POD: &str = "runtime.v1.PodSandboxConfig";
/// How long the waiting process may take to obey where the request says nothing.
const GRACE: Duration = Duration::from_secs(10);

/// The sandbox of this shim, if it is to make one.
#[derive(Debug)]
pub(super) struct Sandboxes {
    shim: Rc<Shim>,
    current: RefCell<Option<Rc<Sandbox>>>,
}

/// A pod.
#[derive(Debug)]
struct Sandbox {
    id: String,
    bundle: PathBuf,
    pod: PodSandboxConfig,
    options: Options,
    created: SystemTime,
    holder: OnceCell<Rc<Container>>,
}

impl Sandboxes {
    pub(super) fn new(shim: Rc<Shim>) -> Sandboxes {
        Sandboxes {
            shim,
            current: RefCell::default(),
        }
    }

    /// True if no sandbox keeps the shim alive.
    pub(super) fn is_empty(&self) -> bool {
        self.current.borrow().is_none()
    }

    /// Gives the container in `bundle` what it shares with its sandbox, if there is one.
    pub(super) fn give(&self, bundle: &str) -> Result<()> {
        match &*self.current.borrow() {
            Some(sandbox) => files::give(&sandbox.bundle, &sandbox.pod, Path::new(bundle)),
            None => Ok(()),
        }
    }

    /// Handles one call; `has_tasks` if containers are left in this shim.
    pub(super) async fn call(
        &self,
        method: &str,
        payload: &[u8],
        has_tasks: bool,
    ) -> Result<Vec<u8>> {
        match method {
            "CreateSandbox" => empty(self.create(decode(payload)?).await),
            "StartSandbox" => reply(self.start(&decode(payload)?).await),
            "Platform" => reply(self.platform(&decode(payload)?)),
            "StopSandbox" => empty(self.stop(&decode(payload)?).await),
            "WaitSandbox" => reply(self.wait(&decode(payload)?).await),
            "UpdateSandbox" => empty(self.update(decode(payload)?).await),
            "SandboxStatus" => reply(self.status(&decode(payload)?)),
            "PingSandbox" => {
                let PingRequest { sandbox_id } = decode(payload)?;
                empty(self.sandbox(&sandbox_id).map(drop))
            }
            "ShutdownSandbox" => empty(self.shutdown(&decode(payload)?, has_tasks).await),
            "SandboxMetrics" => reply(self.metrics(&decode(payload)?)),
            _ => Err(Error::Unimplemented(format!("method {method}"))),
        }
    }

    fn sandbox(&self, id: &str) -> Result<Rc<Sandbox>> {
        let current = self.current.borrow().clone();
        current
            .filter(|sandbox| sandbox.id == id)
            .ok_or_else(|| Error::NotFound(format!("sandbox {id} does not exist")))
    }

    async fn create(&self, request: CreateSandboxRequest) -> Result<()> {
        crate::link::container_id(&request.sandbox_id)?;
        if !self.is_empty() {
            let text = format!("sandbox {}: this shim has one", request.sandbox_id);
            return Err(Error::AlreadyExists(text));
        }
        if !request.rootfs.is_empty() {
            let text = "a sandbox has a root file system of its own and takes no other";
            return Err(Error::InvalidArgument(text.into()));
        }
        let bundle = PathBuf::from(&request.bundle_path);
        let sandbox = Rc::new(Sandbox {
            id: request.sandbox_id,
            pod: pod(request.options.as_ref())?,
            options: Record::read(&bundle)?.unwrap_or_default().options,
            bundle: bundle.clone(),
            created: SystemTime::now(),
            holder: OnceCell::new(),
        });
        let program = std::env::current_exe().context(|| "find the shim's program".into())?;
        let config = spec::config(&spec::Facts {
            id: &sandbox.id,
            pod: &sandbox.pod,
            network: &request.netns_path,
            program: &program,
            systemd_cgroup: sandbox.options.systemd_cgroup,
        });
        // From here on a second creation is refused.
        self.current.replace(Some(Rc::clone(&sandbox)));
        let pod = sandbox.pod.clone();
        let made = self.shim.blocking(move || {
            let path = bundle.join("config.json");
            std::fs::write(&path, config.to_string())
                .context(|| format!("write {}", path.display()))?;
            files::make(&bundle, &pod)
        });
        if let Err(error) = made.await {
            self.current.take();
            return Err(error);
        }
        self.shim.link.commit(vec![sandbox.keep()], Vec::new());
        Ok(())
    }

    /// Takes over the sandbox of an earlier worker.
    pub(super) fn inherit(&self, record: &str) {
        match Sandbox::inherited(record) {
            Ok(sandbox) => drop(self.current.replace(Some(Rc::new(sandbox)))),
            Err(error) => log::error(format_args!("take over the sandbox: {error}")),
        }
    }

    /// The container that holds the sandbox, once there is one.
    pub(super) fn holder(&self) -> Option<Rc<Container>> {
        self.current.borrow().as_ref()?.holder.get().cloned()
    }

    /// Takes over the process that holds the sandbox of an earlier worker.
    pub(super) fn hold(&self, container: Rc<Container>) {
        let current = self.current.borrow();
        let taken = current
            .as_ref()
            .map(|sandbox| sandbox.holder.set(container));
        if !matches!(taken, Some(Ok(()))) {
            log::error(format_args!("an earlier worker's sandbox has no record"));
        }
    }

    async fn start(&self, request: &StartSandboxRequest) -> Result<StartSandboxResponse> {
        let sandbox = self.sandbox(&request.sandbox_id)?;
        if sandbox.holder.get().is_some() {
            let text = format!("sandbox {} is started already", sandbox.id);
            return Err(Error::FailedPrecondition(text));
        }
        let task = CreateTaskRequest {
            id: sandbox.id.clone(),
            bundle: sandbox.bundle.to_string_lossy().into_owned(),
            ..CreateTaskRequest::default()
        };
        let options = sandbox.options.clone();
        let holder = Container::create_with(&self.shim, &task, options, Told::Nobody).await?;
        if sandbox.holder.set(Rc::clone(&holder)).is_err() {
            holder.delete(&self.shim).await?;
            let text = format!("sandbox {} is started already", sandbox.id);
            return Err(Error::FailedPrecondition(text));
        }
        let pid = holder.start(&self.shim, "").await?;
        Ok(StartSandboxResponse {
            pid: pid as u32,
            created_at: Some(timestamp(sandbox.created)),
        })
    }

    fn platform(&self, request: &PlatformRequest) -> Result<PlatformResponse> {
        self.sandbox(&request.sandbox_id)?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            ..Platform::default()
        };
        Ok(PlatformResponse {
            platform: Some(platform),
        })
    }

    async fn stop(&self, request: &StopSandboxRequest) -> Result<()> {
        let sandbox = self.sandbox(&request.sandbox_id)?;
        let grace = match request.timeout_secs {
            0 => GRACE,
            seconds => Duration::from_secs(seconds.into()),
        };
        sandbox.end(grace).await
    }

    async fn wait(&self, request: &WaitSandboxRequest) -> Result<WaitSandboxResponse> {
        let sandbox = self.sandbox(&request.sandbox_id)?;
        let exit = sandbox.holder()?.init.wait().await;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)),
        })
    }

    async fn update(&self, request: UpdateSandboxRequest) -> Result<()> {
        let sandbox = self.sandbox(&request.sandbox_id)?;
        if request.resources.is_none() {
            return Ok(());
        }
        let resources = document::of(request.resources, "LinuxResources")?;
        let (engine, id) = (sandbox.holder()?.engine.clone(), request.sandbox_id);
        self.shim
            .blocking(move || engine.update(&id, &resources))
            .await
    }

    fn status(&self, request: &SandboxStatusRequest) -> Result<SandboxStatusResponse> {
        let sandbox = self.sandbox(&request.sandbox_id)?;
        let init = sandbox.holder.get().map(|holder| &holder.init);
        let is_ready = init.is_some_and(|init| init.state() == State::Running);
        let exit = init.and_then(|init| init.exit());
        Ok(SandboxStatusResponse {
            sandbox_id: sandbox.id.clone(),
            pid: init.map_or(0, |init| init.pid()) as u32,
            // CRI's names.
            state: if is_ready {
                "SANDBOX_READY"
            } else {
                "SANDBOX_NOTREADY"
            }
            .to_owned(),
            created_at: Some(timestamp(sandbox.created)),
            exited_at: exit.map(|exit| timestamp(exit.at)),
            ..SandboxStatusResponse::default()
        })
    }

    fn metrics(&self, request: &SandboxMetricsRequest) -> Result<SandboxMetricsResponse> {
        let sandbox = self.sandbox(&request.sandbox_id)?;
        let stats = sandbox.holder()?.cgroup()?.stats();
        let stats = stats.map_err(stats::unreadable)?;
        let metric = Metric {
            timestamp: Some(SystemTime::now().into()),
            id: sandbox.id.clone(),
            data: Some(xebec_proto::pack(&stats::metrics(&stats))),
        };
        Ok(SandboxMetricsResponse {
            metrics: Some(metric),
        })
    }

    async fn shutdown(&self, request: &ShutdownSandboxRequest, has_tasks: bool) -> Result<()> {
        if self.is_empty() && !has_tasks {
            // Its creation has failed, and the shim was started for nothing.
            self.shim.end();
            return Ok(());
        }
        let sandbox = self.sandbox(&request.sandbox_id)?;
        if has_tasks {
            let text = format!("sandbox {} has containers", sandbox.id);
            return Err(Error::FailedPrecondition(text));
        }
        sandbox.end(Duration::ZERO).await?;
        if let Some(holder) = sandbox.holder.get() {
            holder.delete(&self.shim).await?;
        }
        let bundle = sandbox.bundle.clone();
        self.shim.blocking(move || unmount(&bundle)).await?;
        self.current.take();
        let prefix = keys::SANDBOX.to_owned();
        self.shim
            .link
            .commit(vec![Change::Drop { prefix }], Vec::new());
        self.shim.end();
        Ok(())
    }
}

/// What is kept of a sandbox.
#[derive(Debug, Serialize, Deserialize)]
struct SandboxRecord {
    id: String,
    bundle: PathBuf,
    /// The encoded pod.
    pod: Vec<u8>,
    created: SystemTime,
}

impl Sandbox {
    fn keep(&self) -> Change {
        let record = SandboxRecord {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            pod: self.pod.encode_to_vec(),
            created: self.created,
        };
        Change::Put {
            key: keys::SANDBOX.to_owned(),
            record: serde_json::json!(record).to_string(),
            fds: None,
        }
    }

    fn inherited(record: &str) -> Result<Sandbox> {
        let wrong = |error: std::io::Error| Error::Io {
            what: "read the sandbox's record".into(),
            source: error,
        };
        let record: SandboxRecord =
            serde_json::from_str(record).map_err(|error| wrong(error.into()))?;
        let pod = PodSandboxConfig::decode(record.pod.as_slice());
        Ok(Sandbox {
            id: record.id,
            pod: pod.map_err(|error| wrong(std::io::Error::other(error)))?,
            options: Record::read(&record.bundle)?.unwrap_or_default().options,
            bundle: record.bundle,
            created: record.created,
            holder: OnceCell::new(),
        })
    }

    fn holder(&self) -> Result<&Rc<Container>> {
        self.holder
            .get()
            .ok_or_else(|| Error::FailedPrecondition(format!("sandbox {} is not started", self.id)))
    }

    /// Ends the waiting process, and with a pid namespace that it leads everything in there. One
    /// that has ended, or was never started, is what is wanted.
    async fn end(&self, grace: Duration) -> Result<()> {
        let Some(holder) = self.holder.get() else {
            return Ok(());
        };
        let init = &holder.init;
        for (signal, patience) in [(libc::SIGTERM, grace), (libc::SIGKILL, Duration::MAX)] {
            match init.kill(signal) {
                Ok(()) | Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
            if tokio::time::timeout(patience, init.wait()).await.is_ok() {
                break;
            }
        }
        Ok(())
    }
}

/// The pod that the options of a sandbox describe; without any, one with everything of its own.
fn pod(options: Option<&Any>) -> Result<PodSandboxConfig> {
    let Some(any) = options.filter(|any| !any.type_url.is_empty()) else {
        return Ok(PodSandboxConfig::default());
    };
    if any.type_url.rsplit('/').next() != Some(POD) {
        let text = format!("sandbox options of type {:?}", any.type_url);
        return Err(Error::InvalidArgument(text));
    }
    PodSandboxConfig::decode(any.value.as_slice())
        .map_err(|error| Error::InvalidArgument(format!("sandbox options: {error}")))
}
