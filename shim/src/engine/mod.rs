//! Who runs containers: the built-in library, or a runc-compatible program.
//!
//! Methods that are not asynchronous block, and are called on a blocking thread. Errors keep the
//! runtime's text.

mod library;
mod program;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xebec_runtime::cgroup::CgroupManager;
use xebec_runtime::{CloneRequest, PageProgram, TemplateAccess};

use crate::args::PAGE_SERVER;
use crate::blocking;
use crate::error::{Error, Result};
use crate::link::Link;
use crate::options::Options;
use crate::supervisor::message::{Checkpoint, Origin, TemplateClone};
use library::Library;
use program::Program;

/// CRIU's program, in `PATH`.
const CRIU: &str = "criu";

/// A runtime for one container.
#[derive(Debug, Clone)]
pub enum Engine {
    /// The xebec runtime library, with the supervisor for what has to fork.
    Library(Arc<Library>),
    /// The program that `BinaryName` names.
    Program(Arc<Program>),
}

/// Where the pseudo-terminal of a new process goes.
#[derive(Debug)]
pub enum Console {
    /// To the peer of this socket.
    Socket(OwnedFd),
    /// To the listener at this path.
    Path(PathBuf),
}

/// The container's ends of its streams; absent ones are `/dev/null`.
#[derive(Debug, Default)]
pub struct Streams {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
    /// Present if the process gets a terminal.
    pub console: Option<Console>,
}

impl Streams {
    fn standard(&self) -> [Option<BorrowedFd<'_>>; 3] {
        [&self.stdin, &self.stdout, &self.stderr].map(|fd| fd.as_ref().map(AsFd::as_fd))
    }
}

/// Runs a program's operation.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, String> + Send + 'static,
) -> std::result::Result<T, String> {
    let done = blocking::run(work).await;
    done.unwrap_or_else(|error| Err(error.to_string()))
}

/// Dispatches a method to whichever engine it is.
macro_rules! either {
    ($self:ident, $engine:ident => $call:expr) => {
        match $self {
            Engine::Library($engine) => $call,
            Engine::Program($engine) => $call,
        }
    };
}

impl Engine {
    /// The engine that `options` ask for, with its state below `namespace`.
    pub fn new(options: &Options, namespace: &str, link: Option<Arc<Link>>) -> Engine {
        if options.binary_name.is_empty() {
            Engine::Library(Arc::new(Library::new(options, namespace, link)))
        } else {
            Engine::Program(Arc::new(Program::new(options, namespace)))
        }
    }

    /// True if nobody watches a new process yet when its pid is returned: until somebody does, it
    /// looks like an orphan.
    pub fn leaves_orphans(&self) -> bool {
        matches!(self, Engine::Program(_))
    }

    /// True if a console must be offered as a socket in the file system.
    pub fn wants_console_path(&self) -> bool {
        matches!(self, Engine::Program(_))
    }

    /// Creates a container whose init waits for [`Engine::start`], and returns its pid.
    pub async fn create(&self, id: &str, bundle: &Path, streams: Streams) -> Result<i32> {
        match self {
            Engine::Library(library) => library.create(id, bundle, streams).await,
            Engine::Program(program) => {
                let (program, id) = (Arc::clone(program), id.to_owned());
                let bundle = bundle.to_owned();
                blocking(move || program.create(&id, &bundle, &streams)).await
            }
        }
        .map_err(failed("create"))
    }

    /// Refuses a template that is not there, or that the container in `bundle` does not fit.
    pub(crate) fn check_clone(&self, bundle: &Path, clone: &TemplateClone) -> Result<()> {
        match self {
            Engine::Library(library) => library.check_clone(bundle, clone),
            Engine::Program(_) => Err(program::NO_CLONES.to_owned()),
        }
        .map_err(failed("clone"))
    }

    /// Makes a running container of a checkpoint or a template, and returns the pid of its init.
    pub(crate) async fn restore(
        &self,
        id: &str,
        bundle: &Path,
        origin: &Origin,
        streams: Streams,
    ) -> Result<i32> {
        let operation = match origin {
            Origin::Checkpoint(_) => "restore",
            Origin::Template(_) => "clone",
        };
        match (self, origin) {
            (Engine::Library(library), _) => library.restore(id, bundle, origin, streams).await,
            (Engine::Program(program), Origin::Checkpoint(images)) => {
                let (program, id) = (Arc::clone(program), id.to_owned());
                let (bundle, images) = (bundle.to_owned(), images.clone());
                blocking(move || program.restore(&id, &bundle, &images, &streams)).await
            }
            (Engine::Program(_), Origin::Template(_)) => Err(program::NO_CLONES.to_owned()),
        }
        .map_err(failed(operation))
    }

