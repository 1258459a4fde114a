//! The one error type of the crate.

use std::io;
use std::path::PathBuf;

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong between a bundle and a deleted container.
///
/// The texts that clients of runc match on are kept word for word.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The id has characters outside `[A-Za-z0-9_+.-]`, or is empty, `.` or `..`.
    #[error("{}", invalid_id(.0))]
    InvalidId(String),
    /// There is a state directory of this id already.
    #[error("container with given ID already exists")]
    AlreadyExists,
    /// There is no state directory of this id.
    #[error("container does not exist")]
    NotFound,
    /// The container's init has exited, or was never there.
    #[error("container not running")]
    NotRunning,
    /// A transition that the container's present status does not allow.
    #[error("{0}")]
    Status(String),
    /// A field of `config.json` (or of a process document) that cannot be used.
    #[error("{file}: {field}: {reason}")]
    Spec {
        /// The file that was read.
        file: String,
        /// Path of the field inside it, such as `linux.namespaces[2].path`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An argument of a request or of the command line that cannot be used.
    #[error("{0}")]
    InvalidArgument(String),
    /// The host lacks something that the container asks for.
    #[error("{0}")]
    Unsupported(String),
    /// A file operation by the runtime itself failed.
    #[error("{op} {path}: {reason}", path = path.display(), reason = words(source))]
    File {
        /// What was attempted, as a verb: `open`, `mkdir`, …
        op: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Another system call by the runtime itself failed.
    #[error("{op}: {reason}", reason = words(source))]
    Os {
        /// What was attempted.
        op: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The new process reported that it could not become the container's process.
    #[error("unable to start container process: error during container init: {0}")]
    Init(ChildFailure),
    /// The new process could not enter the running container.
    #[error("exec failed: unable to start container process: {0}")]
    Exec(ChildFailure),
    /// Mounts of a running container could not be changed.
    #[error("cannot change mounts: {0}")]
    Mounts(ChildFailure),
    /// The new process died before it could report anything.
    #[error("unable to start container process: init died during start: {0}")]
    InitDied(String),
    /// A hook of the configuration failed.
    #[error("{}error running {kind} hook #{index}: {reason}", hook_occasion(kind))]
    Hook {
        /// `createRuntime`, `poststop`, …
        kind: &'static str,
        /// Position in its list, from 0.
        index: usize,
        /// Exit status, signal, timeout or exec error, with the hook's stderr.
        reason: String,
    },
    /// A state file could not be understood.
    #[error("state of container in {path} is damaged: {reason}", path = path.display())]
    DamagedState {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// CRIU could not be started, or did not do what it was asked for.
    #[error("criu failed: {0}")]
    Criu(String),
    /// An operation on the container's cgroup failed.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
    /// A seccomp profile that cannot be compiled.
    #[error(transparent)]
    Seccomp(#[from] crate::seccomp::SeccompError),
}

impl Error {
    /// Adapter for `map_err`: a failed operation on a path.
    pub fn file<E: Into<io::Error>>(
        op: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::File {
            op,
            path: path.into(),
            source: source.into(),
        }
    }

    /// Adapter for `map_err`: any other failed operation.
    pub fn os<E: Into<io::Error>>(op: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Os {
            op: op.into(),
            source: source.into(),
        }
    }
}

fn invalid_id(id: &str) -> String {
    if id.is_empty() {
        "container id cannot be empty".to_owned()
    } else {
        format!("invalid container ID format: {id:?}")
    }
}

/// What the kernel answered in the words of Go programs, which clients match on; errors that are
/// not the kernel's have their own.
pub(crate) fn words(source: &io::Error) -> String {
    source
        .raw_os_error()
        .map_or_else(|| source.to_string(), errno_words)
}

/// What a hook was run for, in the words that precede its failure.
fn hook_occasion(kind: &str) -> &'static str {
    match kind {
        "poststart" | "poststop" => "",
        _ => "unable to start container process: error during container init: ",
    }
}

mod step;

pub(crate) use step::{At, Failure, errno_words};
pub use step::{ChildFailure, Step};
