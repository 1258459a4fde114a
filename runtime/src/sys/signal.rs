//! Signals: masks, a descriptor to read them from, and sending by pidfd.

use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Bytes of one record read from [`signal_fd`]; it begins with the signal's number as a `u32`.
pub(crate) const SIGNAL_RECORD: usize = size_of::<libc::signalfd_siginfo>();

/// Blocks every signal that can be blocked, so that [`signal_fd`] gets them.
pub(crate) fn block_all() {
    change_mask(libc::SIG_BLOCK);
}

/// Unblocks every signal: what a new program expects.
pub(crate) fn unblock_all() {
    change_mask(libc::SIG_UNBLOCK);
}

fn full_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the whole set.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn change_mask(how: libc::c_int) {
    let set = full_set();
    // SAFETY: `set` is initialised; with valid `how` the call cannot fail.
    unsafe { libc::sigprocmask(how, &raw const set, std::ptr::null_mut()) };
}

/// A write to a pipe or socket that nobody reads fails with EPIPE.
pub(crate) fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN is a valid disposition for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Gives back the dispositions that this process ignores ([`ignore_broken_pipes`]) and that `CLONE_CLEAR_SIGHAND` therefore leaves alone.
pub(crate) fn default_dispositions() {
    // SAFETY: SIG_DFL is a valid disposition for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Lets signals that ask a process to end be heard although it is the first one of its pid
/// namespace, for which the kernel drops those without a handler. A new program has the defaults.
pub(crate) fn end_on_request() {
    extern "C" fn end(signal: libc::c_int) {
        // SAFETY: _exit may be called from a signal handler.
        unsafe { libc::_exit(128 + signal) }
    }
    let handler = end as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: the handler does nothing but end the process.
        let before = unsafe { libc::signal(signal, handler) };
        if before == libc::SIG_IGN {
            // SAFETY: what the caller ignores the program is to ignore, too.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }
}

/// A non-blocking descriptor that yields every blocked signal.
pub(crate) fn signal_fd() -> Result<OwnedFd, Errno> {
    let set = full_set();
    // SAFETY: `set` is initialised; -1 asks for a new descriptor, which nobody else owns.
    unsafe {
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        super::check(fd.into())?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// `pidfd_send_signal(2)` with any number, real-time signals included; 0 only probes.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: a null siginfo means "as kill(2) would"; no memory is passed.
    super::check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// Sleeps until a signal ends the process.
pub(crate) fn wait_to_be_killed() {
    // SAFETY: pause has no preconditions.
    unsafe { libc::pause() };
}
