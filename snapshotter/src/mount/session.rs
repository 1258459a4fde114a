//! Mounting, serving and unmounting one FUSE tree.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fuser::{Config, Session, SessionACL};
use rustix::mount::{MountFlags, UnmountFlags};

use super::fuse::TreeFs;
use crate::error::{Error, Result};

/// Readahead of the mounts: enough for one request to hide a local read behind the next.
const READ_AHEAD_KIB: u32 = 1024;

/// A mounted tree; dropping it unmounts.
#[derive(Debug)]
pub(super) struct Mounted {
    path: PathBuf,
}

impl Mounted {
    /// Mounts `tree` at `path`, which is made, and serves it by `threads` threads.
    ///
    /// The mount is made here and not by fuser, which would unmount as it likes: a lazy unmount
    /// leaves the session to those who still use the tree, and the last of them ends it.
    pub(super) fn new(path: &Path, tree: TreeFs, threads: usize) -> Result<Self> {
        fs::create_dir_all(path).map_err(Error::io("create", path))?;
        let device = Path::new("/dev/fuse");
        let fuse = OpenOptions::new().read(true).write(true).open(device);
        let fuse = fuse.map_err(Error::io("open", device))?;
        mount(path, &fuse)?;
        let mounted = Self {
            path: path.to_owned(),
        };
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(threads.max(1));
        config.clone_fd = true;
        Session::from_fd(tree, fuse.into(), SessionACL::All, config)
            .and_then(Session::spawn)
            .map_err(Error::io("serve", path))?;
        if let Err(error) = raise_readahead(path) {
            tracing::debug!(%error, "readahead stays as the kernel set it");
        }
        Ok(mounted)
    }

    /// Where the tree is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "unmounting failed");
        }
    }
}

fn mount(path: &Path, fuse: &File) -> Result<()> {
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        fuse.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).map_err(|e| Error::Internal(e.to_string()))?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount("xebec", path, "fuse.xebec", flags, &*options)
        .map_err(Error::io("mount fuse on", path))
}

/// Unmounts whatever is at `path`, dead or alive, and removes the directory. Those who have it
/// open, such as an overlay on top, keep what they have.
pub(super) fn clear(path: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point any more, or not there.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The limit that FUSE negotiates is the device's default, which sysfs alone can raise.
fn raise_readahead(path: &Path) -> io::Result<()> {
    let device = fs::metadata(path)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    fs::write(setting, READ_AHEAD_KIB.to_string())
}
