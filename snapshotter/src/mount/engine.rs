//! All lazy layers of one node, and the chains of them that are mounted.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::fuse::TreeFs;
use super::layers::Layers;
use super::session::{self, Mounted};
use super::{Blobs, LayerId, LayerSource, LazyConfig, MountPoint};
use crate::digest::Hasher;
use crate::error::{Error, Result};
use crate::fill::pool::Pool;
use crate::index::Tree;

/// How often what was fetched is made to survive a power failure.
const TIDY_INTERVAL: Duration = Duration::from_secs(20);

/// All lazy layers of one node.
pub struct Lazy {
    mounts_dir: PathBuf,
    config: LazyConfig,
    pool: Arc<Pool>,
    layers: Arc<Layers>,
    mounts: Mutex<HashMap<Vec<LayerId>, Use>>,
    tidier: Mutex<Option<Tidier>>,
}

/// A mounted chain and how often it is in use.
struct Use {
    mounted: Mounted,
    count: usize,
}

/// The thread that tidies; it ends when the sender is dropped.
struct Tidier {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Lazy {
    /// Opens the store below `root` and clears what an earlier daemon left mounted; no network.
    pub fn open(root: &Path, blobs: Arc<dyn Blobs>, config: LazyConfig) -> Result<Self> {
        let mounts_dir = root.join("mnt");
        clear_mounts(&mounts_dir)?;
        let pool = Arc::new(Pool::default());
        let layers = Arc::new(Layers::open(root, blobs, Arc::clone(&pool))?);
        let tidier = start_tidier(Arc::clone(&layers))?;
        Ok(Self {
            mounts_dir,
            config,
            pool,
            layers,
            mounts: Mutex::default(),
            tidier: Mutex::new(Some(tidier)),
        })
    }

    /// Makes a layer ready to be mounted; `None` means that it cannot be read lazily (the reason
    /// is logged) and that containerd must pull it.
    pub fn add_layer(&self, source: &LayerSource) -> Result<Option<LayerId>> {
        let begun = Instant::now();
        let Some(filler) = self.layers.add(source, &self.config)? else {
            return Ok(None);
        };
        filler.prefetch(self.config.prefetch_limit);
        let index = filler.blob().index();
        tracing::info!(
            layer = %source.layer, image = %source.image, inodes = index.inodes(),
            packed = index.blob_size(), unpacked = index.data_size(),
            elapsed = ?begun.elapsed(), "lazy layer is ready"
        );
        Ok(Some(source.layer.into()))
    }

    /// Mounts one merged tree of `chain`, bottom layer first; each call must be paired with one of
    /// [`Lazy::unmount`].
    pub fn mount(&self, chain: &[LayerId]) -> Result<MountPoint> {
        let mut mounts = self.mounts();
        if let Some(known) = mounts.get_mut(chain) {
            known.count += 1;
            return Ok(MountPoint(known.mounted.path().to_owned()));
        }
        let mounted = self.mount_new(chain)?;
        let point = MountPoint(mounted.path().to_owned());
        mounts.insert(chain.to_vec(), Use { mounted, count: 1 });
        Ok(point)
    }

    fn mount_new(&self, chain: &[LayerId]) -> Result<Mounted> {
        let begun = Instant::now();
        let fillers = chain.iter().map(|layer| self.layers.get(*layer));
        let fillers = fillers.collect::<Result<Vec<_>>>()?;
        let indexes = fillers
            .iter()
            .map(|filler| Arc::clone(filler.blob().index()));
        let tree = Tree::merge(indexes.collect()).map_err(|flaw| match chain.last() {
            Some(top) => flaw.of(top),
            None => Error::InvalidArgument("a chain of no layers".to_owned()),
        })?;
        let inodes = tree.len();
        if self.config.background_fill {
            for filler in &fillers {
                filler.fill_in_background();
            }
        }
        let passthrough = self.config.passthrough;
        let fs = TreeFs::new(tree, fillers, Arc::clone(&self.pool), passthrough);
        let path = self.mounts_dir.join(key(chain));
        let mounted = Mounted::new(&path, fs, self.config.fuse_threads)?;
        tracing::info!(
            path = %path.display(), layers = chain.len(), inodes, elapsed = ?begun.elapsed(),
            "mounted lazily by fuse"
        );
        Ok(mounted)
    }

