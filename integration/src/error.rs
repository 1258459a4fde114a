//! What can go wrong, and on what.

use std::io;
use std::path::{Path, PathBuf};

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// One error for the whole crate; the message is meant for the person who runs a test.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("{attempt} {path}: {source}", path = path.display())]
    File {
        /// What was attempted, as a verb phrase.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A system call that concerns no file failed.
    #[error("{attempt}: {source}")]
    System {
        /// What was attempted.
        attempt: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A command ended badly.
    #[error("`{command}` ended with {status}\n{output}")]
    Command {
        /// The command as a shell would show it.
        command: String,
        /// Its exit status in words.
        status: String,
        /// The end of what it wrote.
        output: String,
    },
    /// A command had not ended at its deadline and was killed.
    #[error("`{command}` was still running after {seconds} s\n{output}")]
    Deadline {
        /// The command as a shell would show it.
        command: String,
        /// The deadline.
        seconds: u64,
        /// The end of what it wrote.
        output: String,
    },
    /// A service did not come up.
    #[error("{service} was not ready after {seconds} s; its log ends with\n{log}")]
    NotReady {
        /// Name of the service.
        service: &'static str,
        /// The deadline.
        seconds: u64,
        /// The end of its log.
        log: String,
    },
    /// A host ended before it was of use.
    #[error("the {host} host did not start: {reason}")]
    Host {
        /// `native` or `vm`.
        host: &'static str,
        /// What its keeper said.
        reason: String,
    },
    /// A file that another step makes is absent.
    #[error("{path} is missing: run `cargo run -p integration -- {remedy}` first", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The subcommand that makes it.
        remedy: &'static str,
    },
    /// Hosts are made of namespaces, mounts and devices.
    #[error("test hosts and their set-up need root")]
    NotRoot,
    /// Something that was read makes no sense.
    #[error("{what}: {reason}")]
    Invalid {
        /// What was read.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// For `map_err` on a file operation.
    pub fn file(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            attempt,
            path,
            source,
        }
    }

    /// For `map_err` on a file operation by rustix.
    pub(crate) fn errno(
        attempt: &'static str,
        path: &Path,
    ) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.to_owned();
        move |errno| Self::File {
            attempt,
            path,
            source: errno.into(),
        }
    }

    /// For `map_err` on any other system call.
    pub fn system<E: Into<io::Error>>(attempt: impl Into<String>) -> impl FnOnce(E) -> Self {
        let attempt = attempt.into();
        move |source| Self::System {
            attempt,
            source: source.into(),
        }
    }

    /// Something that was read makes no sense.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers are done with their errors"
    )]
    pub fn invalid<R: ToString>(what: impl Into<String>, reason: R) -> Self {
        Self::Invalid {
            what: what.into(),
            reason: reason.to_string(),
        }
    }
}
