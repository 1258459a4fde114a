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

/// The seccomp filters of a process, which is stopped while they are read (`ptrace(2)`,
/// `PTRACE_SECCOMP_GET_FILTER`).
pub(crate) fn seccomp_filters(pid: i32) -> io::Result<Vec<Vec<libc::sock_filter>>> {
    trace(libc::PTRACE_ATTACH, pid, 0, std::ptr::null_mut())?;
    let stopped = rustix::process::Pid::from_raw(pid)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
        .and_then(|pid| {
            let options = rustix::process::WaitOptions::UNTRACED;
            rustix::process::waitpid(Some(pid), options).map_err(io::Error::from)
        });
    let read = stopped.and_then(|_| {
        let mut filters = Vec::new();
        while let Some(filter) = seccomp_filter(pid, filters.len())? {
            filters.push(filter);
        }
        Ok(filters)
    });
    trace(libc::PTRACE_DETACH, pid, 0, std::ptr::null_mut())?;
    read
}

/// One of them; none after the last.
fn seccomp_filter(pid: i32, index: usize) -> io::Result<Option<Vec<libc::sock_filter>>> {
    const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
    // Without a buffer the kernel tells the length.
    let length = match trace(PTRACE_SECCOMP_GET_FILTER, pid, index, std::ptr::null_mut()) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        result => result? as usize,
    };
    let empty = libc::sock_filter {
        code: 0,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let mut filter = vec![empty; length];
    trace(
        PTRACE_SECCOMP_GET_FILTER,
        pid,
        index,
        filter.as_mut_ptr().cast(),
    )?;
    Ok(Some(filter))
}

fn trace(
    request: libc::c_uint,
    pid: i32,
    address: usize,
    data: *mut libc::c_void,
) -> io::Result<libc::c_long> {
    // SAFETY: the requests above write no more than the filter of the length that the kernel gave,
    // and a filter never changes.
    let returned = unsafe { libc::ptrace(request, pid, address, data) };
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(returned)
}
