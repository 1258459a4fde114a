//! All lazy layers of one node, and the chains of them that are mounted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::background::{Background, BackgroundInsight};
use super::guide::Guide;
use super::kernel::{Doorman, Gate, Kernel};
use super::layers::Layers;
use super::session::{self, Sessions};
use super::uses::{Left, Mounted, Uses};
use super::{
    Alternative, BackEnd, Blobs, LayerId, LayerInsight, LayerSource, LazyConfig, MountPoint,
};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::HostHealth;
use crate::fill::Filler;
use crate::fill::pool::Pool;
use crate::index::Tree;
use crate::keeper::custody::Custody;
use crate::profile::{Profile, Recorder, chain_name};
use crate::sys::FreeMemory;
use crate::timeline::{self, Start, Timeline, Timelines, What};

/// How often what was fetched is made to survive a power failure.
const TIDY_INTERVAL: Duration = Duration::from_secs(20);
/// How often is looked for recordings whose window has closed, for trees that nobody uses, and for
/// memory to give back: none is kept for more than two of these.
const HARVEST_INTERVAL: Duration = Duration::from_secs(1);

/// All lazy layers of one node.
pub struct Lazy {
    mounts_dir: PathBuf,
    config: LazyConfig,
    pub(super) pool: Arc<Pool>,
    layers: Arc<Layers>,
    /// What outlives this process.
    custody: Option<Arc<Custody>>,
    sessions: Arc<Sessions>,
    /// Watches the store's files for mounts of the kernel back end, whichever daemon has made them.
    gate: Option<Arc<Gate>>,
    /// Mounts by the kernel back end, if that is the choice.
    kernel: Option<Arc<Kernel>>,
    mounts: Arc<Mutex<Uses>>,
    recorder: Arc<Recorder>,
    guide: Arc<Guide>,
    timelines: Timelines,
    background: Background,
    tidier: Mutex<Option<Tidier>>,
    is_shut: AtomicBool,
}

/// The thread that tidies; it ends when the sender is dropped.
struct Tidier {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Lazy {
    /// Opens the store below `root`; no network. What an earlier daemon has left mounted waits for
    /// [`Lazy::adopt`]; if nothing is kept, it is dead and cleared.
    pub fn open(root: &Path, blobs: Arc<dyn Blobs>, config: LazyConfig) -> Result<Self> {
        let mounts_dir = root.join("mnt");
        fs::create_dir_all(&mounts_dir).map_err(Error::io("create", &mounts_dir))?;
        let custody = config.keeping.clone().map(Custody::open).transpose()?;
        let custody = custody.map(Arc::new);
        if custody.is_none() {
            clear_mounts(&mounts_dir, |_| false)?;
        }
        let pool = Arc::new(Pool::default());
        let gate = open_gate(root, config.back_end, custody.as_ref())?;
        let door = gate.as_ref().map(|gate| gate.door());
        let layers = Layers::open(root, door.as_deref(), blobs, Arc::clone(&pool), &config)?;
        let layers = Arc::new(layers);
        let doorman = Doorman {
            gate: gate.clone(),
            layers: Arc::clone(&layers),
            pool: Arc::clone(&pool),
        };
        if let Some(custody) = custody.clone() {
            start("xebec-gate", move || custody.run(&doorman))?;
        }
        let kernel = gate.as_ref().map(|gate| {
            let kernel = Kernel::new(Arc::clone(gate), Arc::clone(&layers));
            Arc::new(kernel)
        });
        let sessions = Arc::new(Sessions::new(
            custody.clone(),
            Arc::clone(&layers),
            Arc::clone(&pool),
            config.fuse_threads,
            // The kernel would read to the end of a segment's last block, where there is a gate.
            config.passthrough.never_if(gate.is_some()),
        ));
        let window = Duration::from_secs(config.profile_seconds);
        let recorder = Arc::new(Recorder::new(root, window));
        let guide = Guide::new(&layers, Arc::clone(&pool), Arc::clone(&recorder), &config);
        let background = Background::start(
            root,
            Arc::clone(layers.store.space()),
            Arc::clone(&pool),
            config.background,
        )?;
        let mounts: Arc<Mutex<Uses>> = Arc::default();
        let often = {
            let (recorder, guide) = (Arc::clone(&recorder), Arc::clone(&guide));
            let (mounts, time) = (Arc::clone(&mounts), config.keep_unused);
            let sessions = Arc::clone(&sessions);
            move || {
                sessions.let_go_of_buffers();
                guide.publish(recorder.harvest());
                lock(&mounts).drop_unused_for(time);
            }
        };
        let tidier = start_tidier(Arc::clone(&layers), kernel.clone(), often)?;
        let kernel = kernel.filter(|_| config.back_end == BackEnd::Kernel);
        Ok(Self {
            custody,
            sessions,
            gate,
            kernel,
            mounts_dir,
            config,
            pool,
            layers,
            mounts,
            recorder,
            guide,
            timelines: Timelines::default(),
            background,
            tidier: Mutex::new(Some(tidier)),
            is_shut: AtomicBool::new(false),
        })
    }

