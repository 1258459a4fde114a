//! Page faults that another process answers: `ioctl_userfaultfd(2)`.

use std::fs::File;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr::NonNull;

use rustix::io::Errno;

/// What has happened in the process behind a descriptor. Addresses are its own.
#[derive(Debug)]
pub(crate) enum Event {
    /// Somebody waits for the page at this address.
    Fault(u64),
    /// It has a child, whose memory has this descriptor.
    Fork(OwnedFd),
    /// Memory has moved.
    Remap { from: u64, to: u64, length: u64 },
    /// Memory is empty now, or is not there any more.
    Gone { start: u64, end: u64 },
    /// Nothing that is known of.
    Other,
}

/// `struct uffd_msg`, whose argument is a union.
#[repr(C)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    argument: [u64; 3],
}

const FAULT: u8 = 0x12;
const FORK: u8 = 0x13;
const REMAP: u8 = 0x14;
const REMOVE: u8 = 0x15;
const UNMAP: u8 = 0x16;

/// Reads one event of a descriptor that does not block; none when there is none.
pub(crate) fn read_event(uffd: BorrowedFd<'_>) -> Result<Option<Event>, Errno> {
    let mut bytes = [0; size_of::<Message>()];
    match rustix::io::read(uffd, &mut bytes) {
        Ok(length) if length == bytes.len() => {}
        Ok(_) => return Err(Errno::IO),
        Err(Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(errno),
    }
    // SAFETY: a message is integers alone, of the size that was read.
    let message: Message = unsafe { std::mem::transmute(bytes) };
    let [first, second, third] = message.argument;
    Ok(Some(match message.event {
        // The first word has flags.
        FAULT => Event::Fault(second),
        // SAFETY: the kernel has just made the descriptor, for whoever reads the event.
        FORK => Event::Fork(unsafe { OwnedFd::from_raw_fd(first as u32 as i32) }),
        REMAP => Event::Remap {
            from: first,
            to: second,
            length: third,
        },
        REMOVE | UNMAP => Event::Gone {
            start: first,
            end: second,
        },
        _ => Event::Other,
    }))
}

/// Whether this process may answer the faults of others (`userfaultfd(2)`).
pub(crate) fn is_allowed() -> bool {
    // SAFETY: the call takes flags alone.
    let made = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    let Ok(made) = super::check(made) else {
        return false;
    };
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    drop(unsafe { OwnedFd::from_raw_fd(made as i32) });
    true
}

/// A file as memory to copy from, which is never read by this process itself: what cannot be read is
/// an error of the copy.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: it is an address and a length; nobody reads or writes through them here.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of a file.
    pub(crate) fn new(file: &File, length: u64) -> Result<Self, Errno> {
        let length = usize::try_from(length).map_err(|_| Errno::FBIG)?;
        // SAFETY: the kernel chooses the place, and nothing is read or written here.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(Self { start, length }),
            _ => Err(super::last_errno()),
        }
    }

    /// Whether the file was long enough for this part.
    pub(crate) fn has(&self, offset: u64, length: u64) -> bool {
        self.address(offset, length).is_ok()
    }

    /// Has a part of it at hand, if that can be read; no more than a wish.
    pub(crate) fn populate(&self, offset: u64, length: u64) {
        /// From Linux 5.14.
        const MADV_POPULATE_READ: libc::c_int = 22;
        let page = offset & !4095;
        if let Ok(start) = self.address(page, length + (offset - page)) {
            let length = (length + (offset - page)) as usize;
            // SAFETY: this is mapped, and advice changes nothing of what is in it.
            unsafe { libc::madvise(start as *mut libc::c_void, length, MADV_POPULATE_READ) };
        }
    }

    fn address(&self, offset: u64, length: u64) -> Result<u64, Errno> {
        let end = offset.checked_add(length).ok_or(Errno::FAULT)?;
        if end > self.length as u64 {
            return Err(Errno::FAULT);
        }
        Ok(self.start.as_ptr() as u64 + offset)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is what was mapped, and no reference to it was ever made.
        unsafe { libc::munmap(self.start.as_ptr(), self.length) };
    }
}

/// Puts a part of `source` into the process, and wakes who waits for it; the bytes that are there
/// now, which may be fewer.
pub(crate) fn copy(
    uffd: BorrowedFd<'_>,
    to: u64,
    (source, offset, length): (&Mapping, u64, u64),
) -> Result<u64, Errno> {
    let from = source.address(offset, length)?;
    let mut request = [to, from, length, 0, 0];
    ioctl(uffd, 0xc028_aa03, &mut request).or_else(|errno| partial(request[4], errno))
}

/// Puts zeroes there.
pub(crate) fn zero(uffd: BorrowedFd<'_>, start: u64, length: u64) -> Result<u64, Errno> {
    let mut request = [start, length, 0, 0];
    ioctl(uffd, 0xc020_aa04, &mut request).or_else(|errno| partial(request[3], errno))
}

/// Has whoever needs these pages get SIGBUS (Linux 6.6).
pub(crate) fn poison(uffd: BorrowedFd<'_>, start: u64, length: u64) -> Result<u64, Errno> {
    let mut request = [start, length, 0, 0];
    ioctl(uffd, 0xc020_aa08, &mut request).or_else(|errno| partial(request[3], errno))
}

/// Wakes who waits for these pages.
pub(crate) fn wake(uffd: BorrowedFd<'_>, start: u64, length: u64) -> Result<(), Errno> {
    let mut request = [start, length];
    // _IOR, though it is read.
    ioctl(uffd, 0x8010_aa02, &mut request).map(drop)
}

/// What the kernel has done before it stopped.
fn partial(done: u64, errno: Errno) -> Result<u64, Errno> {
    match done.cast_signed() {
        done if done > 0 => Ok(done as u64),
        done if done < 0 && errno == Errno::AGAIN => Err(Errno::from_raw_os_error(-done as i32)),
        _ => Err(errno),
    }
}

/// On success all of the request's length was done, which is its second or third word.
fn ioctl<const N: usize>(
    uffd: BorrowedFd<'_>,
    number: libc::Ioctl,
    request: &mut [u64; N],
) -> Result<u64, Errno> {
    // SAFETY: each request is as many words as its number says, read and written in place; memory
    // that it names is the other process's, or mapped for as long as the caller borrows it.
    let returned = unsafe { libc::ioctl(uffd.as_raw_fd(), number, request.as_mut_ptr()) };
    super::check(returned.into())?;
    Ok(if N == 5 { request[2] } else { request[1] })
}
