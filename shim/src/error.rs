//! The errors of the shim and the gRPC status each becomes on the wire.

use std::io;

/// Result of a shim operation.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in the words a containerd client gets to see.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong.
    #[error("{0}")]
    InvalidArgument(String),
    /// No such container or process.
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The state of the process forbids the operation.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The service or method does not exist here.
    #[error("{0}")]
    Unimplemented(String),
    /// A runtime operation failed; `message` keeps the runtime's own text.
    #[error("OCI runtime {operation} failed: {message}")]
    Runtime {
        /// create, exec, start, delete, …
        operation: &'static str,
        /// The text of the runtime.
        message: String,
    },
    /// A system call failed; `what` names the call's purpose and object.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted on what.
        what: String,
        /// The error of the system.
        source: io::Error,
    },
}

impl Error {
    /// The gRPC status code that ttrpc carries for this error.
    pub fn code(&self) -> Code {
        match self {
            Error::InvalidArgument(_) => Code::InvalidArgument,
            Error::NotFound(_) => Code::NotFound,
            Error::AlreadyExists(_) => Code::AlreadyExists,
            Error::FailedPrecondition(_) => Code::FailedPrecondition,
            Error::Unimplemented(_) => Code::Unimplemented,
            Error::Runtime { .. } | Error::Io { .. } => Code::Unknown,
        }
    }
}

/// Status codes of gRPC, as far as the shim sends or reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Code {
    Ok = 0,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Unavailable = 14,
}

/// Adds what was attempted to an I/O error.
pub trait Context<T> {
    /// `what` is built only when there is an error.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            what: what(),
            source: source.into(),
        })
    }
}
