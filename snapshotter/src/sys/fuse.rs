//! What FUSE needs beyond its library: a session that goes on, and backing files by number.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use fuser::{BackingId, ReplyOpen};

/// `FUSE_DEV_IOC_BACKING_CLOSE`: `_IOW(229, 2, u32)`.
const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;

/// Makes the descriptor `place` stand for what `device` stands for; whatever it was is closed.
pub(crate) fn take_place(device: BorrowedFd<'_>, place: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes integers only. Whoever owns `place` goes on owning an open descriptor.
    if unsafe { libc::dup3(device.as_raw_fd(), place.as_raw_fd(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Answers that a file is open and read by the kernel from the backing file `id`, which stays
/// registered.
pub(crate) fn open_passed(reply: ReplyOpen, id: u32, answer: impl FnOnce(ReplyOpen, &BackingId)) {
    // SAFETY: the caller's session has registered the number; it is given up again below, so that
    // it is not closed here.
    let backing = unsafe { reply.wrap_backing(id) };
    answer(reply, &backing);
    let _still_open = backing.into_raw();
}

/// Ends the registration of a backing file; the kernel goes on using it where it is open.
pub(crate) fn close_backing(device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    // SAFETY: the kernel reads four bytes from the pointer, which is valid for them.
    if unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE as _, &raw const id) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
