//! The built-in runtime.

use std::path::Path;
use std::sync::Arc;

use xebec_runtime::cgroup::CgroupManager;
use xebec_runtime::{ContainerId, Error, Runtime, RuntimeOptions};

use super::{Console, Streams, clone_request, manager};
use crate::link::Link;
use crate::log;
use crate::options::Options;
use crate::supervisor::message::{
    Checkpoint, Launch, Origin, Request, RuntimeRequest, TemplateClone,
};
use crate::task::keys;

/// The runtime library over one state directory.
#[derive(Debug)]
pub struct Library {
    options: RuntimeOptions,
    no_pivot: bool,
    no_new_keyring: bool,
    /// Absent in the `delete` action, which starts nothing.
    link: Option<Arc<Link>>,
}

type Outcome<T> = Result<T, String>;

impl Library {
    pub(super) fn new(options: &Options, namespace: &str, link: Option<Arc<Link>>) -> Library {
        Library {
            options: RuntimeOptions {
                root: options.state_root(namespace),
                ignore_missing_controllers: options.ignore_missing_controllers,
                cgroup_manager: manager(options.systemd_cgroup),
                // containerd's containers belong to the system's manager, as with runc.
                ..RuntimeOptions::default()
            },
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            link,
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.options.root
    }

    pub(super) async fn create(&self, id: &str, bundle: &Path, streams: Streams) -> Outcome<i32> {
        let launch = Launch::Init {
            bundle: bundle.to_owned(),
            no_pivot: self.no_pivot,
            no_new_keyring: self.no_new_keyring,
        };
        self.launch(id, None, launch, &[], streams).await
    }

    pub(super) async fn exec(
        &self,
        id: &str,
        exec_id: &str,
        document: &[u8],
        streams: Streams,
    ) -> Outcome<i32> {
        let key = Some(keys::pid(id, exec_id));
        self.launch(id, key, Launch::Exec, document, streams).await
    }

    pub(super) fn check_clone(&self, bundle: &Path, clone: &TemplateClone) -> Outcome<()> {
        let request = clone_request(clone.clone());
        let checked = Runtime::open(self.options.clone())
            .and_then(|runtime| runtime.check_clone(bundle, &request));
        checked.map_err(|error| error.to_string())
    }

    pub(super) async fn restore(
        &self,
        id: &str,
        bundle: &Path,
        origin: &Origin,
        streams: Streams,
    ) -> Outcome<i32> {
        let launch = Launch::Restore {
            bundle: bundle.to_owned(),
            origin: origin.clone(),
            no_pivot: self.no_pivot,
        };
        let key = Some(keys::pid(id, ""));
        self.launch(id, key, launch, &[], streams).await
    }

    pub(super) async fn checkpoint(&self, id: &str, checkpoint: Checkpoint) -> Outcome<()> {
        let request = self.request(id, Launch::Checkpoint(checkpoint), [false; 4]);
        let dumped = self.link()?.perform(None, request, &[], Vec::new()).await;
        dumped.map(drop)
    }

    pub(super) fn start(&self, id: &str) -> Outcome<()> {
        self.with(id, Runtime::start)
    }

    pub(super) fn status(&self, id: &str) -> Outcome<String> {
        self.with(id, |runtime, id| Ok(runtime.state(id)?.status.to_string()))
    }

    pub(super) fn kill_all(&self, id: &str, signal: i32) -> Outcome<()> {
        self.with(id, |runtime, id| runtime.kill(id, signal, true))
    }

    pub(super) fn delete(&self, id: &str, force: bool) -> Outcome<()> {
        self.with(id, |runtime, id| match runtime.delete(id, force) {
            Err(Error::NotFound) => Ok(()),
            result => result,
        })
    }

    pub(super) fn pause(&self, id: &str) -> Outcome<()> {
        self.with(id, Runtime::pause)
    }

    pub(super) fn resume(&self, id: &str) -> Outcome<()> {
        self.with(id, Runtime::resume)
    }

    pub(super) fn update(&self, id: &str, resources: &[u8]) -> Outcome<()> {
        let resources: oci_spec::runtime::LinuxResources =
            serde_json::from_slice(resources).map_err(|error| format!("resources: {error}"))?;
        for skipped in self.with(id, |runtime, id| runtime.update(id, &resources))? {
            log::with(&[("id", &id)]).warn(format_args!("update: {skipped}"));
        }
        Ok(())
    }

    fn with<T>(
        &self,
        id: &str,
        operation: impl FnOnce(&Runtime, &ContainerId) -> xebec_runtime::Result<T>,
    ) -> Outcome<T> {
        let run = || {
            let runtime = Runtime::open(self.options.clone())?;
            operation(&runtime, &id.parse()?)
        };
        run().map_err(|error: Error| error.to_string())
    }

    async fn launch(
        &self,
        id: &str,
        key: Option<String>,
        launch: Launch,
        document: &[u8],
        streams: Streams,
    ) -> Outcome<i32> {
        let link = self.link()?;
        let console = match streams.console {
            Some(Console::Socket(socket)) => Some(socket),
            Some(Console::Path(path)) => {
                return Err(format!("console at {}: a socket is needed", path.display()));
            }
            None => None,
        };
        let descriptors = [streams.stdin, streams.stdout, streams.stderr, console];
        let request = self.request(id, launch, descriptors.each_ref().map(Option::is_some));
        let fds = descriptors.into_iter().flatten().collect();
        link.launch(key, request, document, fds).await
    }

    fn request(&self, id: &str, launch: Launch, descriptors: [bool; 4]) -> Request {
        Request::Runtime(RuntimeRequest {
            root: self.options.root.clone(),
            id: id.to_owned(),
            ignore_missing_controllers: self.options.ignore_missing_controllers,
            systemd_cgroup: self.options.cgroup_manager == CgroupManager::Systemd,
            descriptors,
            launch,
        })
    }

    fn link(&self) -> Outcome<&Arc<Link>> {
        let link = self.link.as_ref();
        link.ok_or_else(|| "no supervisor: nothing can be started".to_owned())
    }
}

/// The JSON of what the library supports.
pub(super) fn features() -> Outcome<Vec<u8>> {
    serde_json::to_vec(&xebec_runtime::features()).map_err(|error| error.to_string())
}
