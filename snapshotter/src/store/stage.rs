//! A layer that is written before it is known to be good.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::bitmap::Bitmap;
use super::{Blob, Origin, Store, clear, origin_json, sync_directory, write_synced};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::index::LayerIndex;
use crate::ingest::Contents;

/// The contents of a layer as they arrive. Nobody can read them before [`Stage::publish`], and
/// without it they are gone.
#[derive(Debug)]
pub struct Stage<'a> {
    store: &'a Store,
    layer: Digest,
    fresh: PathBuf,
    data: File,
    /// The object written to last: an archive's files come one after the other.
    object: Option<(u32, File)>,
}

impl Store {
    /// Begins to write a layer that is not in the store.
    pub fn stage(&self, layer: &Digest) -> Result<Stage<'_>> {
        let fresh = self.fresh(layer);
        clear(&fresh)?;
        let objects = fresh.join("obj");
        fs::create_dir_all(&objects).map_err(Error::io("create", &objects))?;
        let data = fresh.join("data");
        Ok(Stage {
            store: self,
            layer: *layer,
            data: File::create_new(&data).map_err(Error::io("create", &data))?,
            object: None,
            fresh,
        })
    }
}

impl Contents for Stage<'_> {
    fn write(&mut self, segment: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        let path = || match segment {
            0 => self.fresh.join("data"),
            object => self.fresh.join("obj").join(object.to_string()),
        };
        let file = match &self.object {
            _ if segment == 0 => &self.data,
            Some((current, file)) if *current == segment => file,
            _ => {
                let file = File::create_new(path()).map_err(Error::io("create", &path()))?;
                &self.object.insert((segment, file)).1
            }
        };
        let space = &self.store.space;
        space.with_room(|| {
            file.write_all_at(bytes, offset)
                .map_err(|error| Error::io("write", &path())(error))
        })?;
        space.note(bytes.len() as u64);
        Ok(())
    }
}

impl Stage<'_> {
    /// Puts the layer into the store: all of its contents are here and verified.
    pub fn publish(self, index: &LayerIndex, origin: &Origin) -> Result<Blob> {
        let data = self.fresh.join("data");
        self.data
            .set_len(index.segment_len(0))
            .map_err(Error::io("truncate", &data))?;
        write_synced(&self.fresh.join("index"), index.as_bytes())?;
        write_synced(&self.fresh.join("source"), &origin_json(origin)?)?;
        Bitmap::write_full(&self.fresh, index.chunks(), &self.store.boot)?;
        sync_directory(&self.fresh)?;
        let path = self.store.path(&self.layer);
        fs::rename(&self.fresh, &path).map_err(Error::io("rename", &self.fresh))?;
        sync_directory(&self.store.blobs)?;
        let blob = self.store.load(&self.layer)?;
        blob.note_all_written();
        Ok(blob)
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(
                    path = %self.fresh.display(), %error,
                    "what was streamed stays until the next start"
                );
            }
            _ => {}
        }
    }
}
