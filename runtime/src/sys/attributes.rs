//! Attributes of the calling process.

use std::ffi::CStr;
use std::mem::size_of;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// Marks every descriptor from `first` on close-on-exec (kernel 5.11).
pub(crate) fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: only a flag of descriptors changes; none is closed under its owner.
    super::check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })
    .map(drop)
}

/// Closes every descriptor from `first` on but those in `keep` (which gets sorted).
///
/// Only for a process made by [`super::clone3`]: owners of what is closed must never be dropped,
/// and there they never are, because such a process ends by `execve` or `_exit`.
pub(crate) fn close_all_but(first: u32, keep: &mut [u32]) -> Result<(), Errno> {
    keep.sort_unstable();
    let mut from = first;
    for kept in keep.iter().filter(|kept| **kept >= first) {
        if *kept > from {
            close_range(from, kept - 1)?;
        }
        from = kept + 1;
    }
    close_range(from, u32::MAX)
}

/// Closes one descriptor by its number; for whom [`close_all_but`] is for.
pub(crate) fn close_one(fd: RawFd) -> Result<(), Errno> {
    close_range(fd as u32, fd as u32)
}

fn close_range(from: u32, to: u32) -> Result<(), Errno> {
    // SAFETY: as the caller promises, nobody uses or drops what is closed here.
    super::check(unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) }).map(drop)
}

/// Makes the kernel end this process when its parent, whose pid is `parent`, ends; tells whether
/// that has happened already.
pub(crate) fn die_with_parent(parent: i32) -> Result<bool, Errno> {
    // SAFETY: takes integers only, and getppid has no preconditions.
    unsafe {
        super::check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
        Ok(libc::getppid() != parent)
    }
}

/// Joins a new session keyring of this name (`keyctl(2)`, `KEYCTL_JOIN_SESSION_KEYRING`).
pub(crate) fn join_session_keyring(name: &CStr) -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: `name` is a C string.
    super::check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr())
    })
    .map(drop)
}

/// Installs a seccomp filter on the calling thread; returns the listener when `flags` ask for one.
pub(crate) fn install_seccomp(
    filter: &[libc::sock_filter],
    flags: u64,
) -> Result<Option<OwnedFd>, Errno> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::TOOBIG)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel only reads `program` and the instructions it points to.
    let returned = super::check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    })?;
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with NEW_LISTENER the return value is a new descriptor, which nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(returned as i32) }))
}

/// `personality(2)`.
pub(crate) fn set_personality(persona: u64) -> Result<(), Errno> {
    // SAFETY: changes only how the kernel presents itself to this process.
    super::check(unsafe { libc::personality(persona) }.into()).map(drop)
}

/// `ioprio_set(2)` on the calling process; class and priority already combined.
pub(crate) fn set_io_priority(value: i32) -> Result<(), Errno> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: takes integers only.
    super::check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) })
        .map(drop)
}

/// `struct sched_attr` up to its first version (`sched_setattr(2)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct SchedAttr {
    pub(crate) size: u32,
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

/// Sets scheduling policy and parameters of the calling thread.
pub(crate) fn set_scheduler(attr: &SchedAttr) -> Result<(), Errno> {
    let mut attr = *attr;
    attr.size = size_of::<SchedAttr>() as u32;
    // SAFETY: `attr` carries its own size and outlives the call.
    super::check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) }).map(drop)
}

/// First byte of the working directory's path as the kernel prints it: `/`, or `(` when it is
/// not below the root (`getcwd(2)`; the C library's own function hides that).
pub(crate) fn working_directory(buffer: &mut [u8; 4096]) -> Result<u8, Errno> {
    // SAFETY: the kernel writes at most the given number of bytes.
    super::check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })?;
    Ok(buffer[0])
}

/// `unshare(2)` of namespaces only.
pub(crate) fn unshare(namespaces: u64) -> Result<(), Errno> {
    // SAFETY: without CLONE_FILES no descriptor changes hands, and the launch path has one thread.
    super::check(unsafe { libc::unshare(namespaces as libc::c_int) }.into()).map(drop)
}
