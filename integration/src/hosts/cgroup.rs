//! The cgroup a native host lives in, below a cgroup2 mount that only its keeper sees.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};

use crate::error::{Error, Result};

/// The cgroup2 hierarchy, mounted privately: this machine may have it anywhere, or nowhere.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    mount: PathBuf,
}

impl Hierarchy {
    /// Mounts the hierarchy at `directory` in this process's own mount namespace.
    pub(crate) fn mount(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
        mount("none", directory, "cgroup2", MountFlags::empty(), None)
            .map_err(Error::errno("mount a cgroup2 hierarchy at", directory))?;
        Ok(Self {
            mount: directory.to_owned(),
        })
    }

    /// The cgroup of the host with this name.
    pub(crate) fn group(&self, host: &str) -> PathBuf {
        self.mount.join(format!("xebec-host-{host}"))
    }

    pub(crate) fn create(&self, host: &str) -> Result<PathBuf> {
        let group = self.group(host);
        fs::create_dir(&group).map_err(Error::file("create cgroup", &group))?;
        Ok(group)
    }

    /// Kills what is in the host's cgroup and removes it with all below it.
    pub(crate) fn remove(&self, host: &str) -> Result<()> {
        let group = self.group(host);
        if !group.exists() {
            return Ok(());
        }
        let kill = group.join("cgroup.kill");
        fs::write(&kill, "1").map_err(Error::file("write", &kill))?;
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            match remove_groups(&group) {
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end =>
                {
                    thread::sleep(Duration::from_millis(5));
                }
                result => return result.map_err(Error::file("remove cgroup", &group)),
            }
        }
    }
}

/// Moves the calling process into a cgroup.
pub(crate) fn join(group: &Path) -> Result<()> {
    let procs = group.join("cgroup.procs");
    fs::write(&procs, "0").map_err(Error::file("write", &procs))
}

fn remove_groups(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
