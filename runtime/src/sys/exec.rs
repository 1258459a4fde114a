//! `execve` and its arrays, laid out before the clone.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

/// A null-terminated array of C strings, with room for one more that is set later.
#[derive(Debug)]
pub(crate) struct CStrArray {
    strings: Vec<CString>,
    pointers: Vec<Cell<*const c_char>>,
    late: Box<[Cell<u8>]>,
}

/// Space for the one string that only the child knows: `HOME=` and a path.
const LATE_SIZE: usize = 1024;

impl CStrArray {
    /// Lays the array out; with `spare` for one string to come.
    pub(crate) fn new(strings: Vec<CString>, spare: bool) -> Self {
        let mut pointers = Vec::with_capacity(strings.len() + 2);
        pointers.extend(strings.iter().map(|s| Cell::new(s.as_ptr())));
        pointers.resize(strings.len() + 2, Cell::new(std::ptr::null()));
        let late = if spare { LATE_SIZE } else { 0 };
        Self {
            strings,
            pointers,
            late: vec![Cell::new(0); late].into(),
        }
    }

    /// Appends `head` + `tail` without allocating; what does not fit is refused.
    pub(crate) fn append_late(&self, head: &[u8], tail: &[u8]) -> Result<(), Errno> {
        // One byte stays zero as the end.
        if head.len() + tail.len() >= self.late.len() {
            return Err(Errno::NAMETOOLONG);
        }
        for (to, from) in self.late.iter().zip(head.iter().chain(tail)) {
            to.set(*from);
        }
        self.pointers[self.strings.len()].set(self.late.as_ptr().cast());
        Ok(())
    }

    /// The strings given at the start.
    pub(crate) fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// `execve(2)`; comes back only with an error.
pub(crate) fn execve(path: &CStr, argv: &CStrArray, envp: &CStrArray) -> Errno {
    // SAFETY: all pointers are to C strings owned by the arrays (or to `late`, which ends with a
    // zero and does not move), both arrays end with a null pointer, and Cell is transparent.
    unsafe {
        libc::execve(
            path.as_ptr(),
            argv.pointers.as_ptr().cast(),
            envp.pointers.as_ptr().cast(),
        )
    };
    super::last_errno()
}

/// `execveat(2)` of an open file; comes back only with an error.
pub(crate) fn execve_file(file: BorrowedFd<'_>, argv: &CStrArray, envp: &CStrArray) -> Errno {
    // SAFETY: the arrays are as in `execve`; the empty path with AT_EMPTY_PATH names `file` itself.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.pointers.as_ptr(),
            envp.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    super::last_errno()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_string_takes_the_spare_slot_and_the_array_stays_terminated() {
        let array = CStrArray::new(vec![c"A=1".to_owned(), c"B=2".to_owned()], true);
        array.append_late(b"HOME=", b"/root").expect("short enough");
        assert_eq!(array.pointers.len(), 4);
        assert!(!array.pointers[2].get().is_null());
        assert!(array.pointers[3].get().is_null());
        assert!(array.append_late(b"HOME=", &[b'x'; 5000]).is_err());
    }
}
