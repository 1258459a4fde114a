//! The only `unsafe` of this crate: system calls that have no safe wrapper, each behind a
//! function whose arguments make it safe.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which side of [`fork`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The caller; holds the pid of the child.
    Parent(i32),
    /// The new process.
    Child,
}

/// fork(2), refused when the process has more than one thread.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: unshare of what a single thread has for itself anyway changes nothing; with others it
    // is refused.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } != 0 {
        return Err(io::Error::other("fork with several threads"));
    }
    // SAFETY: with a single thread no lock can be held by a thread that the child lacks, so the
    // child may run any code.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Keeps the allocator to one arena and returns freed memory early: an idle shim is counted in
/// kilobytes, and its blocking threads live for a moment only.
pub fn keep_heap_small() {
    // SAFETY: mallopt changes parameters of the allocator and touches no memory of ours.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
    }
}

/// Hands free pages at the top of the heap back to the kernel.
pub fn trim_heap() {
    // SAFETY: malloc_trim only releases memory that no allocation uses.
    unsafe { libc::malloc_trim(0) };
}

/// Sends any signal number, real-time ones included, to a process whose pid is known to be its
/// own still.
pub fn signal(pid: i32, signal: i32) -> io::Result<()> {
    // 0 and negative numbers mean groups of processes.
    if pid <= 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: kill reads and writes no memory.
    if unsafe { libc::kill(pid, signal) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether a process is dead, though nobody may have collected it yet.
pub fn has_ended(pid: i32) -> bool {
    let Some(pid) = Pid::from_raw(pid) else {
        return false;
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => {
            let mut polled = [PollFd::new(&process, PollFlags::IN)];
            poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        }
        Err(error) => error == Errno::SRCH,
    }
}

/// Registers a descriptor with the running event loop.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor moves into the value, which hands out borrows only, so it stays
    // open and the same for as long as it is registered.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Registers a descriptor of which only this counts, such as exceptional conditions (POLLPRI).
pub fn watch_for(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as for `watch`.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Blocks SIGCHLD for this thread and the threads it starts, and returns a non-blocking
/// signalfd that reports it.
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is read, and signalfd returns a
    // descriptor that nobody else owns.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Pid of a child that has died and still waits to be collected.
pub fn dead_child() -> Option<i32> {
    // SAFETY: waitid fills the structure, which is valid for any bytes; the pid is read only
    // when the call reports one.
    unsafe {
        let mut info = std::mem::zeroed::<libc::siginfo_t>();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        let result = libc::waitid(libc::P_ALL, 0, &raw mut info, options);
        (result == 0 && info.si_pid() != 0).then(|| info.si_pid())
    }
}

/// Gives this process group a core scheduling cookie of its own (Linux 5.14): no other group's
/// thread runs on the sibling of its core.
pub fn share_no_core() -> io::Result<()> {
    const PROCESS_GROUP: libc::c_ulong = 2;
    // SAFETY: prctl with these arguments reads and writes no memory.
    let result = unsafe {
        libc::prctl(
            libc::PR_SCHED_CORE,
            libc::PR_SCHED_CORE_CREATE,
            0,
            PROCESS_GROUP,
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Waits for SIGTERM or SIGINT. Children that this process inherits meanwhile, as the first of a pid
/// namespace, are collected by the kernel.
pub fn wait_for_the_end() -> io::Result<()> {
    // SAFETY: installs SIG_IGN, which runs no code of ours; the set is initialised by sigemptyset
    // before it is read.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        let mut signal = 0;
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        match libc::sigwait(&raw const set, &raw mut signal) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Gives SIGPIPE its default action back and blocks no signal: Rust programs start with SIGPIPE
/// ignored, the daemon blocks SIGCHLD, and containers would inherit both.
pub fn restore_signals() -> io::Result<()> {
    // SAFETY: installs SIG_DFL, which runs no code of ours, and passes an initialised set.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        if libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Closes every descriptor but the standard streams and `fds`, which move to 3, 4, 5, ….
///
/// For a fresh child that will not use what it inherited.
pub fn keep_only(fds: Vec<OwnedFd>) -> io::Result<Vec<OwnedFd>> {
    let end = 3 + fds.len() as i32;
    // Two rounds: a source may sit where a target goes, so all move out of the way first.
    let moved: Vec<OwnedFd> = fds
        .iter()
        .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, end))
        .collect::<rustix::io::Result<_>>()?;
    // Their numbers may be among the targets.
    std::mem::forget(fds);
    let mut placed = Vec::with_capacity(moved.len());
    for (fd, place) in moved.iter().zip(3..) {
        // SAFETY: the new descriptor belongs to the returned value alone; whatever was open at
        // `place` was inherited, or forgotten above, and is never used again by this process.
        unsafe {
            if libc::dup3(fd.as_raw_fd(), place, libc::O_CLOEXEC) < 0 {
                return Err(io::Error::last_os_error());
            }
            placed.push(OwnedFd::from_raw_fd(place));
        }
    }
    drop(moved);
    close_from(end as u32);
    Ok(placed)
}

/// Closes every descriptor from `first` on: at the very start of a process that has opened none
/// yet, or in a fresh child that will not use what it inherited.
pub fn close_from(first: u32) {
    // SAFETY: no code that runs from here on owns one of these descriptors.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Lets `command` start with `fds` as its descriptors 3, 4, 5, ….
pub fn pass_fds(command: &mut Command, fds: Vec<OwnedFd>) {
    let place = move || {
        // Two rounds: a source may sit where a target goes, so all move out of the way first.
        let above = 3 + fds.len() as i32;
        for (index, fd) in fds.iter().enumerate() {
            // SAFETY: fcntl and dup2 are async-signal-safe and work on open descriptors.
            unsafe {
                let moved = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above);
                if moved < 0 {
                    return Err(io::Error::last_os_error());
                }
                if libc::dup2(moved, 3 + index as i32) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    };
    // SAFETY: the closure calls only async-signal-safe functions and allocates nothing.
    unsafe { command.pre_exec(place) };
}
