//! One daemon per root.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Holds the root for this process until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub(super) struct RootLock {
    _file: File,
}

impl RootLock {
    /// Takes the lock, or says that another daemon has it. One that was just killed may take
    /// `patience` to be gone: the kernel first gives up its mounts and writes.
    pub(super) fn take(root: &Path, patience: Duration) -> Result<Self> {
        let path = root.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let begun = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(Errno::WOULDBLOCK) if begun.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(Errno::WOULDBLOCK) => return Err(Error::RootInUse(root.to_owned())),
                Err(error) => return Err(Error::io("lock", &path)(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_has_one_daemon_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let first = RootLock::take(root.path(), Duration::ZERO).unwrap();
        assert!(matches!(
            RootLock::take(root.path(), Duration::ZERO),
            Err(Error::RootInUse(_))
        ));
        drop(first);
        RootLock::take(root.path(), Duration::ZERO).unwrap();
    }

    #[test]
    fn a_daemon_that_is_about_to_end_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let first = RootLock::take(root.path(), Duration::ZERO).unwrap();
        std::thread::scope(|scope| {
            let path = root.path();
            let second = scope.spawn(|| RootLock::take(path, Duration::from_secs(20)));
            std::thread::sleep(Duration::from_millis(50));
            drop(first);
            second.join().unwrap().unwrap();
        });
    }
}
