//! Small files: read with few system calls, and written so that they appear complete or not at all
//! and the writer leaves nothing when it is killed.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawMode, linkat, open, openat, rename, unlink};
use rustix::io::{Errno, Result};

/// More than most files have that this crate reads.
const SMALL: usize = 16 << 10;

/// Reads a whole regular file, which gives all that there is room for: most with one call.
pub(crate) fn read_regular(mut file: File) -> io::Result<Vec<u8>> {
    let mut content = vec![0; SMALL];
    let length = file.read(&mut content)?;
    content.truncate(length);
    if length == SMALL {
        file.read_to_end(&mut content)?;
    }
    Ok(content)
}

/// Reads a file that the kernel makes up as it is read, without asking for its size.
pub(crate) fn read_generated(file: File) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(SMALL);
    file.take(u64::MAX).read_to_end(&mut content)?;
    Ok(content)
}

/// Puts a file with this content at `path`, in the place of one that is there.
pub(crate) fn publish(path: &Path, mode: RawMode, content: &[u8]) -> Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    match open(directory, flags, Mode::from_raw_mode(mode)) {
        Ok(nameless) => {
            write_all(&nameless, content)?;
            give_name(&nameless, path)
        }
        // Not every file system can hold a file without a name.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => write_draft(path, mode, content),
        Err(errno) => Err(errno),
    }
}

fn give_name(nameless: &OwnedFd, path: &Path) -> Result<()> {
    let source = format!("/proc/self/fd/{}", nameless.as_raw_fd());
    let link = || linkat(CWD, &source, CWD, path, AtFlags::SYMLINK_FOLLOW);
    match link() {
        Err(Errno::EXIST) => {
            unlink(path)?;
            link()
        }
        result => result,
    }
}

fn write_draft(path: &Path, mode: RawMode, content: &[u8]) -> Result<()> {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let draft = path.with_file_name(name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = openat(CWD, &draft, flags, Mode::from_raw_mode(mode))?;
    let written = write_all(&file, content).and_then(|()| rename(&draft, path));
    if written.is_err() {
        // The failure that brought us here is the one to report.
        let _ = unlink(&draft);
    }
    written
}

fn write_all(file: &OwnedFd, mut content: &[u8]) -> Result<()> {
    while !content.is_empty() {
        let written = rustix::io::write(file, content)?;
        content = &content[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<OsString> {
        let entries = std::fs::read_dir(directory).expect("directory");
        entries.map(|e| e.expect("entry").file_name()).collect()
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("pid");
        for way in [publish, write_draft] {
            for content in ["4711", "1"] {
                way(&file, 0o644, content.as_bytes()).expect("written");
                assert_eq!(std::fs::read_to_string(&file).expect("read"), content);
                assert_eq!(names(directory.path()), ["pid"]);
            }
        }
    }

    #[test]
    fn a_directory_is_no_file_to_replace() {
        let directory = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(directory.path().join("pid")).expect("made");
        assert!(publish(&directory.path().join("pid"), 0o644, b"1").is_err());
        assert!(publish(&directory.path().join("no/pid"), 0o644, b"1").is_err());
    }
}
