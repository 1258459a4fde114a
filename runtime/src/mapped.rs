//! Trees of the host whose owners are those of a user namespace, for whoever mounts a root file
//! system on this crate's behalf.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::launch::user_namespace;
use crate::plan::IdMaps;
use crate::rootfs::mapped_clone;

/// Clones trees with mapped owners.
#[derive(Debug)]
pub struct OwnerMap {
    user_namespace: OwnedFd,
}

impl OwnerMap {
    /// `uids` and `gids` are in the form of `/proc/PID/uid_map` (`user_namespaces(7)`).
    pub fn new(uids: String, gids: String) -> Result<Self> {
        let maps = IdMaps {
            uid: uids,
            gid: gids,
        };
        Ok(Self {
            user_namespace: user_namespace(&maps)?,
        })
    }

    /// A clone of the tree at `path`, attached nowhere: whatever belongs to an id of the map's
    /// inside belongs to the one outside.
    pub fn clone_tree(&self, path: &Path, recursive: bool) -> Result<OwnedFd> {
        CString::new(path.as_os_str().as_bytes())
            .map_err(|_| Errno::INVAL)
            .and_then(|text| mapped_clone(&text, recursive, &self.user_namespace))
            .map_err(Error::file("map the owners of", path))
    }
}
