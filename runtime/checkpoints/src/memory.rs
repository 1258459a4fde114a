//! A directory in memory that has no path: what lies in it reaches no disk and ends with its descriptor.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::error::{Error, Result};

/// A tmpfs that is mounted nowhere, for its owner only.
#[derive(Debug)]
pub struct PrivateDir(OwnedFd);

impl PrivateDir {
    /// Makes one that may hold nine tenths of the memory that is available now: a dump that does not
    /// fit fails, instead of having others killed.
    pub fn new() -> Result<Self> {
        Self::of_size(available_memory()? / 10 * 9)
    }

    /// Makes one for so many bytes. Where the kernel can (6.4), it is never swapped out.
    pub fn of_size(bytes: u64) -> Result<Self> {
        let failed = Error::os::<rustix::io::Errno>;
        let context =
            fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen tmpfs"))?;
        for (key, value) in [("size", bytes.to_string()), ("mode", "0700".to_owned())] {
            fsconfig_set_string(context.as_fd(), key, value).map_err(failed("fsconfig tmpfs"))?;
        }
        // An older kernel knows no such option; its swap should be encrypted, as the documentation says.
        let _ = fsconfig_set_flag(context.as_fd(), "noswap");
        fsconfig_create(context.as_fd()).map_err(failed("create a tmpfs"))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(failed("fsmount tmpfs"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            openat(&mount, ".", flags, Mode::empty()).map_err(failed("open a tmpfs"))?;
        Ok(Self(directory))
    }

    /// Where this process, and who may look into it, finds the directory.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

fn available_memory() -> Result<u64> {
    const FILE: &str = "/proc/meminfo";
    let text = fs::read_to_string(FILE).map_err(Error::io("read", FILE))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let kib = kib.ok_or_else(|| Error::malformed(FILE, "no MemAvailable"))?;
    Ok(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_directory_is_bounded_and_in_no_list_of_mounts() {
        let mounts = || {
            fs::read_to_string("/proc/self/mountinfo")
                .expect("mounts")
                .lines()
                .count()
        };
        let before = mounts();
        let directory = PrivateDir::of_size(1 << 20).expect("made as root");
        fs::write(directory.path().join("a"), vec![1; 1 << 19]).expect("fits");
        let full = fs::write(directory.path().join("b"), vec![1; 1 << 20]).expect_err("does not");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(mounts(), before);
    }
}
