//! The few system calls that rustix leaves unsafe or does not have.

use std::io;

use rustix::thread::UnshareFlags;

/// Leaves the namespaces named by `flags`; file descriptors stay shared.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    let flags = flags - UnshareFlags::FILES;
    // SAFETY: without FILES no thread can see another's descriptor table change.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Ignores the signals; children inherit that. With SIGCHLD the kernel reaps children itself.
pub(crate) fn ignore_signals(signals: &[i32]) -> io::Result<()> {
    for &signal in signals {
        // SAFETY: SIG_IGN is no function of ours, so nothing runs in a signal's context.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