    /// Makes a layer ready to be mounted; `None` means that it cannot be read lazily (the reason
    /// is logged) and that containerd must pull it.
    pub fn add_layer(&self, source: &LayerSource) -> Result<Option<LayerId>> {
        let begun = Instant::now();
        let mut source = source.clone();
        source.timeline = source
            .chain
            .last()
            .map(|top| self.timelines.of(*top, &source.image.to_string()));
        let source = &source;
        self.guide.scout(source);
        let added = self.layers.add(source, &self.config);
        let prepared = What::Prepare {
            layer: source.layer,
        };
        source.note(begun, prepared);
        let Some(filler) = added? else {
            return Ok(None);
        };
        if let Some(timeline) = &source.timeline {
            filler.time(Arc::clone(timeline));
        }
        self.guide.fetch_ahead(&source.chain, &filler);
        self.layers.publish_indexes(source);
        let index = filler.blob().index();
        tracing::info!(
            layer = %source.layer, image = %source.image, inodes = index.inodes(),
            packed = index.blob_size(), unpacked = index.data_size(),
            elapsed = ?begun.elapsed(), "lazy layer is ready"
        );
        Ok(Some(index.layer().into()))
    }

    /// What the Nydus form of its image makes of a layer; `None` means that there is none and that
    /// the layer itself is to be added.
    pub fn alternative(&self, source: &LayerSource) -> Result<Option<Alternative>> {
        let Some((alternative, filler)) = self.layers.alternative(source, &self.config)? else {
            return Ok(None);
        };
        if let Alternative::Whole(layer) = alternative {
            self.guide.fetch_ahead(&[*layer.digest()], &filler);
        }
        Ok(Some(alternative))
    }

    /// Whether a layer is in the store, all of its bytes or not.
    pub fn contains(&self, layer: LayerId) -> bool {
        self.layers.store.contains(layer.digest())
    }

    /// The profile of a chain of layers, bottom first.
    pub fn profile(&self, chain: &[Digest]) -> Option<Profile> {
        self.recorder.profile(chain)
    }

    /// Mounts one merged tree of `chain`, bottom layer first; each call must be paired with one of
    /// [`Lazy::unmount`].
    pub fn mount(&self, chain: &[LayerId]) -> Result<MountPoint> {
        let mut mounts = self.mounts();
        if let Some((point, was_unused)) = mounts.again(chain) {
            if was_unused {
                self.mount_again(chain);
            }
            return Ok(point);
        }
        let mounted = self.mount_new(chain)?;
        self.touch(chain);
        Ok(mounts.begin(chain, mounted))
    }

