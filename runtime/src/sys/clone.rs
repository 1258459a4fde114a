//! `clone3`: the one way this crate makes processes.

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Flags, cgroup and exit signal of a new process (`clone3(2)`); memory is always copied.
pub(crate) struct CloneRequest<'a> {
    /// `CLONE_NEW*`, `CLONE_PARENT`; the rest is set here.
    pub(crate) flags: u64,
    /// Directory of the cgroup that the process is born in (kernel 5.7).
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
}

/// Makes a process that runs `child`, exits with what it returns, and runs nothing else; returns
/// its pid and pidfd.
///
/// The child starts with default signal handlers. With other threads about, `child` must neither
/// allocate nor take a lock; the launch path keeps to that always.
pub(crate) fn clone3(
    request: &CloneRequest<'_>,
    child: impl FnOnce() -> i32,
) -> Result<(i32, OwnedFd), Errno> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain integers, for which zero means "not given".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = request.flags | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    // With CLONE_PARENT the kernel insists on 0 and takes over the caller's own exit signal.
    if request.flags & libc::CLONE_PARENT as u64 == 0 {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = request.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: no CLONE_VM, so the child has its own copy of all memory; `args` and `pidfd` outlive
    // the call.
    let made = super::check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    });
    let pid = match made {
        // A seccomp profile that cannot look into clone3's memory refuses it, so that programs
        // fall back to this.
        Err(Errno::NOSYS | Errno::PERM) if request.flags == 0 && request.cgroup.is_none() => {
            plain_clone(&mut pidfd)?
        }
        made => made?,
    };
    if pid == 0 {
        let _never_unwinds = ExitOnDrop;
        exit_now(child());
    }
    // SAFETY: the kernel stored a new descriptor there, which nobody else owns.
    Ok((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// `clone(2)` with a pidfd and nothing else.
fn plain_clone(pidfd: &mut libc::c_int) -> Result<libc::c_long, Errno> {
    let flags = libc::CLONE_PIDFD | libc::SIGCHLD;
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: no CLONE_VM and no stack, so the child goes on with a copy of all memory; `pidfd`
    // outlives the call.
    super::check(unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags),
            none,
            &raw mut *pidfd,
            none,
            none,
        )
    })
}

// The libc crate types these two too narrowly.

/// Default signal handlers in the child (kernel 5.5).
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// Birth in another cgroup than the caller's (kernel 5.7).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A panic in the child must not run on into the parent's code.
struct ExitOnDrop;

impl Drop for ExitOnDrop {
    fn drop(&mut self) {
        exit_now(255);
    }
}

/// Ends the process at once: no exit handler of the parent runs a second time.
fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}
