//! Deleting the data of a layer while its index stays.
//!
//! **Crash safety.** Both bitmaps go first, and what is noted of seals, and the directory is synced: from then on nothing is
//! claimed, whatever becomes of the data. Files are unlinked, never cut or punched: who reads one
//! that was opened before keeps all of it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Store, not_found, sync_directory};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sys;

/// What files take on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Allocated bytes; of sparse files their blocks.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// A layer, or the index of one that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The layer.
    pub layer: Digest,
    /// All of its files.
    pub footprint: Footprint,
    /// Allocated bytes of its data alone.
    pub data: u64,
    /// When it was used last.
    pub used: SystemTime,
}

impl Store {
    /// What the layer's files take on disk, all of them together.
    pub fn footprint(&self, layer: &Digest) -> Result<Footprint> {
        let path = self.path(layer);
        footprint(&path).map_err(|error| not_found(error, layer, "measure", &path))
    }

    /// What the whole store takes, kept indexes included.
    pub fn whole_footprint(&self) -> Result<Footprint> {
        let mut sum = Footprint::default();
        for root in [&self.blobs, &self.indexes] {
            match footprint(root) {
                Ok(part) => sum += part,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("measure", root)(error)),
            }
        }
        Ok(sum)
    }

    /// A layer's size and last use; `None` if it is not there (any more).
    pub fn stored(&self, layer: &Digest) -> Result<Option<Stored>> {
        let path = self.path(layer);
        let measure = || {
            let used = fs::metadata(path.join("index"))?.modified()?;
            let mut data = 0;
            for file in segment_files(&path)? {
                data += allocated(&file)?;
            }
            Ok(Stored {
                layer: *layer,
                footprint: footprint(&path)?,
                data,
                used,
            })
        };
        unless_gone(measure()).map_err(Error::io("measure", &path))
    }

    /// Notes that a layer is used now. It costs no write of the layer's data, and survives a
    /// restart.
    pub fn touch(&self, layer: &Digest) {
        let path = self.path(layer).join("index");
        let touched = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            // Only the order of evictions suffers.
            tracing::debug!(%layer, %error, "its last use is not noted");
        }
    }

    /// Deletes the data of a layer that this process has not open; its index and its origin stay.
    /// Gives the bytes that are free now; `None` if somebody has the data open, such as a mount.
    pub fn evict(&self, layer: &Digest) -> Result<Option<u64>> {
        let directory = self.path(layer);
        let failed = |action, path: &Path, error| match error {
            error if io::Error::kind(&error) == io::ErrorKind::NotFound => {
                Error::NotFound(format!("lazy layer {layer}"))
            }
            error => Error::io(action, path)(error),
        };
        let segments = segment_files(&directory).map_err(|e| failed("list", &directory, e))?;
        let mut bytes = 0;
        for path in &segments {
            let file = File::open(path).map_err(|error| failed("open", path, error))?;
            if sys::is_open_elsewhere(&file).map_err(Error::io("take a lease of", path))? {
                return Ok(None);
            }
            let metadata = file.metadata().map_err(Error::io("stat", path))?;
            bytes += metadata.blocks() * 512;
        }
        for name in ["durable", "live", "seals"] {
            remove_if_there(&directory.join(name))?;
        }
        sync_directory(&directory)?;
        for path in &segments {
            remove_if_there(path)?;
        }
        Ok(Some(bytes))
    }

    /// The kept indexes of layers that are gone.
    pub fn kept(&self) -> Result<Vec<Stored>> {
        let list = || {
            let mut kept = Vec::new();
            for entry in fs::read_dir(&self.indexes)? {
                let entry = entry?;
                let hex = entry.file_name().to_string_lossy().into_owned();
                let Ok(layer) = format!("sha256:{hex}").parse() else {
                    continue;
                };
                let path = entry.path();
                let used = fs::metadata(path.join("index")).and_then(|index| index.modified());
                let footprint = footprint(&path)?;
                kept.push(Stored {
                    layer,
                    footprint,
                    data: footprint.bytes,
                    // One that was left half-made is used least of all.
                    used: used.unwrap_or(SystemTime::UNIX_EPOCH),
                });
            }
            Ok(kept)
        };
        let listed = unless_gone(list()).map_err(Error::io("list", &self.indexes))?;
        Ok(listed.unwrap_or_default())
    }

    /// Deletes the kept index of a layer that is gone.
    pub fn forget_kept(&self, layer: &Digest) -> Result<()> {
        super::clear(&self.kept_path(layer))
    }
}

/// The files that hold a layer's data.
fn segment_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory.join("obj"))? {
        files.push(entry?.path());
    }
    let data = directory.join("data");
    if data.exists() {
        files.push(data);
    }
    Ok(files)
}

pub(super) fn remove_if_there(path: &Path) -> Result<()> {
    unless_gone(fs::remove_file(path))
        .map(drop)
        .map_err(Error::io("remove", path))
}

pub(super) fn unless_gone<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl std::ops::AddAssign for Footprint {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

fn allocated(path: &Path) -> io::Result<u64> {
    Ok(unless_gone(fs::metadata(path))?.map_or(0, |metadata| metadata.blocks() * 512))
}

/// A directory with everything in it. What vanishes meanwhile does not count.
fn footprint(directory: &Path) -> io::Result<Footprint> {
    let mut sum = Footprint {
        bytes: fs::metadata(directory)?.blocks() * 512,
        inodes: 1,
    };
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sum += unless_gone(footprint(&entry.path()))?.unwrap_or_default();
        } else if let Some(metadata) = unless_gone(entry.metadata())? {
            sum += Footprint {
                bytes: metadata.blocks() * 512,
                inodes: 1,
            };
        }
    }
    Ok(sum)
}
