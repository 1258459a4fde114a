//! The segments of one layer: which chunks are in each, and the files that hold them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::index::{ALIGN, FileMap, LayerIndex};

/// How the files are opened and how long they are.
#[derive(Debug)]
pub(super) struct Segments {
    directory: PathBuf,
    /// The same directory by a mount whose accesses nobody watches, if there is one. Files are then
    /// whole blocks, as the kernel reads them through EROFS; otherwise not a byte longer than
    /// what is in them, as FUSE hands them to the kernel, which then reads to their end.
    door: Option<PathBuf>,
    /// Readers get descriptors that nobody can write by, so that a complete file can be sealed.
    apart: bool,
    index: Arc<LayerIndex>,
    /// Made when it is needed.
    file_map: OnceLock<FileMap>,
}

impl Segments {
    pub(super) fn new(
        directory: PathBuf,
        door: Option<PathBuf>,
        apart: bool,
        index: LayerIndex,
    ) -> Self {
        Self {
            directory,
            door,
            apart,
            index: Arc::new(index),
            file_map: OnceLock::new(),
        }
    }

    pub(super) fn index(&self) -> &Arc<LayerIndex> {
        &self.index
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Which files lie where.
    pub(super) fn file_map(&self) -> &FileMap {
        self.file_map.get_or_init(|| FileMap::of(&self.index))
    }

    /// The chunks that lie in a segment.
    pub(super) fn chunks(&self, segment: u32) -> impl Iterator<Item = u32> {
        let pieces = self.file_map().pieces(&self.index, segment, 0, u64::MAX);
        pieces.flat_map(|piece| self.index.file_chunks(&piece.file))
    }

    /// The file that holds a segment.
    pub(super) fn path(&self, segment: u32) -> PathBuf {
        below(&self.directory, segment)
    }

    /// The same by the mount that nobody watches.
    pub(super) fn own_path(&self, segment: u32) -> PathBuf {
        below(self.door.as_deref().unwrap_or(&self.directory), segment)
    }

    /// How long the file of a segment is.
    pub(super) fn len(&self, segment: u32) -> u64 {
        let len = self.index.segment_len(segment);
        match self.door {
            Some(_) => len.next_multiple_of(ALIGN),
            None => len,
        }
    }

    /// Opens a segment's file for readers; it is made at its full length if it is not there (any
    /// more, after an eviction).
    pub(super) fn open(&self, segment: u32) -> Result<File> {
        if !self.apart {
            return self.open_to_write(segment);
        }
        let open = || File::open(self.own_path(segment));
        let failed = |error: io::Error| Error::io("open", &self.path(segment))(error);
        let ready = match open() {
            Ok(file) => has_len(&file, self.len(segment)).map(|is_ready| is_ready.then_some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        if let Some(file) = ready.map_err(failed)? {
            return Ok(file);
        }
        drop(self.open_to_write(segment)?);
        open().map_err(failed)
    }

    /// Opens a segment's file for reading and writing; refused once it is sealed.
    pub(super) fn open_to_write(&self, segment: u32) -> Result<File> {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.own_path(segment));
        let file = open.map_err(|error| Error::io("open", &self.path(segment))(error))?;
        set_len(&file, self.len(segment))
            .map_err(|error| Error::io("truncate", &self.path(segment))(error))?;
        Ok(file)
    }

    /// Whether a segment's file has the length that is wanted.
    pub(super) fn has_its_len(&self, segment: u32) -> Result<bool> {
        let metadata = fs::metadata(self.own_path(segment));
        let metadata = metadata.map_err(|error| Error::io("stat", &self.path(segment))(error))?;
        Ok(metadata.len() == self.len(segment))
    }

    /// Puts a copy of the right length, on disk and not sealed, in the place of a file that cannot
    /// be cut or extended. Who has the other one open keeps it.
    pub(super) fn copy_anew(&self, segment: u32) -> io::Result<()> {
        let (path, fresh) = (self.path(segment), self.path(segment).with_extension("new"));
        let copy = || {
            fs::copy(self.own_path(segment), &fresh)?;
            let file = File::options().write(true).open(&fresh)?;
            file.set_len(self.len(segment))?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        copy().inspect_err(|_| {
            // Of no use; the error to be told is the first one.
            let _ = fs::remove_file(&fresh);
        })
    }
}

fn below(directory: &Path, segment: u32) -> PathBuf {
    match segment {
        0 => directory.join("data"),
        object => directory.join("obj").join(object.to_string()),
    }
}

fn has_len(file: &File, len: u64) -> io::Result<bool> {
    Ok(file.metadata()?.len() == len)
}

fn set_len(file: &File, len: u64) -> io::Result<()> {
    if has_len(file, len)? {
        return Ok(());
    }
    file.set_len(len)
}
