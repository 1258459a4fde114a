//! The least that a FUSE file system can be (`bench-fuse`), as a measure of what the kernel takes
//! for a round trip to any daemon.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};

use super::reads::Files;
use crate::error::{Error, Result};

/// Its name in reports.
pub(super) const NAME: &str = "bare server";
const PROGRAM: &str = "/opt/xebec/bench-fuse";
const DEADLINE: Duration = Duration::from_secs(10);

/// A mounted file that is answered from memory; it is unmounted with this.
pub(super) struct Bare {
    process: Child,
    point: PathBuf,
}

impl Bare {
    /// Mounts one of `size` bytes.
    pub(super) fn mount(point: &Path, size: u64) -> Result<Self> {
        fs::create_dir_all(point).map_err(Error::file("create", point))?;
        let device = |path: &Path| Ok(fs::metadata(path).map_err(Error::file("stat", path))?.dev());
        let below = device(point)?;
        let mut command = Command::new(PROGRAM);
        command.arg(size.to_string()).arg(point);
        let process = command
            .spawn()
            .map_err(Error::file("execute", Path::new(PROGRAM)))?;
        let bare = Self {
            process,
            point: point.to_owned(),
        };
        let end = Instant::now() + DEADLINE;
        while device(point)? == below {
            if Instant::now() > end {
                return Err(Error::invalid(PROGRAM, "it mounts nothing"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(bare)
    }

    /// Microseconds of a read of which the kernel has nothing.
    pub(super) fn read_random_dropped(&self) -> Result<f64> {
        Files::only(&self.point.join("file"))?.read_random_dropped()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It ends when it serves nothing, and if it serves nothing yet it is told to.
        if unmount(&self.point, UnmountFlags::DETACH).is_err() {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}
