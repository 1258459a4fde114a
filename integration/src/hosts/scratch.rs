//! A host's directory on disk: owned by a lock, swept up by the next host if its owner died.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::error::{Error, Result};
use crate::lock::Lock;

const LOCK: &str = "lock";

/// A running host's directory; the lock in it tells sweepers that its owner lives.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: PathBuf,
    _lock: Lock,
}

impl Scratch {
    /// Makes a new directory below `hosts`, after removing those whose owner is gone;
    /// `remove_remains` removes what such a host had elsewhere, given its name.
    pub(crate) fn create(
        hosts: &Path,
        mut remove_remains: impl FnMut(&str) -> Result<()>,
    ) -> Result<Self> {
        let _everybody_waits = Lock::take(&hosts.join(".lock"))?;
        spread(hosts);
        for stale in stale(hosts)? {
            remove_remains(&name(&stale.directory))?;
            stale.remove()?;
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let id = format!(
            "{:x}-{}",
            now.as_millis() & 0xff_ffff_ffff,
            std::process::id()
        );
        let directory = hosts.join(id);
        fs::create_dir(&directory).map_err(Error::file("create", &directory))?;
        let lock = Lock::take(&directory.join(LOCK))?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }

    /// Unique among the hosts of this machine.
    pub(crate) fn name(&self) -> String {
        name(&self.directory)
    }

    /// Deletes the directory and everything in it.
    pub(crate) fn remove(self) -> Result<()> {
        remove_tree(&self.directory)
    }
}

/// Has ext4 put each directory below `hosts` elsewhere on the disk, as it does for users' homes. Without a
/// journal it is slow for minutes to make files where many were deleted, as the last host's were.
fn spread(hosts: &Path) {
    // Other file systems know no such flag and need none.
    let _ = File::open(hosts).map(|directory| {
        let flags = ioctl_getflags(&directory)?;
        ioctl_setflags(&directory, flags | IFlags::TOPDIR)
    });
}

fn name(directory: &Path) -> String {
    directory
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Directories whose lock nobody holds.
fn stale(hosts: &Path) -> Result<Vec<Scratch>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(hosts).map_err(Error::file("list", hosts))? {
        let directory = entry.map_err(Error::file("list", hosts))?.path();
        if !directory.is_dir() || name(&directory).starts_with('.') {
            continue;
        }
        if let Some(lock) = Lock::try_take(&directory.join(LOCK))? {
            found.push(Scratch {
                directory,
                _lock: lock,
            });
        }
    }
    Ok(found)
}

/// How often a tree is tried to be deleted in which something new appears meanwhile.
const ATTEMPTS: u32 = 100;

/// Deletes a tree that other processes may be deleting too, or sweepers look at, who make a lock in it.
pub(crate) fn remove_tree(directory: &Path) -> Result<()> {
    let mut attempt = 1;
    loop {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == io::ErrorKind::DirectoryNotEmpty && attempt < ATTEMPTS =>
            {
                attempt += 1;
            }
            result => return result.map_err(Error::file("delete", directory)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_start_sweeps_what_a_dead_owner_left_and_nothing_else() {
        let hosts = tempfile::tempdir().unwrap();
        let alive = Scratch::create(hosts.path(), |_| Ok(())).unwrap();
        let dead = hosts.path().join("dead");
        fs::create_dir_all(dead.join("up/below")).unwrap();
        let mut swept = Vec::new();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let next = Scratch::create(hosts.path(), |name| {
            swept.push(name.to_owned());
            Ok(())
        })
        .unwrap();
        assert_eq!(swept, ["dead"]);
        assert!(!dead.exists() && alive.path().exists());
        assert_ne!(alive.name(), next.name());
    }

    #[test]
    fn a_tree_is_deleted_although_a_sweeper_makes_its_lock_again() {
        let hosts = tempfile::tempdir().unwrap();
        let host = hosts.path().join("host");
        fs::create_dir_all(host.join("up/below")).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| while File::create(host.join(LOCK)).is_ok() {});
            remove_tree(&host).unwrap();
        });
        assert!(!host.exists());
    }
}