    /// Gives back one use of the chain's mount; the last one unmounts it.
    pub fn unmount(&self, chain: &[LayerId]) -> Result<()> {
        let mut mounts = self.mounts();
        let Some(known) = mounts.get_mut(chain) else {
            let top = chain.last().map_or_else(String::new, ToString::to_string);
            return Err(Error::NotFound(format!("mount of layer {top}")));
        };
        known.count -= 1;
        if known.count == 0 {
            mounts.remove(chain);
        }
        Ok(())
    }

    /// Bytes on disk and number of inodes of a layer.
    pub fn usage(&self, layer: LayerId) -> Result<(u64, u64)> {
        self.layers.usage(layer)
    }

    /// Sizes in bytes of a whole layer: of its blob, and of the data of its files.
    pub fn sizes(&self, layer: LayerId) -> Result<(u64, u64)> {
        let filler = self.layers.get(layer)?;
        let index = filler.blob().index();
        Ok((index.blob_size(), index.data_size()))
    }

    /// Every layer that is in the store, mounted or not.
    pub fn layers(&self) -> Result<Vec<LayerId>> {
        self.layers.all()
    }

    /// Packed bytes fetched of a layer since it was opened last.
    pub fn fetched(&self, layer: LayerId) -> Result<u64> {
        Ok(self.layers.get(layer)?.fetched())
    }

    /// Deletes a layer's data; refused while it is mounted.
    pub fn remove(&self, layer: LayerId) -> Result<()> {
        let mounts = self.mounts();
        if mounts.keys().any(|chain| chain.contains(&layer)) {
            return Err(Error::FailedPrecondition(format!(
                "layer {layer} is mounted"
            )));
        }
        self.layers.remove(layer)
    }

    /// Unmounts everything, makes what was fetched durable and stops all threads.
    pub fn shutdown(&self) {
        self.pool.close();
        self.mounts().clear();
        let tidier = lock(&self.tidier).take();
        if let Some(Tidier { stop, thread }) = tidier {
            drop(stop);
            if thread.join().is_err() {
                tracing::warn!("the thread that makes fetched data durable has died");
            }
        }
    }

    fn mounts(&self) -> MutexGuard<'_, HashMap<Vec<LayerId>, Use>> {
        lock(&self.mounts)
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// The name of a chain's mount point.
fn key(chain: &[LayerId]) -> String {
    let mut hasher = Hasher::new();
    for layer in chain {
        hasher.update(layer.digest().as_bytes());
    }
    hasher.finish().hex()
}

/// Unmounts and removes everything in `directory`, which is made if it is not there.
fn clear_mounts(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
    let entries = fs::read_dir(directory).map_err(Error::io("list", directory))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<io::Result<Vec<_>>>();
    for name in names.map_err(Error::io("list", directory))? {
        let path = directory.join(name);
        session::clear(&path).map_err(Error::io("unmount", &path))?;
        tracing::info!(path = %path.display(), "cleared a mount of an earlier daemon");
    }
    Ok(())
}

/// Tidies now and then, and once more at the end.
fn start_tidier(layers: Arc<Layers>) -> Result<Tidier> {
    let (stop, stopped) = mpsc::channel();
    let work = move || {
        while stopped.recv_timeout(TIDY_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            layers.tidy();
        }
        layers.tidy();
    };
    let thread = std::thread::Builder::new().name("xebec-tidy".to_owned());
    let thread = thread
        .spawn(work)
        .map_err(|error| Error::Internal(format!("start a thread: {error}")))?;
    Ok(Tidier { stop, thread })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