    /// Has CRIU dump a container. After a failure the container goes on as before.
    pub(crate) async fn checkpoint(
        &self,
        id: &str,
        bundle: &Path,
        checkpoint: Checkpoint,
    ) -> Result<()> {
        match self {
            Engine::Library(library) => library.checkpoint(id, checkpoint).await,
            Engine::Program(program) => {
                let (program, id) = (Arc::clone(program), id.to_owned());
                let bundle = bundle.to_owned();
                blocking(move || program.checkpoint(&id, &bundle, &checkpoint)).await
            }
        }
        .map_err(failed("checkpoint"))
    }

    /// Starts the init of a created container.
    pub fn start(&self, id: &str) -> Result<()> {
        either!(self, engine => engine.start(id)).map_err(failed("start"))
    }

    /// Starts a further process and returns its pid; `document` is the JSON of an OCI Process.
    pub async fn exec(
        &self,
        id: &str,
        bundle: &Path,
        exec_id: &str,
        document: &[u8],
        streams: Streams,
    ) -> Result<i32> {
        match self {
            Engine::Library(library) => library.exec(id, exec_id, document, streams).await,
            Engine::Program(program) => {
                let (program, id) = (Arc::clone(program), id.to_owned());
                let pid_file = bundle.join(format!("{exec_id}.pid"));
                let document = document.to_owned();
                blocking(move || program.exec(&id, &pid_file, &document, &streams)).await
            }
        }
        .map_err(failed("exec"))
    }

    /// How far a container has come whose init lives: `created`, `running` or `paused`.
    pub fn status(&self, id: &str) -> Result<String> {
        either!(self, engine => engine.status(id)).map_err(failed("state"))
    }

    /// Signals every process of the container.
    pub fn kill_all(&self, id: &str, signal: i32) -> Result<()> {
        either!(self, engine => engine.kill_all(id, signal)).map_err(failed("kill"))
    }

    /// Removes a container; `force` kills what is left of it, and takes longer. One that is gone
    /// already is success.
    pub fn delete(&self, id: &str, force: bool) -> Result<()> {
        either!(self, engine => engine.delete(id, force)).map_err(failed("delete"))
    }

    /// Freezes the container.
    pub fn pause(&self, id: &str) -> Result<()> {
        either!(self, engine => engine.pause(id)).map_err(failed("pause"))
    }

    /// Thaws the container.
    pub fn resume(&self, id: &str) -> Result<()> {
        either!(self, engine => engine.resume(id)).map_err(failed("resume"))
    }

    /// Applies the JSON of an OCI LinuxResources.
    pub fn update(&self, id: &str, resources: &[u8]) -> Result<()> {
        either!(self, engine => engine.update(id, resources)).map_err(failed("update"))
    }

    /// The JSON of the runtime's OCI features.
    pub fn features(&self) -> Result<Vec<u8>> {
        match self {
            Engine::Library(_) => library::features(),
            Engine::Program(program) => program.features(),
        }
        .map_err(failed("features"))
    }

    /// True if the runtime has state of this container.
    pub fn knows(&self, id: &str) -> bool {
        either!(self, engine => engine.root().join(id).exists())
    }
}

/// Who makes cgroups for a handler's containers.
pub(crate) fn manager(systemd: bool) -> CgroupManager {
    if systemd {
        CgroupManager::Systemd
    } else {
        CgroupManager::Cgroupfs
    }
}

/// How the runtime is asked for a clone.
pub(crate) fn clone_request(clone: TemplateClone) -> CloneRequest {
    let access = TemplateAccess {
        root: clone.templates,
        criu: CRIU.into(),
        work_path: Some(clone.work),
        // This program as a server of pages.
        page_program: Some(PageProgram {
            argv: ["/proc/self/exe", PAGE_SERVER].map(Into::into).to_vec(),
        }),
    };
    access.request(clone.wanted)
}

fn failed(operation: &'static str) -> impl FnOnce(String) -> Error {
    move |message| Error::Runtime { operation, message }
}