    /// Takes over the mount of `chain` that an earlier daemon has left, as one use of it; `None`
    /// if there is none to be taken over.
    pub fn adopt(&self, chain: &[LayerId]) -> Result<Option<MountPoint>> {
        let mut mounts = self.mounts();
        if let Some((point, _)) = mounts.again(chain) {
            return Ok(Some(point));
        }
        let Some(mounted) = self.adopt_mount(chain, self.mounts_dir.join(key(chain)))? else {
            return Ok(None);
        };
        let fillers = chain.iter().map(|layer| self.layers.get(*layer));
        self.background
            .add(chain, &fillers.collect::<Result<Vec<_>>>()?);
        self.touch(chain);
        Ok(Some(mounts.begin(chain, mounted)))
    }

    fn adopt_mount(&self, chain: &[LayerId], path: PathBuf) -> Result<Option<Mounted>> {
        // First: nothing may be asked of a mount that this process has to answer for.
        if let Some(mounted) = self.sessions.adopt(chain, path.clone()) {
            return Ok(Some(Mounted::Fuse(mounted)));
        }
        match &self.kernel {
            Some(kernel) => Ok(kernel.adopt(chain, path)?.map(Mounted::Kernel)),
            None => Ok(None),
        }
    }

    /// Unmounts what an earlier daemon has left and nobody has adopted; those who use it keep it.
    /// From here on all of that is served.
    pub fn clear_unadopted(&self) -> Result<()> {
        let mounts = self.mounts();
        clear_mounts(&self.mounts_dir, |path| mounts.is_at(path))?;
        self.sessions.go_on()
    }

    fn mount_new(&self, chain: &[LayerId]) -> Result<Mounted> {
        let begun = Instant::now();
        let fillers = self.fillers(chain)?;
        let indexes = fillers
            .iter()
            .map(|filler| Arc::clone(filler.blob().index()));
        let tree = Tree::merge(indexes.collect()).map_err(|flaw| match chain.last() {
            Some(top) => flaw.of(top),
            None => Error::InvalidArgument("a chain of no layers".to_owned()),
        })?;
        let timeline = self.accompany(chain, &fillers);
        let (inodes, path) = (tree.len(), self.mounts_dir.join(key(chain)));
        let (mounted, by) = self.mount_tree(chain, tree, fillers, &path)?;
        if let Some(timeline) = timeline {
            timeline.note(begun, What::Mount { by: by.to_owned() });
        }
        tracing::info!(
            path = %path.display(), layers = chain.len(), inodes, by, elapsed = ?begun.elapsed(),
            "mounted lazily"
        );
        Ok(mounted)
    }

    /// What a new mount brings with it, for one that was kept. The tree can be used without.
    fn mount_again(&self, chain: &[LayerId]) {
        match self.fillers(chain) {
            Ok(fillers) => drop(self.accompany(chain, &fillers)),
            Err(error) => tracing::warn!(%error, "a start is neither followed nor recorded"),
        }
    }

    fn fillers(&self, chain: &[LayerId]) -> Result<Vec<Arc<Filler>>> {
        let fillers = chain.iter().map(|layer| self.layers.get(*layer));
        fillers.collect()
    }

    /// Fetches ahead for a start from `chain`, completes it, and notes how it goes.
    fn accompany(&self, chain: &[LayerId], fillers: &[Arc<Filler>]) -> Option<Arc<Timeline>> {
        let timeline = chain.last().map(|top| {
            let origin = self.layers.store.origin(top.digest());
            let image = origin.map_or_else(|_| String::new(), |origin| origin.image);
            self.timelines.of(*top.digest(), &image)
        });
        for (filler, timeline) in fillers.iter().zip(timeline.iter().cycle()) {
            filler.time(Arc::clone(timeline));
        }
        self.guide.accompany(chain, fillers);
        self.background.add(chain, fillers);
        timeline
    }

