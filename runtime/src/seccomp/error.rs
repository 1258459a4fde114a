//! What can be wrong with a seccomp profile or its cache.

use std::io;
use std::path::PathBuf;

/// Result of every operation in [`crate::seccomp`].
pub type Result<T> = std::result::Result<T, SeccompError>;

/// An error of a seccomp profile or of the filter cache.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// A field of the profile has a value that means nothing.
    #[error("linux.seccomp.{field}: {reason}")]
    Invalid {
        /// The field below `linux.seccomp`.
        field: String,
        /// Why it is refused.
        reason: String,
    },
    /// The program is longer than the kernel takes.
    #[error("linux.seccomp: the profile needs {needed} instructions, the kernel takes {limit}")]
    TooLong {
        /// Instructions of the program.
        needed: usize,
        /// `BPF_MAXINSNS`
        limit: usize,
    },
    /// The cache directory cannot be made.
    #[error("create seccomp cache {path}: {source}", path = path.display())]
    Cache {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}
