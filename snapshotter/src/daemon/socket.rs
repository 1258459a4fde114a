//! A unix socket that exists for as long as it is served.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A bound listening socket; the file goes when this does.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Binds `path` for its owner alone. A socket that nobody serves any more is replaced.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new()
                .mode(0o700)
                .recursive(true)
                .create(dir)
                .map_err(Error::io("create", dir))?;
        }
        replace_dead(path)?;
        let listener = UnixListener::bind(path).map_err(Error::io("bind", path))?;
        let socket = Self {
            path: path.to_owned(),
            listener,
        };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .map_err(Error::io("chmod", path))?;
        Ok(socket)
    }

    /// The listener for the event loop.
    pub(super) fn listener(&self) -> Result<tokio::net::UnixListener> {
        let adopt = || {
            let listener = self.listener.try_clone()?;
            listener.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(listener)
        };
        adopt().map_err(Error::io("listen on", &self.path))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "socket stays");
        }
    }
}

fn replace_dead(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("stat", path)(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Error::AlreadyExists(format!(
                "{} (not a socket)",
                path.display()
            )));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Error::AlreadyExists(format!("{} (served)", path.display()))),
        Err(_) => fs::remove_file(path).map_err(Error::io("delete", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_private_and_gone_after_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/s.sock");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_a_served_one_and_a_file_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let served = Socket::bind(&path).unwrap();
        assert!(
            Socket::bind(&path)
                .unwrap_err()
                .to_string()
                .contains("served")
        );
        drop(served);
        fs::write(&path, "data").unwrap();
        assert!(
            Socket::bind(&path)
                .unwrap_err()
                .to_string()
                .contains("not a socket")
        );
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }
}
