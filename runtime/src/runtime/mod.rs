//! The library's front: one method a lifecycle operation.

mod checkpoint;
mod clone;
mod confinement;
mod create;
mod exec;
mod foundation;
mod hot;
mod lifecycle;
mod mounts;
mod pidfd;
mod profile;
mod query;
mod restore;
mod standstill;
mod template;

pub use clone::CloneRequest;
pub use hot::RecordRequest;
pub use query::{parse_resources, read_process};
pub use template::TemplateRequest;

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIntelRdt, LinuxResources, Process};

use crate::cgroup::{Cgroup, CgroupManager, ControllersPolicy};
use crate::checkpoint::{CheckpointRequest, RestoreOptions};
use crate::error::Result;
use crate::request::{CreateRequest, ExecRequest, Launched};
use crate::state::{ContainerId, ContainerState, Listing, StateDir};
use crate::template::Template;

/// Where state lives and how strict the host is taken.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// Directory with one sub-directory a container; made when it is missing.
    pub root: PathBuf,
    /// Warn instead of fail when a limit needs a cgroup controller that the host lacks.
    pub ignore_missing_controllers: bool,
    /// Who makes the cgroups of new containers; existing ones stay with whom they are.
    pub cgroup_manager: CgroupManager,
    /// Whether the caller may lack permission on cgroups, and systemd is the user's; found out
    /// when it is not said.
    pub rootless: Option<bool>,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/run/xebec"),
            ignore_missing_controllers: false,
            cgroup_manager: CgroupManager::default(),
            rootless: None,
        }
    }
}

/// All containers below one state root.
///
/// Launching joins namespaces for a moment and makes the process undumpable: a process with
/// several threads should leave it to a single-threaded child of its own.
#[derive(Debug)]
pub struct Runtime {
    options: RuntimeOptions,
}

impl Runtime {
    /// Opens a state root; nothing is made there before the first container.
    pub fn open(mut options: RuntimeOptions) -> Result<Self> {
        options.root = std::path::absolute(&options.root)
            .map_err(crate::Error::file("resolve", &options.root))?;
        Ok(Self { options })
    }

    /// Creates a container: its init waits, ready to execute, for [`Runtime::start`].
    pub fn create(&self, request: CreateRequest) -> Result<Launched> {
        create::create(self, request, true)
    }

    /// Creates and starts in one: nobody has to let init go.
    pub fn run(&self, request: CreateRequest) -> Result<Launched> {
        create::run(self, request)
    }

    /// Lets a created container's init execute its program.
    pub fn start(&self, id: &ContainerId) -> Result<()> {
        lifecycle::start(self, id)
    }

    /// Binds the socket that a created container's program tells its readiness to (`sd_notify(3)`);
    /// none if the request did not ask for one.
    pub fn notify_socket(&self, id: &ContainerId) -> Result<Option<UnixDatagram>> {
        StateDir::open(&self.options.root, id)?.bind_readiness()
    }

    /// Init of a container that is alive.
    pub fn init(&self, id: &ContainerId) -> Result<Launched> {
        lifecycle::init(self, id)
    }

    /// Starts a further process in a running container.
    pub fn exec(&self, request: ExecRequest) -> Result<Launched> {
        exec::exec(self, request)
    }

    /// What `state` prints.
    pub fn state(&self, id: &ContainerId) -> Result<ContainerState> {
        query::state(self, id)
    }

    /// The `config.json` that a container was made of.
    pub fn config_path(&self, id: &ContainerId) -> Result<PathBuf> {
        query::config_path(self, id)
    }

    /// The states of all containers below the root.
    pub fn list(&self) -> Result<Listing> {
        crate::state::list(&self.options.root)
    }

    /// The names of all containers that an extended regular expression matches.
    pub fn matching(&self, pattern: &str) -> Result<Vec<ContainerId>> {
        query::matching(self, pattern)
    }

    /// Sends a signal to init, or to every process of the container.
    pub fn kill(&self, id: &ContainerId, signal: i32, all: bool) -> Result<()> {
        lifecycle::kill(self, id, signal, all)
    }

    /// Removes a stopped container; with `force` whatever is left of it, running or half made.
    ///
    /// Hooks that fail do not keep a container alive; they are the result's warnings.
    pub fn delete(&self, id: &ContainerId, force: bool) -> Result<()> {
        lifecycle::delete(self, id, force)
    }

