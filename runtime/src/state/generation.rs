//! The file that tells a container whether it is a clone, and which.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, mkdir};
use rustix::io::Errno;

use super::{ContainerId, StateDir};
use crate::error::{Error, Result};
use crate::publish::publish;

/// The directory, which is mounted in the container.
const DIRECTORY: &str = "clone";
const FILE: &str = "generation";

impl StateDir {
    /// Where a container's file is.
    pub(crate) fn generation_directory(root: &Path, id: &ContainerId) -> PathBuf {
        root.join(id.as_str()).join(DIRECTORY)
    }

    /// Writes the file, which everybody inside may read.
    pub(crate) fn write_generation(&self, text: &str) -> Result<()> {
        let directory = self.path.join(DIRECTORY);
        match mkdir(&directory, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::file("mkdir", directory)(errno)),
        }
        let path = directory.join(FILE);
        publish(&path, 0o644, text.as_bytes()).map_err(Error::file("write", path))
    }
}
