//! Attributes of the calling process.

use std::ffi::CStr;
use std::mem::{size_of, size_of_val};
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
    let number = u32::try_from(fd).map_err(|_| Errno::BADF)?;
    close_range(number, number)
}

/// Takes over a descriptor that the caller's caller has left open under this number, for writing.
///
/// Only for a number that nobody in this process owns.
pub(crate) fn adopt(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only; a bad descriptor is an error.
    let flags = super::check(unsafe { libc::fcntl(number, libc::F_GETFL) }.into())?;
    if flags as libc::c_int & libc::O_ACCMODE == libc::O_RDONLY {
        return Err(Errno::BADF);
    }
    // SAFETY: it is open, and as the caller promises, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes `number` another name of a descriptor, in the place of whatever it was; it stays open when
/// a program is executed (`dup2(2)`).
///
/// Only for a child that is about to execute one: nobody may own `number`.
pub(crate) fn duplicate_to(fd: RawFd, number: RawFd) -> Result<(), Errno> {
    // SAFETY: as the caller promises, nobody uses or drops what is closed here.
    super::check(unsafe { libc::dup2(fd, number) }.into()).map(drop)
}

fn close_range(from: u32, to: u32) -> Result<(), Errno> {
    // SAFETY: as the caller promises, nobody uses or drops what is closed here.
    super::check(unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) }).map(drop)
}

/// Joins the session keyring of this name, which is made if there is none; its serial number
/// (`keyctl(2)`, `KEYCTL_JOIN_SESSION_KEYRING`).
pub(crate) fn join_session_keyring(name: &CStr) -> Result<i32, Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: `name` is a C string.
    super::check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr())
    })
    .map(|serial| serial as i32)
}

/// Adds rights to those that a key has (`KEYCTL_DESCRIBE`, `KEYCTL_SETPERM`).
pub(crate) fn grant_key_rights(serial: i32, rights: u32) -> Result<(), Errno> {
    const KEYCTL_SETPERM: libc::c_int = 5;
    const KEYCTL_DESCRIBE: libc::c_int = 6;
    let mut text = [0_u8; 512];
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let length = super::check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_DESCRIBE,
            serial,
            text.as_mut_ptr(),
            text.len(),
        )
    })?;
    let text = &text[..text.len().min(length as usize)];
    let has = rights_of(text).ok_or(Errno::INVAL)?;
    // SAFETY: takes integers only.
    super::check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, serial, has | rights) })
        .map(drop)
}

/// `type;uid;gid;rights;description`, the rights in hexadecimal.
fn rights_of(description: &[u8]) -> Option<u32> {
    let field = description.split(|byte| *byte == b';').nth(3)?;
    u32::from_str_radix(std::str::from_utf8(field).ok()?, 16).ok()
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

/// `struct sched_attr` with utilization clamps (`sched_setattr(2)`, kernel 5.3).
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
    pub(crate) util_min: u32,
    pub(crate) util_max: u32,
}

/// Sets scheduling policy and parameters of the calling thread.
pub(crate) fn set_scheduler(attr: &SchedAttr) -> Result<(), Errno> {
    let mut attr = *attr;
    attr.size = size_of::<SchedAttr>() as u32;
    // SAFETY: `attr` carries its own size and outlives the call.
    super::check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) }).map(drop)
}

/// Lets the calling thread run on the processors of this bit mask only (`sched_setaffinity(2)`).
pub(crate) fn set_affinity(cpus: &[u64]) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes as the slice has.
    super::check(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            0,
            size_of_val(cpus),
            cpus.as_ptr(),
        )
    })
    .map(drop)
}

/// The processors that the calling thread may run on, as [`set_affinity`] takes them.
pub(crate) fn affinity() -> Result<Vec<u64>, Errno> {
    let mut cpus = vec![0_u64; 128];
    // SAFETY: the kernel writes at most as many bytes as the vector has, and says how many.
    let length = super::check(unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            0,
            size_of_val(cpus.as_slice()),
            cpus.as_mut_ptr(),
        )
    })?;
    cpus.truncate(length as usize / size_of::<u64>());
    Ok(cpus)
}

/// Where the calling thread's memory comes from (`set_mempolicy(2)`); flags are part of `mode`.
pub(crate) fn set_memory_policy(mode: i32, nodes: &[u64]) -> Result<(), Errno> {
    // The kernel takes one less than the number of bits it is told.
    let bits = if nodes.is_empty() {
        0
    } else {
        nodes.len() * u64::BITS as usize + 1
    };
    // SAFETY: the kernel reads no more bits than the slice has.
    super::check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, nodes.as_ptr(), bits) })
        .map(drop)
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

/// How much more than it needs the heap asks the kernel for (`mallopt(3)`, `M_TOP_PAD`).
pub(crate) fn grow_heap_by(bytes: i32) {
    // SAFETY: takes integers only; a refused value changes nothing.
    unsafe { libc::mallopt(libc::M_TOP_PAD, bytes) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rights_of_a_key_are_its_fourth_field() {
        assert_eq!(
            rights_of(b"keyring;0;0;3f3f0000;_ses.c\0"),
            Some(0x3f3f_0000)
        );
        for bad in [&b""[..], b"keyring;0;0", b"keyring;0;0;rw;name"] {
            assert_eq!(rights_of(bad), None);
        }
    }
}