    /// Mounts by the chosen back end. A tree that EROFS cannot hold is served by FUSE all the
    /// same.
    fn mount_tree(
        &self,
        chain: &[LayerId],
        tree: Tree,
        fillers: Vec<Arc<Filler>>,
        path: &Path,
    ) -> Result<(Mounted, &'static str)> {
        if let Some(kernel) = &self.kernel {
            match kernel.mount(chain, &tree, fillers.clone(), path.to_owned()) {
                Ok(mounted) => return Ok((Mounted::Kernel(mounted), "kernel")),
                Err(error @ Error::Malformed { .. }) => {
                    tracing::warn!(%error, "not mounted by the kernel back end, but by FUSE");
                }
                Err(error) => return Err(error),
            }
        }
        let mounted = self.sessions.mount(chain, tree, fillers, path)?;
        Ok((Mounted::Fuse(mounted), "fuse"))
    }

    /// Gives back one use of the chain's mount; without any it is unmounted, at once or after
    /// [`LazyConfig::keep_unused`]. After [`Lazy::shutdown`] it does nothing.
    pub fn unmount(&self, chain: &[LayerId]) -> Result<()> {
        if self.is_shut.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut mounts = self.mounts();
        let unmounted = match mounts.end(chain, !self.config.keep_unused.is_zero())? {
            Left::Used => return Ok(()),
            Left::Kept => Ok(()),
            Left::Over(mounted) => mounted.unmount(),
        };
        self.touch(chain);
        drop(mounts);
        self.background.remove(chain);
        self.guide.publish(self.recorder.end(&digests(chain)));
        self.layers.store.space().note_unused();
        unmounted
    }

    /// Digest of a layer's archive as it was before it was packed; known of those that were
    /// streamed, not of those that are read lazily.
    pub fn diff_id(&self, layer: LayerId) -> Result<Option<Digest>> {
        self.layers.diff_id(layer)
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

    /// What happened to the layers that are in use.
    pub fn insight(&self) -> Vec<LayerInsight> {
        self.layers.insight()
    }

    /// The last start of an image, by its reference or by the digest of its topmost layer.
    pub fn timeline(&self, name: &str) -> Option<Start> {
        Some(self.named(self.timelines.find(name)?.tell()))
    }

    /// The starts that are over, each told once.
    pub fn starts_over(&self) -> Vec<Start> {
        let over = self.timelines.over();
        over.into_iter().map(|start| self.named(start)).collect()
    }

    /// With the names of its files.
    fn named(&self, mut start: Start) -> Start {
        match self.tree_of(&start) {
            Ok(tree) => timeline::name_files(&mut start.events, &tree),
            // Layers that are gone have no names any more.
            Err(error) => tracing::debug!(%error, "a timeline without the names of files"),
        }
        start
    }

    /// The mounted tree that a start has led to.
    fn tree_of(&self, start: &Start) -> Result<Tree> {
        let mounts = self.mounts();
        let is_it = |chain: &&Vec<LayerId>| chain.last().map(LayerId::digest) == Some(&start.top);
        let chain = mounts.chains().find(is_it).cloned();
        drop(mounts);
        let chain = chain.ok_or_else(|| Error::NotFound(format!("mount of {}", start.top)))?;
        let indexes = chain
            .iter()
            .map(|layer| Ok(Arc::clone(self.layers.get(*layer)?.blob().index())));
        Tree::merge(indexes.collect::<Result<_>>()?).map_err(|flaw| flaw.of(start.top))
    }

    /// What the background fill has to do and has met.
    pub fn background(&self) -> BackgroundInsight {
        self.background.insight()
    }

    /// How the registries answer that were asked so far.
    pub fn health(&self) -> Vec<HostHealth> {
        self.layers.health()
    }

    /// Makes the whole of a layer local, as far as it is not; blocks until it is.
    pub fn fill(&self, layer: LayerId) -> Result<(), Arc<Error>> {
        self.layers.get(layer)?.fill()
    }

    /// Deletes a layer's data; refused while it is mounted.
    pub fn remove(&self, layer: LayerId) -> Result<()> {
        let mut mounts = self.mounts();
        mounts.drop_unused_with(layer);
        if mounts.has(layer) {
            return Err(Error::FailedPrecondition(format!(
                "layer {layer} is mounted"
            )));
        }
        self.layers.remove(layer)
    }

    /// Makes what was fetched durable, unmounts what needs this process and stops all threads.
    /// What is kept stays mounted for a successor.
    pub fn shutdown(&self) {
        if self.is_shut.swap(true, Ordering::SeqCst) {
            return;
        }
        // First: from here on what is dropped unanswered is the successor's.
        if let Some(custody) = &self.custody {
            custody.close();
        }
        self.pool.close();
        self.background.stop();
        self.mounts().drop_all();
        self.recorder.end_all();
        let tidier = lock(&self.tidier).take();
        if let Some(Tidier { stop, thread }) = tidier {
            drop(stop);
            if thread.join().is_err() {
                tracing::warn!("the thread that makes fetched data durable has died");
            }
        }
    }

    pub(super) fn mounts(&self) -> MutexGuard<'_, Uses> {
        lock(&self.mounts)
    }

