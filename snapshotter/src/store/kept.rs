//! The indexes of layers that were streamed once: when such a layer is pulled again after it was
//! removed, it is read lazily.
//!
//! They lie in `ROOT/indexes`: `HEX/index` and, with the diff ID that the layer was found to have,
//! `HEX/source`. They were made here from a blob with the right digest, so nothing but their checksum
//! has to be checked.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Origin, Store, clear};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::index::LayerIndex;
use crate::sys::Map;

/// Most bytes of kept indexes; the ones used least lately go first.
const MAX_BYTES: u64 = 128 << 20;

/// What is known of a layer that was streamed and removed.
#[derive(Debug)]
pub struct Kept {
    /// Its files and where their bytes are.
    pub index: LayerIndex,
    /// Digest of its archive, unpacked.
    pub diff_id: Digest,
}

impl Store {
    /// What is kept of a layer that was streamed and removed.
    pub fn kept_index(&self, layer: &Digest) -> Option<Kept> {
        let directory = self.kept_path(layer);
        let file = File::open(directory.join("index")).ok()?;
        let map = Map::new(&file).ok()?;
        let origin = fs::read(directory.join("source")).ok()?;
        let diff_id = serde_json::from_slice::<Origin>(&origin).ok()?.diff_id?;
        match LayerIndex::from_image(Box::new(map)) {
            Ok(index) if index.layer() == *layer => {
                // What was of use stays longest. An unwritable time only makes it go earlier.
                let _ = file.set_modified(SystemTime::now());
                Some(Kept { index, diff_id })
            }
            Ok(_) => None,
            Err(flaw) => {
                tracing::debug!(%layer, %flaw, "a kept index is of no use");
                None
            }
        }
    }

    /// Whether [`Store::kept_index`] may have one.
    pub fn has_kept_index(&self, layer: &Digest) -> bool {
        self.kept_path(layer).exists()
    }

    /// Keeps the index of a layer in `directory`, which is about to be deleted, if it was streamed.
    pub(super) fn keep_index(&self, layer: &Digest, directory: &Path) -> Result<()> {
        let path = directory.join("index");
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let map = Map::new(&file).map_err(Error::io("map", &path))?;
        let index = LayerIndex::from_image(Box::new(map)).map_err(|flaw| flaw.of(layer))?;
        // One that somebody else has described can be had from there again.
        if index.toc() != *layer {
            return Ok(());
        }
        drop(index);
        let kept = self.kept_path(layer);
        clear(&kept)?;
        fs::create_dir_all(&kept).map_err(Error::io("create", &kept))?;
        for name in ["index", "source"].map(OsStr::new) {
            let from = directory.join(name);
            fs::rename(&from, kept.join(name)).map_err(Error::io("rename", &from))?;
        }
        self.prune(MAX_BYTES)
            .map_err(Error::io("prune", &self.indexes))
    }

    pub(super) fn kept_path(&self, layer: &Digest) -> PathBuf {
        self.indexes.join(layer.hex())
    }

    /// Deletes the indexes used least lately until the rest takes at most `limit` bytes.
    fn prune(&self, limit: u64) -> io::Result<()> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.indexes)? {
            let path = entry?.path();
            // One that was left half-made is used least of all.
            let (used, len) = match fs::metadata(path.join("index")) {
                Ok(metadata) => (metadata.modified()?, metadata.len()),
                Err(_) => (SystemTime::UNIX_EPOCH, limit),
            };
            kept.push((used, len, path));
        }
        kept.sort_unstable_by_key(|(used, ..)| std::cmp::Reverse(*used));
        let mut sum = 0;
        for (_, len, path) in kept {
            sum += len;
            if sum > limit {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::ingest;
    use crate::store::Origin;

    /// Streams a layer of one file into a new store and removes it again.
    fn streamed_and_removed(root: &Path, content: &[u8]) -> (Store, Digest) {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, "file", content).unwrap();
        let blob = tar.into_inner().unwrap();
        let (layer, size) = (Digest::of(&blob), blob.len() as u64);
        let store = Store::open(root).unwrap();
        let mut stage = store.stage(&layer).unwrap();
        let ingested = ingest(layer, size, |sink| sink(&blob), &mut stage).unwrap();
        let origin = Origin {
            image: "registry.example/app:v1".to_owned(),
            size,
            diff_id: Some(ingested.diff_id),
        };
        drop(stage.publish(&ingested.index, &origin).unwrap());
        assert!(!store.has_kept_index(&layer));
        store.remove(&layer).unwrap();
        (store, layer)
    }

    #[test]
    fn the_index_of_a_streamed_layer_outlives_it() {
        let root = tempfile::tempdir().unwrap();
        let (store, layer) = streamed_and_removed(root.path(), &[7; 5000]);
        assert!(!store.contains(&layer));
        let kept = store.kept_index(&layer).unwrap();
        assert_eq!((kept.index.layer(), kept.index.data_size()), (layer, 5000));
        // The blob is an archive as it is.
        assert_eq!(kept.diff_id, layer);
        assert!(store.kept_index(&Digest::of(b"another")).is_none());
        // A torn one is none.
        let path = store.kept_path(&layer).join("index");
        let mut bytes = fs::read(&path).unwrap();
        bytes[100] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        assert!(store.kept_index(&layer).is_none());
    }

    #[test]
    fn the_least_used_indexes_go_first() {
        let root = tempfile::tempdir().unwrap();
        let (_, first) = streamed_and_removed(root.path(), b"first");
        let (_, second) = streamed_and_removed(root.path(), b"second");
        let (store, third) = streamed_and_removed(root.path(), b"third");
        let touch = |layer: &Digest, seconds: u64| {
            let file = File::open(store.kept_path(layer).join("index")).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            file.set_modified(time).unwrap();
        };
        for (layer, time) in [(&first, 100), (&second, 200), (&third, 300)] {
            touch(layer, time);
        }
        assert!(
            store.kept_index(&first).is_some(),
            "and so it was used last"
        );
        let len = fs::metadata(store.kept_path(&first).join("index"))
            .unwrap()
            .len();
        store.prune(2 * len + 50).unwrap();
        let left = [first, second, third].map(|layer| store.has_kept_index(&layer));
        assert_eq!(left, [true, false, true]);
    }
}