    /// Pids of all processes of the container, in the caller's pid namespace.
    pub fn pids(&self, id: &ContainerId) -> Result<Vec<i32>> {
        query::pids(self, id)
    }

    /// Freezes every process of the container.
    pub fn pause(&self, id: &ContainerId) -> Result<()> {
        lifecycle::pause(self, id)
    }

    /// Thaws what [`Runtime::pause`] froze.
    pub fn resume(&self, id: &ContainerId) -> Result<()> {
        lifecycle::resume(self, id)
    }

    /// Writes a running container into files, by CRIU; its processes end unless the request says
    /// otherwise, and its state stays until it is deleted.
    ///
    /// # Errors
    /// After a failure the container goes on as before.
    pub fn checkpoint(&self, request: CheckpointRequest) -> Result<()> {
        checkpoint::checkpoint(self, request, &mut || Ok(()))
    }

    /// The same, with something done about the images before the container ends, while it stands
    /// still; if that fails, the container goes on.
    pub fn checkpoint_then(
        &self,
        request: CheckpointRequest,
        keep: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        checkpoint::checkpoint(self, request, keep)
    }

    /// Makes a running container of such files.
    ///
    /// # Errors
    /// After a failure nothing of the container is left.
    pub fn restore(&self, request: CreateRequest, options: &RestoreOptions) -> Result<Launched> {
        restore::restore(self, request, options)
    }

    /// Makes a template of a running container, which goes on.
    ///
    /// # Errors
    /// After a failure there is no template, and the container goes on as before.
    pub fn create_template(&self, request: &TemplateRequest) -> Result<Template> {
        template::create(self, request)
    }

    /// Makes a running container of a template. A request without a bundle stands for the bundle of
    /// the container that the template was made of, with a cgroup of its own.
    ///
    /// # Errors
    /// After a failure nothing of the clone is left.
    pub fn clone_template(
        &self,
        container: CreateRequest,
        request: &CloneRequest,
    ) -> Result<Launched> {
        clone::clone(self, container, request)
    }

    /// Refuses what [`Runtime::clone_template`] would refuse of the container in `bundle` and of the
    /// template's record; makes nothing.
    ///
    /// # Errors
    /// There is no such template, or it does not fit.
    pub fn check_clone(&self, bundle: &Path, request: &CloneRequest) -> Result<()> {
        clone::check(bundle, request)
    }

    /// Has a template learn which pages a first request needs, of a clone in the mode `uffd` that has
    /// answered one.
    ///
    /// # Errors
    /// After a failure the template is as it was, or has no hot pages.
    pub fn record_template(&self, request: &RecordRequest) -> Result<Template> {
        hot::record(self, request)
    }

    /// Mounts what a file lists into a running container: all of it or nothing.
    pub fn add_mounts(&self, id: &ContainerId, file: &Path) -> Result<()> {
        mounts::add(self, id, file)
    }

    /// Unmounts what a file lists from a running container.
    pub fn remove_mounts(&self, id: &ContainerId, file: &Path) -> Result<()> {
        mounts::remove(self, id, file)
    }

    /// The container's cgroup.
    pub fn cgroup(&self, id: &ContainerId) -> Result<Cgroup> {
        query::cgroup(self, id)
    }

    /// Changes the limits of a container; returns what had to be left out.
    pub fn update(&self, id: &ContainerId, resources: &LinuxResources) -> Result<Vec<String>> {
        lifecycle::update(self, id, resources)
    }

    /// Changes the cache and memory bandwidth that a container may use.
    pub fn update_intel_rdt(&self, id: &ContainerId, wanted: &LinuxIntelRdt) -> Result<()> {
        lifecycle::update_intel_rdt(self, id, wanted)
    }

    /// The process that the container's bundle configures, to derive others from; with what was
    /// ignored in it.
    pub fn process_of(&self, id: &ContainerId) -> Result<(Process, Vec<String>)> {
        query::process_of(self, id)
    }

    fn controllers_policy(&self) -> ControllersPolicy {
        if self.options.ignore_missing_controllers {
            ControllersPolicy::IgnoreMissing
        } else {
            ControllersPolicy::Require
        }
    }
}
