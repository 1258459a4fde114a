//! Output that its reader has not taken yet, in a file of the bundle, whose offset is how far the
//! reader is.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use crate::log;

/// Most bytes moved to the reader at once: the default capacity of a pipe.
const SPLICE: usize = 64 * 1024;

/// Where a stream's file is, and how large it may become.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    limit: u64,
}

/// A file with output that waits for its reader.
#[derive(Debug)]
pub(super) struct Spill {
    file: File,
    written: u64,
}

impl Place {
    pub(super) fn new(path: PathBuf, limit: u64) -> Place {
        Place { path, limit }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file with the beginning of `bytes`; the length of that.
    pub(super) fn begin(&self, bytes: &[u8]) -> io::Result<(Spill, usize)> {
        let mut spill = self.create()?;
        match spill.append(&bytes[..bytes.len().min(self.room(&spill))]) {
            Ok(written) => Ok((spill, written)),
            Err(error) => {
                self.end(spill);
                Err(error)
            }
        }
    }

    fn create(&self) -> io::Result<Spill> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&self.path)?;
        Ok(Spill { file, written: 0 })
    }

    /// How many bytes the file takes still.
    pub(super) fn room(&self, spill: &Spill) -> usize {
        usize::try_from(self.limit.saturating_sub(spill.written)).unwrap_or(usize::MAX)
    }

    /// The reader has got everything: the file goes.
    pub(super) fn end(&self, spill: Spill) {
        drop(spill);
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::error(format_args!("remove {}: {error}", self.path.display()));
            }
            _ => {}
        }
    }
}

impl Spill {
    /// Appends a part of `bytes`; its length.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bytes, self.written)?;
        self.written += written as u64;
        Ok(written)
    }

    /// Moves what comes next to the reader: its length, 0 at the end.
    pub(super) fn replay(&self, to: impl AsFd) -> std::result::Result<usize, Errno> {
        rustix::pipe::splice(&self.file, None, to, None, SPLICE, SpliceFlags::NONBLOCK)
    }
}
