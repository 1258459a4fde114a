//! The socket that a container's program tells its readiness to, below its state directory.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, mkdirat, unlinkat};
use rustix::io::Errno;

use super::{ContainerId, StateDir};
use crate::error::{Error, Result};

/// The directory, which is mounted in the container before there is a socket in it.
const DIRECTORY: &str = "notify";
/// The socket's name there.
pub(crate) const NOTIFY_SOCKET: &str = "notify.sock";

impl StateDir {
    /// Where a container's readiness socket will be.
    pub(crate) fn readiness_directory(root: &Path, id: &ContainerId) -> PathBuf {
        root.join(id.as_str()).join(DIRECTORY)
    }

    /// Makes the directory for it.
    pub(crate) fn make_readiness(&self) -> Result<()> {
        mkdirat(&self.fd, DIRECTORY, Mode::from_raw_mode(0o755))
            .map_err(Error::file("mkdir", self.path.join(DIRECTORY)))
    }

    /// Binds the socket, which everybody inside may write to; none if the container was made
    /// without one.
    pub(crate) fn bind_readiness(&self) -> Result<Option<UnixDatagram>> {
        let path = self.path.join(DIRECTORY).join(NOTIFY_SOCKET);
        let socket = match UnixDatagram::bind(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(Error::file("bind", &path))?,
        };
        fs::set_permissions(&path, Permissions::from_mode(0o777))
            .map_err(Error::file("chmod", path))?;
        Ok(Some(socket))
    }

    /// Removes both; what is gone already is fine.
    pub(super) fn remove_readiness(&self) -> Result<()> {
        let socket = Path::new(DIRECTORY).join(NOTIFY_SOCKET);
        for (name, flags) in [
            (socket.as_path(), AtFlags::empty()),
            (Path::new(DIRECTORY), AtFlags::REMOVEDIR),
        ] {
            match unlinkat(&self.fd, name, flags) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(Error::file("remove", self.path.join(name))(errno)),
            }
        }
        Ok(())
    }
}
