//! The socket that CRIU looks for in its working directory, if it leaves memory to a server.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use crate::error::{Error, Result};

const NAME: &str = "lazy-pages.socket";

/// A socket's file, which goes with this.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// The directory; locked, if others may want to listen there, too.
    _directory: OwnedFd,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // What cannot be removed goes with the directory.
        let _ = fs::remove_file(&self.path);
    }
}

impl Socket {
    /// Listens in the directory `work`.
    pub(super) fn listen(work: &Path) -> Result<(Self, OwnedFd)> {
        Self::listen_in(work, open_directory(work)?)
    }

    /// The same, unless somebody else does. What somebody who was killed has left is in nobody's way.
    pub(super) fn claim(work: &Path) -> Result<Option<(Self, OwnedFd)>> {
        let directory = open_directory(work)?;
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            locked => locked.map_err(Error::file("lock", work))?,
        }
        // Nobody listens there who has not locked it.
        let _ = fs::remove_file(work.join(NAME));
        Self::listen_in(work, directory).map(Some)
    }

    fn listen_in(work: &Path, directory: OwnedFd) -> Result<(Self, OwnedFd)> {
        let path = work.join(NAME);
        // The address of a socket is shorter than a path may be.
        let short = format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd());
        let bound = || {
            let flags = SocketFlags::CLOEXEC;
            let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            bind(&listener, &SocketAddrUnix::new(short)?)?;
            Ok(listener)
        };
        let listener = bound().map_err(|errno: Errno| Error::file("bind", &path)(errno))?;
        let socket = Self {
            path,
            _directory: directory,
        };
        listen(&listener, 1).map_err(Error::file("listen on", &socket.path))?;
        Ok((socket, listener))
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(Error::file("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_taken_from_nobody_but_the_dead() {
        let work = tempfile::tempdir().expect("a directory");
        let place = work.path().join(NAME);
        let claimed = Socket::claim(work.path()).expect("a directory");
        assert!(Socket::claim(work.path()).expect("asked").is_none());
        drop(claimed);
        assert!(!place.exists());
        drop(std::os::unix::net::UnixListener::bind(&place).expect("a socket that stays"));
        let claimed = Socket::claim(work.path()).expect("asked");
        drop(claimed.expect("it is deserted"));
        assert!(!place.exists());
    }
}
