//! What is local of each lazy layer: verified chunks in sparse files, and a bitmap that says which.
//!
//! ```text
//! ROOT/blobs/sha256/HEX/
//!   index     the layer's index image, written once
//!   source    JSON: where the blob comes from
//!   data      segment 0: small files one after the other, each at a multiple of 4096
//!   obj/N     segment N: one large file each, from offset 0
//!   live      bitmap of present chunks, exact within one boot
//!   durable   bitmap of chunks that survive a power failure
//!   seals     digests of the segments that are sealed by fs-verity, where there is some
//! ```
//!
//! **Why two kinds of segments.** FUSE passthrough hands the kernel a whole file to read from, so
//! a file can only be passed through when it begins at offset 0 of a file of its own. One file per
//! layer file would cost an inode, a directory entry and a create for each of the thousands of
//! small ones, which gain nothing: their cost is the open, not the copy. So files of at least
//! [`OBJECT_MIN`](crate::index::OBJECT_MIN) are objects and the rest is packed. A kernel back end
//! finds the same files usable as they are: EROFS takes each segment as one device of its device
//! table (at most [`MAX_OBJECTS`](crate::index::MAX_OBJECTS) and one per layer), contents lie
//! unpacked at block-aligned positions, and a large file that is complete can lose its fanotify
//! mark alone. The price is one open per large file instead of none.
//!
//! **Crash safety.** A chunk is verified in memory, then written, and only then its bit is set, in
//! memory and in `live`. When the process dies the page cache keeps both in that order, so `live`
//! is right for as long as its boot ID is the running one. When the machine dies nothing orders
//! the two: `live` is then ignored, and `durable` counts, which [`Blob::sync`] writes in this
//! order: copy the bitmap, fdatasync every segment written to since, write the copy beside
//! `durable`, fsync it, rename. A checksum refuses a torn one. What neither bitmap claims is
//! fetched again; no state claims a chunk whose bytes are not there. When a layer's data is evicted,
//! both bitmaps go before it ([`Store::evict`]). What is complete and durable is sealed where the
//! file system has fs-verity (`seal`).

mod amount;
mod bitmap;
mod blob;
mod evict;
mod kept;
mod limits;
mod seal;
mod segments;
mod settings;
mod space;
mod stage;
mod summed;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use amount::Amount;
pub use blob::Blob;
pub use evict::{Footprint, Stored};
pub use limits::{Levels, Limits, oldest_first};
pub use seal::{Sealer, Sealing, probe};
pub use settings::{FsVerity, StoreSection};
pub use space::{Allowance, Evictions, Moment, Space};
pub use stage::Stage;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::index::LayerIndex;

/// Where a layer's blob comes from; enough to fetch from it after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// An image that names the layer, with its registry.
    pub image: String,
    /// Length of the blob in bytes.
    pub size: u64,
    /// Digest of the layer's archive, unpacked, if all of it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
}

/// All lazy layers of a node.
#[derive(Debug)]
pub struct Store {
    blobs: PathBuf,
    indexes: PathBuf,
    /// The same directory by a mount whose accesses nobody watches.
    door: Option<PathBuf>,
    boot: String,
    space: Arc<Space>,
    sealer: Arc<Sealer>,
}

