//! Output that its reader has not taken yet, in a file of the bundle. The supervisor keeps the
//! file's open description, whose offset is how far the reader is: a worker's successor goes on
//! with the very next byte.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use super::keep::Keep;
use super::{Setting, Stream};
use crate::error::{Context, Result};
use crate::log;

/// Most bytes moved to the reader at once: the default capacity of a pipe.
const SPLICE: usize = 64 * 1024;

/// Where a stream's file is, and how large it may become.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    limit: u64,
    keep: Keep,
}

/// A file with output that waits for its reader.
#[derive(Debug)]
pub(super) struct Spill {
    file: File,
    written: u64,
}

/// How the names begin under which files are kept.
pub(super) const PREFIX: &str = "spill-";

/// Name under which the file of stream `name` is kept.
pub(super) fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

fn path(bundle: &Path, name: &str) -> PathBuf {
    bundle.join(format!("{name}.spill"))
}

/// Removes the files of the named streams from `bundle`.
pub(super) fn remove(bundle: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let path = path(bundle, name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => {
                result.context(|| format!("remove {}", path.display()))?;
                log::warn(format_args!("{}: nobody has read it", path.display()));
            }
        }
    }
    Ok(())
}

impl Place {
    pub(super) fn new(setting: &Setting, name: &str, limit: u64) -> Place {
        Place {
            path: path(&setting.bundle, name),
            limit,
            keep: Keep::new(setting, "", &key(name)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file, known to the supervisor, with the beginning of `bytes`; the length of that.
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
        let kept = OwnedFd::from(file.try_clone()?);
        self.keep.commit("", vec![kept]);
        Ok(Spill { file, written: 0 })
    }

    /// Takes over the file of an earlier worker.
    pub(super) fn inherit(&self, kept: Stream) -> Option<Spill> {
        let file = File::from(kept.fds.into_iter().next()?);
        let written = file
            .metadata()
            .inspect_err(|error| log::error(format_args!("{}: {error}", self.path.display())))
            .ok()?
            .len();
        Some(Spill { file, written })
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
        self.keep.done();
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
