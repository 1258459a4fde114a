//! A file mapped for reading.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

/// A private, read-only mapping of a whole file.
///
/// The file must never shrink or change while it is mapped: the store only maps files that it
/// published by `rename` and never opens for writing again.
#[derive(Debug)]
pub(crate) struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is read-only for everyone and lives as long as the `Map`.
unsafe impl Send for Map {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Map {}

impl Map {
    /// Maps all of `file`; an empty file cannot be mapped and is an error.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len())
            .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory in use.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                file,
                0,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// Lets go of the pages that were looked at; the next look takes them from the page cache.
    pub(crate) fn let_go(&self) {
        // SAFETY: the mapping is ours, private and never written to, so that each of its pages is
        // the same when it is looked at again.
        let told = unsafe {
            rustix::mm::madvise(
                self.start.as_ptr().cast(),
                self.len,
                rustix::mm::Advice::LinuxDontNeed,
            )
        };
        debug_assert!(told.is_ok(), "madvise of an own mapping");
    }

    /// Offsets and lengths in bytes of what the page cache holds of the file.
    pub(crate) fn resident(&self) -> io::Result<Vec<(u64, u64)>> {
        let page = rustix::param::page_size();
        let mut pages = vec![0_u8; self.len.div_ceil(page)];
        // SAFETY: the mapping is ours, and `pages` has a byte for each of its pages.
        let looked =
            unsafe { libc::mincore(self.start.as_ptr().cast(), self.len, pages.as_mut_ptr()) };
        if looked < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (number, _) in pages.iter().enumerate().filter(|(_, page)| **page & 1 == 1) {
            let (at, len) = (number * page, page.min(self.len - number * page));
            match ranges.last_mut() {
                Some((from, before)) if *from + *before == at as u64 => *before += len as u64,
                _ => ranges.push((at as u64, len as u64)),
            }
        }
        Ok(ranges)
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` and `len` describe a readable mapping that lives as long as `self`, and
        // by the type's contract its file does not change.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl crate::index::Image for Map {
    fn let_go(&self) {
        Self::let_go(self);
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and nothing borrows from it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_mapped_file_reads_as_it_was_written() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"some bytes").unwrap();
        assert_eq!(&Map::new(&file).unwrap()[..], b"some bytes");
    }

    #[test]
    fn what_was_let_go_is_there_again() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        file.write_all(&bytes).unwrap();
        let map = Map::new(&file).unwrap();
        for _ in 0..2 {
            assert!(map[..] == bytes);
            map.let_go();
        }
    }

    #[test]
    fn an_empty_file_is_an_error() {
        assert!(Map::new(&tempfile::tempfile().unwrap()).is_err());
    }
}
