//! The shim's socket: one per containerd, namespace and group, in a directory of all shims.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use crate::error::{Context, Result};

/// Where containerd's shims keep their sockets unless it says otherwise.
pub(super) const DIRECTORY: &str = "/run/containerd/s";

/// What came of looking for the group's socket.
#[derive(Debug)]
pub(super) enum Bound {
    /// A shim of this group answers already.
    Running,
    /// The socket is ours now.
    New(UnixListener),
}

/// Path of the socket: the one that runc's shim would have, as clients that look for a shim know
/// no other way.
pub(super) fn path(directory: &Path, containerd: &str, namespace: &str, group: &str) -> PathBuf {
    let key = format!("{containerd}/{namespace}/{group}");
    let mut name = String::with_capacity(64);
    for byte in Sha256::digest(key.as_bytes()) {
        for digit in [byte >> 4, byte & 15] {
            name.extend(char::from_digit(u32::from(digit), 16));
        }
    }
    directory.join(name)
}

/// Binds the socket, or finds the shim that holds it. A socket that nobody serves is replaced.
pub(super) fn bind(path: &Path) -> Result<Bound> {
    let directory = path.parent().unwrap_or(Path::new(DIRECTORY));
    let what = || format!("bind shim socket {}", path.display());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(directory)
        .context(what)?;
    // Two starts of one group take turns, or one could remove what the other has just bound.
    let lock = File::open(directory).context(what)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).context(what)?;
    match UnixStream::connect(path) {
        Ok(_) => return Ok(Bound::Running),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).context(what)?;
        }
        Err(error) => return Err(error).context(what),
    }
    listen(path).map(Bound::New).context(what)
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Removes a socket that nobody serves; one that answers stays. A shim that has just been killed
/// may need a moment to be dead, and its end shows on the connection.
pub fn remove_stale(path: &Path) {
    let refused = |connected: io::Result<UnixStream>| match connected {
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
    };
    let is_stale = match UnixStream::connect(path) {
        Ok(stream) => ends_soon(&stream) && refused(UnixStream::connect(path)),
        failed => refused(failed),
    };
    if is_stale && let Err(error) = std::fs::remove_file(path) {
        crate::log::warn(format_args!("remove {}: {error}", path.display()));
    }
}

/// True if the other side closes the connection while it is looked at.
fn ends_soon(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream, PollFlags::RDHUP)];
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: 300_000_000,
    };
    rustix::event::poll(&mut polled, Some(&limit)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_has_its_own_short_path() {
        let of = |group| {
            path(
                Path::new(DIRECTORY),
                "/run/containerd/containerd.sock",
                "default",
                group,
            )
        };
        let one = of("a");
        // As runc's shim has it.
        let name = "82795ca4b9b166c1139546afbf9dfd59d74776e0b49c8edfbb195f9d8b9e94a6";
        assert_eq!(one, Path::new(DIRECTORY).join(name));
        assert_ne!(one, of("b"));
        assert_eq!(one, of("a"));
        assert!(one.as_os_str().len() <= 106, "{}", one.display());
    }

    #[test]
    fn a_live_socket_is_found_and_a_stale_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let Bound::New(listener) = bind(&socket).unwrap() else {
            panic!("not bound")
        };
        assert_eq!(
            std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(matches!(bind(&socket).unwrap(), Bound::Running));
        remove_stale(&socket);
        assert!(socket.exists());
        drop(listener);
        assert!(matches!(bind(&socket).unwrap(), Bound::New(_)));
        remove_stale(&socket);
        assert!(!socket.exists());
    }
}
