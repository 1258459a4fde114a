//! Asking the kernel which seccomp filter flags it knows.

/// `SECCOMP_SET_MODE_FILTER` of `linux/seccomp.h`.
const SET_MODE_FILTER: libc::c_uint = 1;

/// Whether seccomp(2) knows the filter flags: with a null program it fails with EFAULT once the
/// flags are accepted, and installs nothing.
pub(crate) fn knows_filter_flags(flags: u32) -> bool {
    // SAFETY: the null program pointer is the point: the kernel copies it with fault handling.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            libc::c_ulong::from(flags),
            std::ptr::null::<libc::sock_fprog>(),
        )
    };
    ret == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}
