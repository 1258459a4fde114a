//! What a namespace file refers to (`ioctl_nsfs(2)`).

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// The `CLONE_NEW*` bit of an open namespace; `ENOTTY` says that the file is none.
pub(crate) fn namespace_kind(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: this request takes no argument and only answers with a number.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    super::check(kind.into()).map(|kind| kind as u64)
}
