//! The one error type of the crate.

use std::io;
use std::path::PathBuf;

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What keeps a checkpoint from being written, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part of a checkpoint that must not be used.
    #[error("{file}: {part}: {reason}")]
    Refused {
        /// The archive, or the file in it.
        file: String,
        /// The member, field or entry.
        part: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that is not what it should be.
    #[error("{file}: {reason}")]
    Malformed {
        /// The archive, or the file in it.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file operation of our own failed.
    #[error("{op} {path}: {source}", path = path.display())]
    Io {
        /// What was attempted, as a verb.
        op: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// Another system call failed.
    #[error("{op}: {source}")]
    Os {
        /// What was attempted.
        op: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A name, recipient or identity that cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// There is no checkpoint of this name.
    #[error("no checkpoint {0:?} in the store")]
    Missing(String),
    /// There is a checkpoint of this name already.
    #[error("checkpoint {0:?} exists already")]
    Exists(String),
    /// The limits of the store leave no room.
    #[error("no room in the store: {0}")]
    Full(String),
}

impl Error {
    /// Adapter for `map_err`: a failed operation on a path.
    pub fn io<E: Into<io::Error>>(
        op: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            op,
            path: path.into(),
            source: source.into(),
        }
    }

    /// Adapter for `map_err`: any other failed operation.
    pub(crate) fn os<E: Into<io::Error>>(op: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Os {
            op,
            source: source.into(),
        }
    }

    pub(crate) fn refused(
        file: impl Into<String>,
        part: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self::Refused {
            file: file.into(),
            part: part.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn malformed(file: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Malformed {
            file: file.into(),
            reason: reason.to_string(),
        }
    }
}
