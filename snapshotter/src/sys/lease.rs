//! Leases: the one way to learn whether a file is open anywhere, in the kernel's own hands too.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `F_SETSIG` of fcntl(2).
const F_SETSIG: libc::c_int = 10;

/// Whether anybody else has the file open that `file` is the only descriptor of in this process:
/// another process, a mounted EROFS whose device it is, or a FUSE mount that passes reads to it.
///
/// A write lease is granted to the only one who has a file open; it is given back at once.
pub(crate) fn is_open_elsewhere(file: &File) -> io::Result<bool> {
    // Whoever opens the file in between makes the kernel send a signal; the usual one would end
    // this process, this one is ignored unless somebody wants it.
    control(file, F_SETSIG, libc::SIGURG)?;
    match control(file, libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(()) => control(file, libc::F_SETLEASE, libc::F_UNLCK).map(|()| false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

fn control(file: &File, command: libc::c_int, argument: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; these commands take an
    // integer and touch no memory.
    let outcome = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_somebody_has_open_is_told_from_one_that_nobody_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        assert!(!is_open_elsewhere(&file).unwrap());
        for write in [false, true] {
            let other = File::options().read(true).write(write).open(&path).unwrap();
            assert!(is_open_elsewhere(&file).unwrap());
            drop(other);
            assert!(!is_open_elsewhere(&file).unwrap());
        }
    }
}
