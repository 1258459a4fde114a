//! Reading and writing cgroup files relative to a directory descriptor.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::error::{CgroupError, Result};

/// Writes `value` in one write(2), as cgroup files demand.
pub(super) fn write(dir: BorrowedFd<'_>, name: &str, value: &str) -> rustix::io::Result<()> {
    let fd = openat(dir, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::retry_on_intr(|| rustix::io::write(&fd, value.as_bytes())).map(|_| ())
}

/// Reads a whole file. Most are a few words long, which the first read(2) gives and whose end
/// a short answer shows, because cgroup files are written out in one go up to a page.
pub(super) fn read(dir: BorrowedFd<'_>, name: &str) -> rustix::io::Result<String> {
    let fd = openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = vec![0; 512];
    let len = rustix::io::retry_on_intr(|| rustix::io::read(&fd, &mut text[..]))?;
    text.truncate(len);
    if len >= 256 {
        File::from(fd)
            .read_to_end(&mut text)
            .map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::IO))?;
    }
    String::from_utf8(text).map_err(|_| Errno::ILSEQ)
}

/// Reads a whole file that older kernels, or hosts without its controller, do not have.
pub(super) fn read_optional(
    dir: BorrowedFd<'_>,
    base: &Path,
    name: &str,
) -> Result<Option<String>> {
    match read(dir, name) {
        Ok(text) => Ok(Some(text)),
        // ENODEV: the cgroup went away while its file was open. EOPNOTSUPP: PSI is switched off.
        Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(io_error("read", &base.join(name), errno)),
    }
}

/// Wraps a failed system call on `path`.
pub(super) fn io_error(action: &str, path: &Path, errno: Errno) -> CgroupError {
    CgroupError::Io {
        action: action.to_owned(),
        path: path.to_owned(),
        source: errno.into(),
    }
}