impl Store {
    /// Opens the store below `root`, making it if need be, and drops what was half-made.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_by(root, None, Sealing::Absent)
    }

    /// The same; the segments are opened below `door`, which is `root` by a mount of our own. Their
    /// lengths are then whole blocks, as EROFS wants its devices. `sealing` is what [`probe`] allows.
    pub fn open_by(root: &Path, door: Option<&Path>, sealing: Sealing) -> Result<Self> {
        let blobs = root.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(Error::io("create", &blobs))?;
        let boot_path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = fs::read_to_string(boot_path).map_err(Error::io("read", boot_path))?;
        let store = Self {
            blobs,
            indexes: root.join("indexes"),
            door: door.map(|door| door.join("blobs/sha256")),
            boot: boot.trim_end().to_owned(),
            space: Arc::default(),
            sealer: Arc::new(Sealer::new(sealing)),
        };
        for name in store.names()? {
            if name.contains('.') {
                let path = store.blobs.join(&name);
                fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(store)
    }

    /// What is written to it.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// What is sealed in it.
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// Every layer that is in the store.
    pub fn layers(&self) -> Result<Vec<Digest>> {
        let names = self.names()?;
        let digests = names.iter().map(|name| format!("sha256:{name}").parse());
        Ok(digests.filter_map(Result::ok).collect())
    }

    /// Whether `layer` is in the store.
    pub fn contains(&self, layer: &Digest) -> bool {
        self.path(layer).join("index").exists()
    }

    /// Puts a layer into the store with nothing of its data; it appears whole or not at all.
    pub fn create(&self, index: &LayerIndex, origin: &Origin) -> Result<Blob> {
        let layer = index.layer();
        let path = self.path(&layer);
        let fresh = self.fresh(&layer);
        clear(&fresh)?;
        let made = Self::fill(&fresh, index, origin)
            .and_then(|()| fs::rename(&fresh, &path).map_err(Error::io("rename", &fresh)));
        if let Err(error) = made {
            // The first error is the one to report; what is left is dropped at the next start.
            let _ = fs::remove_dir_all(&fresh);
            return Err(error);
        }
        sync_directory(&self.blobs)?;
        self.load(&layer)
    }

    fn fill(fresh: &Path, index: &LayerIndex, origin: &Origin) -> Result<()> {
        let objects = fresh.join("obj");
        fs::create_dir_all(&objects).map_err(Error::io("create", &objects))?;
        write_synced(&fresh.join("index"), index.as_bytes())?;
        write_synced(&fresh.join("source"), &origin_json(origin)?)?;
        let data = fresh.join("data");
        let file = fs::File::create_new(&data).map_err(Error::io("create", &data))?;
        file.set_len(index.segment_len(0))
            .map_err(Error::io("truncate", &data))?;
        sync_directory(fresh)
    }

    /// Opens a layer of the store.
    pub fn load(&self, layer: &Digest) -> Result<Blob> {
        let door = self.door.as_ref().map(|door| door.join(layer.hex()));
        let common = blob::Common {
            boot: &self.boot,
            space: &self.space,
            sealer: &self.sealer,
        };
        Blob::open(&self.path(layer), door, layer, &common)
    }

    /// Where the layer's blob comes from.
    pub fn origin(&self, layer: &Digest) -> Result<Origin> {
        let path = self.path(layer).join("source");
        let json = fs::read(&path).map_err(|error| not_found(error, layer, "read", &path))?;
        serde_json::from_slice(&json).map_err(|error| Error::Malformed {
            what: path.display().to_string(),
            reason: error.to_string(),
        })
    }

    /// Replaces where the layer's blob comes from.
    pub fn set_origin(&self, layer: &Digest, origin: &Origin) -> Result<()> {
        let directory = self.path(layer);
        let fresh = directory.join("source.new");
        write_synced(&fresh, &origin_json(origin)?)?;
        fs::rename(&fresh, directory.join("source")).map_err(Error::io("rename", &fresh))
    }

    /// Deletes a layer; the index of one that was streamed is kept. The caller makes sure that nobody reads it any more.
    pub fn remove(&self, layer: &Digest) -> Result<()> {
        let path = self.path(layer);
        let doomed = self.blobs.join(format!("{}.old", layer.hex()));
        fs::rename(&path, &doomed).map_err(|error| not_found(error, layer, "rename", &path))?;
        if let Err(error) = self.keep_index(layer, &doomed) {
            tracing::warn!(%layer, %error, "its index is not kept");
        }
        fs::remove_dir_all(&doomed).map_err(Error::io("remove", &doomed))
    }

    /// Where a layer is made; what is left there is dropped at the next start.
    fn fresh(&self, layer: &Digest) -> PathBuf {
        self.blobs.join(format!("{}.new", layer.hex()))
    }

    /// A file that is kept beside a layer's and removed with them.
    pub fn beside(&self, layer: &Digest, name: &str) -> PathBuf {
        self.path(layer).join(name)
    }

    fn path(&self, layer: &Digest) -> PathBuf {
        self.blobs.join(layer.hex())
    }

    fn names(&self) -> Result<Vec<String>> {
        let failed = || Error::io::<io::Error>("list", &self.blobs);
        let entries = fs::read_dir(&self.blobs).map_err(failed())?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<io::Result<_>>().map_err(failed())
    }
}

/// Removes a directory that may be there.
fn clear(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn not_found(error: io::Error, layer: &Digest, action: &'static str, path: &Path) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NotFound(format!("lazy layer {layer}")),
        _ => Error::io(action, path)(error),
    }
}

fn origin_json(origin: &Origin) -> Result<Vec<u8>> {
    serde_json::to_vec(origin).map_err(|error| Error::Internal(error.to_string()))
}

/// Writes a new file and waits until it is on disk.
fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = fs::File::create(path).map_err(Error::io("create", path))?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))
}

fn sync_directory(path: &Path) -> Result<()> {
    let directory = fs::File::open(path).map_err(Error::io("open", path))?;
    directory.sync_all().map_err(Error::io("sync", path))
}

#[cfg(test)]
mod tests;
