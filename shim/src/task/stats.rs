//! A cgroup's statistics as containerd's clients read them.

use xebec_runtime::cgroup::CgroupError;

use crate::error::Error;

/// A cgroup file that cannot be read.
pub(super) fn unreadable(error: CgroupError) -> Error {
    Error::Io {
        what: "read the cgroup".into(),
        source: std::io::Error::other(error),
    }
}
