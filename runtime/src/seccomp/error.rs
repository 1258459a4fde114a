//! What can be wrong with a seccomp profile.

/// Result of every operation in [`crate::seccomp`].
pub type Result<T> = std::result::Result<T, SeccompError>;

/// An error of a seccomp profile.
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
}
