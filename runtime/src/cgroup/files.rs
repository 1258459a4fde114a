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

/// Reads a whole file.
pub(super) fn read(dir: BorrowedFd<'_>, name: &str) -> rustix::io::Result<String> {
    let fd = openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    File::from(fd)
        .read_to_string(&mut text)
        .map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::IO))?;
    Ok(text)
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
