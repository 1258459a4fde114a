//! Room that is set aside for the day when the disk is full and all that fills it is in use: what
//! would make room then, the removal of a snapshot, is itself a write.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

/// Enough for a transaction of the snapshot database.
const BYTES: u64 = 2 << 20;

/// A file that holds nothing but room.
pub(super) struct Spare(PathBuf);

impl Spare {
    /// The room below `root`; none is taken yet.
    pub(super) fn new(root: &Path) -> Self {
        Self(root.join("spare"))
    }

    /// Takes the room, unless it is there.
    pub(super) fn take(&self) {
        if self.0.exists() {
            return;
        }
        if let Err(error) = self.fill() {
            // Full already, or a file system without such files: things go on without it.
            tracing::debug!(%error, "no room is set aside");
            let _ = fs::remove_file(&self.0);
        }
    }

    fn fill(&self) -> io::Result<()> {
        let file = File::create(&self.0)?;
        Ok(fallocate(&file, FallocateFlags::empty(), 0, BYTES)?)
    }

    /// Gives the room away; whether there was any.
    pub(super) fn give(&self) -> bool {
        let given = fs::remove_file(&self.0).is_ok();
        if given {
            tracing::warn!("the disk is full: the room that was set aside is used");
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn room_is_really_taken_and_given_once() {
        let dir = tempfile::tempdir().unwrap();
        let spare = Spare::new(dir.path());
        assert!(!spare.give(), "nothing was taken");
        for _ in 0..2 {
            spare.take();
            let blocks = fs::metadata(dir.path().join("spare")).unwrap().blocks();
            assert!(blocks * 512 >= BYTES);
        }
        assert!(spare.give());
        assert!(!spare.give());
    }
}
