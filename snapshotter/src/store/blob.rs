//! One layer of the store, open for reading and filling.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::bitmap::Bitmap;
use super::seal::{Sealer, Sealing, Seals};
use super::segments::Segments;
use super::{Space, not_found};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::index::{FileMap, Inode, LayerIndex};
use crate::sys::{Map, verity};

/// From this number on, segments are synced with their whole file system: each one alone would
/// commit the journal once.
const MANY_SEGMENTS: usize = 32;

/// An open layer.
#[derive(Debug)]
pub struct Blob {
    segments: Segments,
    present: Bitmap,
    /// None where the file system cannot seal.
    seals: Option<Seals>,
    data: Arc<File>,
    /// Objects that somebody has open: their number is what the readers need, not what exists.
    objects: Mutex<HashMap<u32, Weak<File>>>,
    /// Segments written to since the last [`Blob::sync`].
    dirty: Mutex<BTreeSet<u32>>,
    space: Arc<Space>,
}

/// What the layers of a store have in common.
pub(super) struct Common<'a> {
    pub(super) boot: &'a str,
    pub(super) space: &'a Arc<Space>,
    pub(super) sealer: &'a Arc<Sealer>,
}

impl Blob {
    pub(super) fn open(
        directory: &Path,
        door: Option<PathBuf>,
        layer: &Digest,
        common: &Common<'_>,
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
        let can_seal = common.sealer.sealing() != Sealing::Absent;
        let mut present = Bitmap::open(directory, index.chunks(), common.boot)?;
        let segments = Segments::new(directory.to_owned(), door, can_seal, index);
        let seals = can_seal
            .then(|| Seals::open(&segments, &mut present, common.boot, common.sealer))
            .transpose()?;
        Ok(Self {
            data: Arc::new(segments.open(0)?),
            segments,
            present,
            seals,
            objects: Mutex::default(),
            dirty: Mutex::default(),
            space: Arc::clone(common.space),
        })
    }

    /// Which files lie where in the segments.
    pub fn file_map(&self) -> &FileMap {
        self.segments.file_map()
    }

    /// Whether every chunk of a segment is present.
    pub fn is_segment_complete(&self, segment: u32) -> bool {
        let mut chunks = self.segments.chunks(segment);
        chunks.all(|chunk| self.has(chunk))
    }

    /// The layer's index.
    pub fn index(&self) -> &Arc<LayerIndex> {
        self.segments.index()
    }

    /// Whether a chunk is present, verified and readable.
    pub fn has(&self, chunk: u32) -> bool {
        self.present.has(chunk)
    }

    /// Bytes of all chunks that are present.
    pub fn local_bytes(&self) -> u64 {
        (0..self.index().chunks())
            .filter(|&chunk| self.has(chunk))
            .map(|chunk| u64::from(self.index().chunk(chunk).len))
            .sum()
    }

    /// Whether all chunks of a regular file are present.
    pub fn is_complete(&self, file: &Inode) -> bool {
        self.index().file_chunks(file).all(|chunk| self.has(chunk))
    }

    /// Writes the bytes of `chunk`, which the caller has verified, and marks it present.
    pub fn write_chunk(&self, chunk: u32, bytes: &[u8]) -> Result<()> {
        let (segment, position) = self.index().position(&self.index().chunk(chunk));
        let file = match self.writer(segment) {
            // Sealed meanwhile: somebody else has written it.
            Err(_) if self.has(chunk) => return Ok(()),
            opened => opened?,
        };
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
        lock(&self.dirty).extend(0..self.index().segments());
    }

    /// Reads present bytes of a regular file into all of `buffer`.
    pub fn read(&self, file: &Inode, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.segment(file.segment)?
            .read_exact_at(buffer, file.base + offset)
            .map_err(|error| {
                if let Some(seals) = &self.seals
                    && verity::is_broken(&error)
                {
                    seals.give_up(file.segment);
                }
                Error::io("read", &self.segment_path(file.segment))(error)
            })
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
        let file = self.segments.open(segment)?;
        let file = Arc::new(file);
        objects.insert(segment, Arc::downgrade(&file));
        Ok(file)
    }

    /// A descriptor to write to a segment by. Where files can be sealed it is one of its own: they
    /// can be as soon as nobody writes.
    fn writer(&self, segment: u32) -> Result<Arc<File>> {
        match self.seals {
            Some(_) => self.segments.open_to_write(segment).map(Arc::new),
            None => self.segment(segment),
        }
    }

    /// Seals what is complete and survives a power failure, where that can be done. All of it is
    /// read.
    pub fn seal(&self) {
        if let Some(seals) = &self.seals {
            // In this order: what is written by now and not durable is listed by now.
            let is_ready = |segment| {
                self.is_segment_complete(segment) && !lock(&self.dirty).contains(&segment)
            };
            self.space.note(seals.seal(&self.segments, is_ready));
        }
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
            .inspect_err(|_| lock(&self.dirty).extend(&written))?;
        if let Some(seals) = &self.seals {
            seals.expect(written);
        }
        Ok(())
    }

    fn sync_segments(&self, segments: &BTreeSet<u32>) -> Result<()> {
        if segments.len() > MANY_SEGMENTS {
            return rustix::fs::syncfs(&*self.data)
                .map_err(Error::io("sync", self.segments.directory()));
        }
        segments.iter().try_for_each(|&segment| {
            self.segment(segment)?
                .sync_data()
                .map_err(|error| Error::io("sync", &self.segment_path(segment))(error))
        })
    }

    /// The path of the file that holds a segment.
    pub fn segment_path(&self, segment: u32) -> PathBuf {
        self.segments.path(segment)
    }
}

/// Every critical section here leaves its map whole, so a panic elsewhere does not spoil it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