    /// The directory of the mounts, on the same file system as the store.
    pub(super) fn root(&self) -> &Path {
        &self.mounts_dir
    }

    pub(super) fn layers_of_node(&self) -> &Layers {
        &self.layers
    }

    /// The files of a layer are others from now on: nobody watches them.
    pub(super) fn forget_watched(&self, layer: LayerId) {
        if let Some(gate) = &self.gate {
            gate.forget(layer);
        }
    }

    /// Notes that the layers of a chain are used now: at the beginning and at the end of a mount,
    /// in between they are in use anyway.
    fn touch(&self, chain: &[LayerId]) {
        for layer in chain {
            self.layers.store.touch(layer.digest());
        }
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// The name of a chain's mount point.
fn key(chain: &[LayerId]) -> String {
    chain_name(&digests(chain))
}

fn digests(chain: &[LayerId]) -> Vec<Digest> {
    chain.iter().map(|layer| *layer.digest()).collect()
}

/// The gate, if this daemon mounts by the kernel, or one that did has left a watch.
fn open_gate(
    root: &Path,
    back_end: BackEnd,
    custody: Option<&Arc<Custody>>,
) -> Result<Option<Arc<Gate>>> {
    let gate = match (back_end, custody) {
        (_, None) => None,
        (BackEnd::Fuse, Some(custody)) => Gate::take_over(root, custody)?,
        (BackEnd::Kernel, Some(custody)) => Some(Gate::open(root, custody)?),
    };
    Ok(gate.map(Arc::new))
}

pub(super) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread
        .spawn(work)
        .map_err(|error| Error::Internal(format!("start a thread: {error}")))
}

/// Unmounts and removes everything in `directory` that is not in use.
fn clear_mounts(directory: &Path, is_used: impl Fn(&Path) -> bool) -> Result<()> {
    let entries = fs::read_dir(directory).map_err(Error::io("list", directory))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<io::Result<Vec<_>>>();
    for name in names.map_err(Error::io("list", directory))? {
        let path = directory.join(name);
        if is_used(&path) {
            continue;
        }
        session::clear(&path).map_err(Error::io("unmount", &path))?;
        tracing::info!(path = %path.display(), "cleared a mount of an earlier daemon");
    }
    Ok(())
}

/// Tidies now and then, and once more at the end.
fn start_tidier(
    layers: Arc<Layers>,
    kernel: Option<Arc<Kernel>>,
    often: impl Fn() + Send + 'static,
) -> Result<Tidier> {
    let (stop, stopped) = mpsc::channel();
    let of_tidy = Arc::clone(&layers);
    let tidy = move |has_time| {
        if let Some(kernel) = &kernel {
            kernel.tidy();
        }
        of_tidy.tidy(has_time);
    };
    let work = move || {
        let mut tidied = Instant::now();
        let mut memory = FreeMemory::default();
        while stopped.recv_timeout(HARVEST_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            often();
            if tidied.elapsed() >= TIDY_INTERVAL {
                tidy(true);
                tidied = Instant::now();
            }
            layers.let_go_of_indexes();
            memory.look();
        }
        // A successor is waiting.
        tidy(false);
    };
    let thread = start("xebec-tidy", work)?;
    Ok(Tidier { stop, thread })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
