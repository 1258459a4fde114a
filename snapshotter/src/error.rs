//! The crate's one error type and what containerd gets to see of it.

use std::io;
use std::path::{Path, PathBuf};

use tonic::{Code, Status};

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a file, directory, socket or mount failed.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was attempted, as a verb: `open`, `rename`, `mount overlay on`.
        action: &'static str,
        /// The object it was attempted on.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A named object is not there (`snapshot sha256:…`, `layer sha256:…`).
    #[error("{0}: not found")]
    NotFound(String),
    /// A named object is there already.
    #[error("{0}: already exists")]
    AlreadyExists(String),
    /// The object is in a state that does not allow the request.
    #[error("{0}: failed precondition")]
    FailedPrecondition(String),
    /// The request or the command line is not well-formed.
    #[error("{0}: invalid argument")]
    InvalidArgument(String),
    /// A local setting (credential helper, certificate, hosts.toml) stands in the way.
    #[error("{what}: {reason}")]
    Unusable {
        /// What was attempted.
        what: String,
        /// The setting, and what is wrong with it.
        reason: String,
    },
    /// A configuration file cannot be used; the text names the file and the key.
    #[error("{path}: {reason}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Key and reason.
        reason: String,
    },
    /// Another daemon already serves this root.
    #[error("{path} is already served by another xebec-snapshotter", path = .0.display())]
    RootInUse(PathBuf),
    /// Bytes do not have the digest they must have.
    #[error("{what}: digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch {
        /// The blob, chunk or TOC.
        what: String,
        /// The digest that was asked for.
        expected: String,
        /// The digest of the bytes that arrived.
        actual: String,
    },
    /// A blob, TOC or index breaks the rules of its format.
    #[error("{what}: malformed: {reason}")]
    Malformed {
        /// The blob or document, by digest or name.
        what: String,
        /// The rule that is broken.
        reason: String,
    },
    /// A registry refused the credentials, or there were none.
    #[error("{what}: not authorized: {reason}")]
    Unauthorized {
        /// Host and repository.
        what: String,
        /// What the registry said.
        reason: String,
    },
    /// A registry answered, but not as it should.
    #[error("{what}: registry answered {reason}")]
    Registry {
        /// The request, by reference or digest and never with a credential in it.
        what: String,
        /// Status and text of the answer.
        reason: String,
    },
    /// A registry could not be reached, or not in time; trying later may work.
    #[error("{what}: unavailable: {reason}")]
    Unavailable {
        /// Host, reference or digest.
        what: String,
        /// Why.
        reason: String,
    },
    /// A registry was not asked, since it has not answered for some time; it is asked again soon.
    #[error("{what}: unavailable: {reason}")]
    Shunned {
        /// Host, reference or digest.
        what: String,
        /// How long for.
        reason: String,
    },
    /// The snapshot database failed.
    #[error("snapshot database: {0}")]
    Database(#[source] Box<redb::Error>),
    /// A thread of this process ended where it must not.
    #[error("internal task failed: {0}")]
    Internal(String),
}

impl Error {
    /// Adds what was attempted on which path to an I/O error; use it in `map_err`.
    pub fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source: source.into(),
        }
    }

    /// Whether it is for want of disk space that something failed.
    pub fn is_full(&self) -> bool {
        let is_full = |error: &io::Error| {
            use io::ErrorKind::{QuotaExceeded, StorageFull};
            matches!(error.kind(), StorageFull | QuotaExceeded)
        };
        match self {
            Self::Io { source, .. } => is_full(source),
            Self::Database(cause) => matches!(&**cause, redb::Error::Io(error) if is_full(error)),
            _ => false,
        }
    }

    /// The gRPC code by which containerd tells errors apart.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::AlreadyExists(_) => Code::AlreadyExists,
            Self::FailedPrecondition(_) | Self::Unusable { .. } => Code::FailedPrecondition,
            Self::InvalidArgument(_) | Self::Config { .. } => Code::InvalidArgument,
            Self::Unauthorized { .. } => Code::PermissionDenied,
            Self::Unavailable { .. } | Self::Shunned { .. } | Self::RootInUse(_) => {
                Code::Unavailable
            }
            Self::DigestMismatch { .. } | Self::Malformed { .. } => Code::DataLoss,
            Self::Io { .. } | Self::Database(_) if self.is_full() => Code::ResourceExhausted,
            Self::Io { .. } | Self::Registry { .. } | Self::Database(_) | Self::Internal(_) => {
                Code::Unknown
            }
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// redb has one error type per operation; all of them fold into its general one.
macro_rules! from_redb {
    ($($source:ty),*) => {$(
        impl From<$source> for Error {
            fn from(error: $source) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )*};
}

from_redb!(
    redb::Error,
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_error_names_the_attempt_and_the_path() {
        let error = Error::io("open", Path::new("/x/y"))(io::Error::from_raw_os_error(2));
        assert_eq!(
            error.to_string(),
            "open /x/y: No such file or directory (os error 2)"
        );
        assert_eq!(error.code(), Code::Unknown);
    }

    #[test]
    fn a_full_disk_is_resource_exhausted() {
        let error = Error::io("write", Path::new("/x"))(io::Error::from_raw_os_error(28));
        assert_eq!(error.code(), Code::ResourceExhausted);
    }

    #[test]
    fn what_containerd_tells_apart_has_its_code() {
        let cases = [
            (Error::NotFound("snapshot a".into()), Code::NotFound),
            (
                Error::AlreadyExists("snapshot a".into()),
                Code::AlreadyExists,
            ),
            (
                Error::FailedPrecondition("snapshot a".into()),
                Code::FailedPrecondition,
            ),
            (Error::InvalidArgument("key".into()), Code::InvalidArgument),
        ];
        for (error, code) in cases {
            assert_eq!(Status::from(error).code(), code);
        }
    }
}
