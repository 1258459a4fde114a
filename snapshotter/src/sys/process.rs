//! What a process says about itself.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// SIGTERM, SIGINT and SIGHUP no longer end this process.
pub(crate) fn ignore_termination() -> io::Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: no handler is installed, the signal is just ignored.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The name that `ps` and `pgrep` show.
pub(crate) fn set_name(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the kernel copies a C string that outlives the call.
    match unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The first descriptor that a service manager passes on.
const FIRST: usize = 3;

/// Takes over the `count` descriptors that the service manager has passed on; once in the life of
/// the process.
pub(crate) fn inherited(count: usize) -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::other("taken before"));
    }
    let take = |position| {
        let fd = libc::c_int::try_from(FIRST + position).map_err(io::Error::other)?;
        // SAFETY: takes integers only; a number that is not open is an error.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is open, the manager has made it for this process, and nobody else takes it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    (0..count).map(take).collect()
}
