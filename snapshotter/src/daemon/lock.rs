//! One daemon per root.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

/// Holds the root for this process until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub(super) struct RootLock {
    _file: File,
}

impl RootLock {
    /// Takes the lock, or says that another daemon has it.
    pub(super) fn take(root: &Path) -> Result<Self> {
        let path = root.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::RootInUse(root.to_owned())),
            Err(error) => Err(Error::io("lock", &path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_has_one_daemon_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let first = RootLock::take(root.path()).unwrap();
        assert!(matches!(
            RootLock::take(root.path()),
            Err(Error::RootInUse(_))
        ));
        drop(first);
        RootLock::take(root.path()).unwrap();
    }
}
