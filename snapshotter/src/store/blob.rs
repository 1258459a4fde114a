//! One layer of the store, open for reading and filling.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::bitmap::Bitmap;
use super::{Space, not_found};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::index::{ALIGN, FileMap, Inode, LayerIndex};
use crate::sys::Map;

/// From this number on, segments are synced with their whole file system: each one alone would
/// commit the journal once.
const MANY_SEGMENTS: usize = 32;

/// An open layer.
#[derive(Debug)]
pub struct Blob {
    directory: PathBuf,
    /// The same directory by a mount whose accesses nobody watches, if there is one.
    door: Option<PathBuf>,
    index: Arc<LayerIndex>,
    /// Made when it is needed.
    file_map: OnceLock<FileMap>,
    present: Bitmap,
    data: Arc<File>,
    /// Objects that somebody has open: their number is what the readers need, not what exists.
    objects: Mutex<HashMap<u32, Weak<File>>>,
    /// Segments written to since the last [`Blob::sync`].
    dirty: Mutex<BTreeSet<u32>>,
    space: Arc<Space>,
}

impl Blob {
    pub(super) fn open(
        directory: &Path,
        door: Option<PathBuf>,
        layer: &Digest,
        (boot, space): (&str, &Arc<Space>),
    ) -> Result<Self> {
        let path = directory.join("index");
        let file = File::open(&path).map_err(|error| not_found(error, layer, "open", &path))?;
        let image = Map::new(&file).map_err(Error::io("map", &path))?;
        let index = LayerIndex::from_image(Box::new(image)).map_err(|flaw| flaw.of(layer))?;
        if index.layer() != *layer {
            return Err(Error::Malformed {
                what: path.display().to_string(),
                reason: format!("it is the index of {}", index.layer()),
            });
        }
        let data = directory.join("data");
        let by_door = door
            .as_ref()
            .map_or_else(|| data.clone(), |door| door.join("data"));
        // Not there after an eviction.
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(by_door);
        let file = open.map_err(Error::io("open", &data))?;
        set_len(&file, segment_len(&index, 0, door.is_some()))
            .map_err(Error::io("truncate", &data))?;
        Ok(Self {
            present: Bitmap::open(directory, index.chunks(), boot)?,
            data: Arc::new(file),
            index: Arc::new(index),
            directory: directory.to_owned(),
            door,
            file_map: OnceLock::new(),
            objects: Mutex::default(),
            dirty: Mutex::default(),
            space: Arc::clone(space),
        })
    }

    /// Which files lie where in the segments.
    pub fn file_map(&self) -> &FileMap {
        self.file_map.get_or_init(|| FileMap::of(&self.index))
    }

    /// Whether every chunk of a segment is present.
    pub fn is_segment_complete(&self, segment: u32) -> bool {
        let mut pieces = self.file_map().pieces(&self.index, segment, 0, u64::MAX);
        pieces.all(|piece| self.is_complete(&piece.file))
    }

    /// The layer's index.
    pub fn index(&self) -> &Arc<LayerIndex> {
        &self.index
    }

    /// Whether a chunk is present, verified and readable.
    pub fn has(&self, chunk: u32) -> bool {
        self.present.has(chunk)
    }

    /// Bytes of all chunks that are present.
    pub fn local_bytes(&self) -> u64 {
        (0..self.index.chunks())
            .filter(|&chunk| self.has(chunk))
            .map(|chunk| u64::from(self.index.chunk(chunk).len))
            .sum()
    }

    /// Whether all chunks of a regular file are present.
    pub fn is_complete(&self, file: &Inode) -> bool {
        self.index.file_chunks(file).all(|chunk| self.has(chunk))
    }

    /// Writes the bytes of `chunk`, which the caller has verified, and marks it present.
    pub fn write_chunk(&self, chunk: u32, bytes: &[u8]) -> Result<()> {
        let (segment, position) = self.index.position(&self.index.chunk(chunk));
        let file = self.segment(segment)?;
        self.space.with_room(|| {
            file.write_all_at(bytes, position)
                .map_err(|error| Error::io("write", &self.segment_path(segment))(error))
        })?;
        self.space.note(bytes.len() as u64);
        // Under one lock with the bit: no copy of the bitmap has a bit whose segment is not listed.
        let mut dirty = lock(&self.dirty);
        dirty.insert(segment);
        self.present.set(chunk)
    }

    /// Takes note that everything was written without [`Blob::write_chunk`].
    pub(super) fn note_all_written(&self) {
        lock(&self.dirty).extend(0..self.index.segments());
    }

    /// Reads present bytes of a regular file into all of `buffer`.
    pub fn read(&self, file: &Inode, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.segment(file.segment)?
            .read_exact_at(buffer, file.base + offset)
            .map_err(|error| Error::io("read", &self.segment_path(file.segment))(error))
    }

    /// The file of the store that holds a segment; made at its full length when it is new.
    pub fn segment(&self, segment: u32) -> Result<Arc<File>> {
        if segment == 0 {
            return Ok(Arc::clone(&self.data));
        }
        let mut objects = lock(&self.objects);
        if let Some(file) = objects.get(&segment).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let path = self.segment_path(segment);
        let by_door = self
            .door
            .as_ref()
            .map(|door| door.join("obj").join(segment.to_string()));
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(by_door.as_ref().unwrap_or(&path));
        let file = open.map_err(Error::io("open", &path))?;
        let len = segment_len(&self.index, segment, self.door.is_some());
        set_len(&file, len).map_err(Error::io("truncate", &path))?;
        let file = Arc::new(file);
        objects.insert(segment, Arc::downgrade(&file));
        Ok(file)
    }

    /// Makes everything that is present now survive a power failure; see the module's rules.
    pub fn sync(&self) -> Result<()> {
        let (written, bits) = {
            let mut dirty = lock(&self.dirty);
            (std::mem::take(&mut *dirty), self.present.snapshot())
        };
        if written.is_empty() {
            return Ok(());
        }
        self.sync_segments(&written)
            .and_then(|()| self.present.write_durable(&bits))
            .inspect_err(|_| lock(&self.dirty).extend(written))
    }

    fn sync_segments(&self, segments: &BTreeSet<u32>) -> Result<()> {
        if segments.len() > MANY_SEGMENTS {
            return rustix::fs::syncfs(&*self.data).map_err(Error::io("sync", &self.directory));
        }
        segments.iter().try_for_each(|&segment| {
            self.segment(segment)?
                .sync_data()
                .map_err(|error| Error::io("sync", &self.segment_path(segment))(error))
        })
    }

    /// The path of the file that holds a segment.
    pub fn segment_path(&self, segment: u32) -> PathBuf {
        match segment {
            0 => self.directory.join("data"),
            object => self.directory.join("obj").join(object.to_string()),
        }
    }
}

/// How long a segment's file is: whole blocks where the kernel reads it through EROFS, and not a
/// byte more than the file's where FUSE hands it to the kernel, which then reads to its end.
fn segment_len(index: &LayerIndex, segment: u32, in_blocks: bool) -> u64 {
    let len = index.segment_len(segment);
    if in_blocks {
        len.next_multiple_of(ALIGN)
    } else {
        len
    }
}

fn set_len(file: &File, len: u64) -> std::io::Result<()> {
    if file.metadata()?.len() == len {
        return Ok(());
    }
    file.set_len(len)
}

/// Every critical section here leaves its map whole, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
