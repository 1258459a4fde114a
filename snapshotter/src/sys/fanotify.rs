//! fanotify groups for events before content is read (`FAN_PRE_ACCESS`, Linux 6.14), and for news of
//! files that are opened.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Asked before bytes of a file are read or written.
const FAN_PRE_ACCESS: u64 = 0x0010_0000;
/// Events of a mark are not wanted (Linux 6.0).
const FAN_MARK_IGNORE: u32 = 0x400;

/// A new group whose events are asked before anyone may read; events come with descriptors for
/// reading that raise no events themselves.
pub(crate) fn new_group() -> io::Result<OwnedFd> {
    let flags = libc::FAN_CLASS_PRE_CONTENT
        | libc::FAN_CLOEXEC
        | libc::FAN_NONBLOCK
        | libc::FAN_UNLIMITED_QUEUE
        | libc::FAN_UNLIMITED_MARKS;
    let event_flags = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC;
    // SAFETY: takes integers only.
    let fd = unsafe { libc::fanotify_init(flags, event_flags as u32) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Asks for events of the file `path`, relative to `dir`.
pub(crate) fn watch(group: BorrowedFd<'_>, dir: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    mark(group, libc::FAN_MARK_ADD, dir, path)
}

/// Asks for no more events of the file `path`, relative to `dir`.
pub(crate) fn unwatch(group: BorrowedFd<'_>, dir: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    mark(group, libc::FAN_MARK_REMOVE, dir, path)
}

/// Accesses by way of the mount `tree` raise no events.
pub(crate) fn ignore_mount(group: BorrowedFd<'_>, tree: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::FAN_MARK_ADD
        | libc::FAN_MARK_MOUNT
        | libc::FAN_MARK_IGNORED_SURV_MODIFY
        | FAN_MARK_IGNORE;
    mark(group, flags, tree, c".")
}

/// A new group that hears of what happens and holds nobody up.
pub(crate) fn new_listener() -> io::Result<OwnedFd> {
    let flags =
        libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | libc::FAN_UNLIMITED_QUEUE;
    let event_flags = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC;
    // SAFETY: takes integers only.
    let fd = unsafe { libc::fanotify_init(flags, event_flags as u32) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Asks for news of every file that is opened in the file system of `dir`, by whatever mount.
pub(crate) fn listen(group: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
    // SAFETY: the path is a C string; the rest are integers.
    let marked = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            flags,
            libc::FAN_OPEN,
            dir.as_raw_fd(),
            c".".as_ptr(),
        )
    };
    if marked < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Bytes of an event without records.
const NEWS: usize = 24;

/// The next file that was opened; `None` if there is none.
pub(crate) fn next_opened(group: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    use rustix::io::Errno;
    let mut buffer = [0; NEWS];
    loop {
        match rustix::io::read(group, &mut buffer) {
            Ok(_) => break,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            // Somebody's device, pipe or locked file that cannot be opened for us: no news of it.
            Err(Errno::NXIO | Errno::NODEV | Errno::ACCESS | Errno::PERM | Errno::STALE) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let fd = i32::from_ne_bytes([buffer[16], buffer[17], buffer[18], buffer[19]]);
    if fd < 0 {
        return Err(io::Error::other("an event without a file"));
    }
    // SAFETY: this read has made the descriptor for us, and nobody else knows it yet.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn mark(group: BorrowedFd<'_>, flags: u32, dir: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    // SAFETY: the path is a C string that outlives the call; the rest are integers.
    let marked = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            flags,
            FAN_PRE_ACCESS,
            dir.as_raw_fd(),
            path.as_ptr(),
        )
    };
    if marked < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A read or write that waits for an answer.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// The file; its number names the event in the answer, in any process.
    pub(crate) file: OwnedFd,
    /// First byte.
    pub(crate) offset: u64,
    /// Bytes; `None` if the kernel does not say which.
    pub(crate) count: Option<u64>,
}

/// Bytes of an event with one record of a range; a second one does not fit into [`BUFFER`].
const EVENT: usize = 48;
const BUFFER: usize = 64;
/// Kind of the record that holds a range.
const RANGE: u8 = 6;

/// Takes one event from the queue; `None` if there is none.
pub(crate) fn next_event(group: BorrowedFd<'_>) -> io::Result<Option<Waiting>> {
    let mut buffer = [0; BUFFER];
    let len = match rustix::io::read(group, &mut buffer) {
        Ok(len) => len,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let u16_at = |at: usize| u16::from_ne_bytes([buffer[at], buffer[at + 1]]);
    let u64_at = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&buffer[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    let fd = i32::from_ne_bytes([buffer[16], buffer[17], buffer[18], buffer[19]]);
    if len < usize::from(u16_at(6)) || fd < 0 {
        return Err(io::Error::other("an event without a file"));
    }
    // SAFETY: this read has made the descriptor for us, and nobody else knows it yet.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    let record = usize::from(u16_at(6));
    let has_range = record + 24 <= EVENT && len >= EVENT && buffer[record] == RANGE;
    let (offset, count) = if has_range {
        (u64_at(record + 8), u64_at(record + 16))
    } else {
        (0, 0)
    };
    Ok(Some(Waiting {
        file,
        offset,
        count: (count > 0).then_some(count),
    }))
}
