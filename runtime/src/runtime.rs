//! The library's front: one method a lifecycle operation.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::request::{CreateRequest, ExecRequest, Launched};
use crate::state::{ContainerId, ContainerState};

/// Where state lives and how strict the host is taken.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// Directory with one sub-directory a container; made when it is missing.
    pub root: PathBuf,
    /// Warn instead of fail when a limit needs a cgroup controller that the host lacks.
    pub ignore_missing_controllers: bool,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self { root: PathBuf::from("/run/xebec"), ignore_missing_controllers: false }
    }
}

/// All containers below one state root.
#[derive(Debug)]
pub struct Runtime {
    options: RuntimeOptions,
}

impl Runtime {
    /// Opens a state root.
    pub fn open(options: RuntimeOptions) -> Result<Self> {
        Ok(Self { options })
    }

    /// Creates a container: its init waits, ready to execute, for [`Runtime::start`].
    pub fn create(&self, request: CreateRequest) -> Result<Launched> {
        Err(self.missing("create", &request.id))
    }

    /// Lets a created container's init execute its program.
    pub fn start(&self, id: &ContainerId) -> Result<()> {
        Err(self.missing("start", id))
    }

    /// Creates and starts in one.
    pub fn run(&self, request: CreateRequest) -> Result<Launched> {
        Err(self.missing("run", &request.id))
    }

    /// Starts a further process in a running container.
    pub fn exec(&self, request: ExecRequest) -> Result<Launched> {
        Err(self.missing("exec", &request.id))
    }

    /// What `state` prints.
    pub fn state(&self, id: &ContainerId) -> Result<ContainerState> {
        Err(self.missing("state", id))
    }

    /// The states of all containers below the root.
    pub fn list(&self) -> Result<Vec<ContainerState>> {
        Err(Error::Unsupported("list is not there yet".into()))
    }

    /// Sends a signal to init, or to every process of the container.
    pub fn kill(&self, id: &ContainerId, _signal: i32, _all: bool) -> Result<()> {
        Err(self.missing("kill", id))
    }

    /// Removes a stopped container; with `force` whatever is left of it, running or half made.
    pub fn delete(&self, id: &ContainerId, _force: bool) -> Result<()> {
        Err(self.missing("delete", id))
    }

    /// Pids of all processes of the container, in the caller's pid namespace.
    pub fn pids(&self, id: &ContainerId) -> Result<Vec<i32>> {
        Err(self.missing("pids", id))
    }

    /// Freezes every process of the container.
    pub fn pause(&self, id: &ContainerId) -> Result<()> {
        Err(self.missing("pause", id))
    }

    /// Thaws what [`Runtime::pause`] froze.
    pub fn resume(&self, id: &ContainerId) -> Result<()> {
        Err(self.missing("resume", id))
    }

    fn missing(&self, op: &str, id: &ContainerId) -> Error {
        let root = self.options.root.display();
        Error::Unsupported(format!("{op} of {id} below {root} is not there yet"))
    }
}
