//! The layers of the store and those that are open.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::Instant;

use super::stream::Streams;
use super::{Blobs, LayerId, LayerInsight, LayerSource, LazyConfig, Plain};
use crate::digest::Digest;
use crate::discover::{Image, Images};
use crate::error::{Error, Result};
use crate::fetch::{BlobSource, HostHealth, ImageRef, by_other_hosts};
use crate::fill::counters::Counts;
use crate::fill::pool::Pool;
use crate::fill::{
    Filler, LayerQuery, Opened, names_index, needs_image, open_external, open_layer, vouched,
};
use crate::formats::estargz::toc::TOC_IMAGE_SUFFIX;
use crate::index::{LayerBuilder, LayerIndex};
use crate::store::{Blob, Origin, Store};
use crate::sys;
use crate::timeline::What;

/// See [`Layers::opened_ahead`].
pub(super) type OpenedAhead = Box<dyn Fn(&LayerSource, &Arc<Filler>) + Send + Sync>;

/// Opens layers, once each, and keeps them as long as they are of use.
pub(super) struct Layers {
    pub(super) store: Store,
    blobs: Arc<dyn Blobs>,
    images: Images,
    pub(super) streams: Streams,
    /// Told of each layer that was opened before it was asked for.
    pub(super) opened_ahead: OnceLock<OpenedAhead>,
    pool: Arc<Pool>,
    /// Streamed layers are described for other nodes, too.
    pub(super) describes: bool,
    open: Mutex<Open>,
    /// Told when a layer is no longer being made or evicted.
    pub(super) settled: Condvar,
    /// Held while a layer is open for nothing but to be synced.
    tidying: Mutex<()>,
    /// Layers that somebody adds right now: what two images share is described once.
    adding: Mutex<HashMap<LayerId, Arc<Mutex<()>>>>,
}

/// The layers that are open, and those that nobody may open now.
#[derive(Default)]
pub(super) struct Open {
    pub(super) fillers: HashMap<LayerId, Arc<Filler>>,
    /// Those that are being made or evicted: whoever opened one by its name now would write the same
    /// files as who makes it.
    pub(super) unsettled: HashSet<LayerId>,
}

impl Layers {
    pub(super) fn open(
        root: &Path,
        door: Option<&Path>,
        blobs: Arc<dyn Blobs>,
        pool: Arc<Pool>,
        config: &LazyConfig,
    ) -> Result<Self> {
        Ok(Self {
            store: Store::open_by(root, door, config.sealing)?,
            images: Images::new(Arc::clone(&blobs)),
            blobs,
            streams: Streams::default(),
            opened_ahead: OnceLock::new(),
            pool,
            describes: config.index_push,
            open: Mutex::default(),
            settled: Condvar::new(),
            tidying: Mutex::default(),
            adding: Mutex::default(),
        })
    }

    /// Describes a layer, unless it is in the store already. `None`: it cannot be lazy, logged.
    pub(super) fn add(
        self: &Arc<Self>,
        source: &LayerSource,
        config: &LazyConfig,
    ) -> Result<Option<Arc<Filler>>> {
        self.in_turn(source.stored_as(), |id| {
            // Streamed because of the layer below it, and found to be none that can be read.
            if self.streams.claim(id) {
                return Ok(None);
            }
            if id == LayerId::empty() {
                self.add_empty(source).map(Some)
            } else if self.store.contains(&source.layer) {
                self.add_known(id, source)
            } else {
                self.add_new(id, source, config)
            }
        })
    }

    /// Runs `work` while nobody else adds the layer.
    pub(super) fn in_turn<T>(&self, id: LayerId, work: impl FnOnce(LayerId) -> T) -> T {
        let turn = Arc::clone(lock(&self.adding).entry(id).or_default());
        let added = {
            let _turn = lock(&turn);
            work(id)
        };
        drop(turn);
        lock(&self.adding).retain(|_, turn| Arc::strong_count(turn) > 1);
        added
    }

    /// The same, unless somebody adds the layer right now.
    pub(super) fn try_in_turn<T>(&self, id: LayerId, work: impl FnOnce() -> T) -> Option<T> {
        let turn = Arc::clone(lock(&self.adding).entry(id).or_default());
        let done = match turn.try_lock() {
            Ok(_turn) => Some(work()),
            Err(TryLockError::Poisoned(_turn)) => Some(work()),
            Err(TryLockError::WouldBlock) => None,
        };
        drop(turn);
        lock(&self.adding).retain(|_, turn| Arc::strong_count(turn) > 1);
        done
    }

    /// The table of open layers, when `id` is neither being made nor evicted.
    pub(super) fn settled(&self, id: LayerId) -> MutexGuard<'_, Open> {
        let is_unsettled = |open: &mut Open| open.unsettled.contains(&id);
        let settled = self.settled.wait_while(self.lock_open(), is_unsettled);
        settled.unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn settle(&self, id: LayerId) {
        self.lock_open().unsettled.remove(&id);
        self.settled.notify_all();
    }

    pub(super) fn lock_open(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }

    /// The layer that holds nothing.
    fn add_empty(&self, source: &LayerSource) -> Result<Arc<Filler>> {
        let id = LayerId::empty();
        if !self.store.contains(id.digest()) {
            let empty = LayerBuilder::of_blobs(*id.digest(), *id.digest(), &[])
                .and_then(LayerBuilder::finish)
                .map_err(|flaw| flaw.of(id))?;
            let image = source.image.to_string();
            let origin = Origin {
                image,
                size: 0,
                diff_id: None,
            };
            self.store.create(&empty, &origin)?;
        }
        self.get(id)
    }

    fn resolve(&self, source: &LayerSource) -> Result<Arc<Image>> {
        let begun = Instant::now();
        let image = self.images.get(&source.image, source.manifest);
        source.note(begun, What::Resolve);
        image
    }

    /// What the manifest says of a layer; it is asked for unless containerd has told enough.
    pub(super) fn describe(
        &self,
        source: &LayerSource,
    ) -> Result<(LayerSource, Option<Arc<Image>>)> {
        let mut source = source.clone();
        if tells_enough(&source)? {
            return Ok((source, None));
        }
        let image = self.resolve(&source)?;
        source.complete(image.layer(&source.layer)?);
        Ok((source, Some(image)))
    }

    /// The same for a layer that is to be fetched. Even where containerd has told enough, the
    /// manifest is worth its request: it has the layer's size, which would take one too, and names
    /// the other layers, which can be opened at the same time.
    fn describe_new(
        self: &Arc<Self>,
        source: &LayerSource,
        config: &LazyConfig,
    ) -> Result<(LayerSource, Option<Arc<Image>>)> {
        if !tells_enough(source)? {
            return self.describe(source);
        }
        let mut source = source.clone();
        match self.resolve(&source) {
            Ok(image) => {
                if let Ok(layer) = image.layer(&source.layer) {
                    source.size = layer.size;
                    self.open_above(&source, &image, config);
                }
            }
            Err(error) => {
                tracing::debug!(layer = %source.layer, %error, "going on without the manifest");
            }
        }
        Ok((source, None))
    }

    /// A layer of the store, perhaps under another image's name; its TOC must be the same.
    fn add_known(&self, id: LayerId, source: &LayerSource) -> Result<Option<Arc<Filler>>> {
        let filler = self.get(id)?;
        let known = filler.blob().index().toc();
        if source.nydus_part().is_some() && known == source.layer {
            let what = format!("the bootstrap's layer {id} was pulled as an ordinary one before");
            return Err(Error::FailedPrecondition(what));
        }
        let expected = match self.describe(source) {
            Ok((described, _)) => vouched(&described.annotations)?,
            // The same repository vouched for it before.
            Err(error) if self.comes_from(source)? => {
                tracing::debug!(layer = %id, %error, "the manifest is out of reach, the layer is not");
                None
            }
            Err(error) => return Err(error),
        };
        match expected {
            // A layer that was streamed has its own digest for a root of trust.
            Some(expected) if expected != known && known != source.layer => {
                tracing::warn!(
                    layer = %id, image = %source.image, %expected, %known,
                    "not lazy: the manifest's TOC digest is not that of the TOC in the store"
                );
                Ok(None)
            }
            _ => {
                self.store.touch(&source.layer);
                self.note_origin(source)?;
                Ok(Some(filler))
            }
        }
    }

    /// Whether a layer of the store came from the repository that it is asked for from.
    fn comes_from(&self, source: &LayerSource) -> Result<bool> {
        let origin = ImageRef::parse(&self.store.origin(&source.layer)?.image)?;
        Ok(origin.name() == source.image.name())
    }

    /// Remembers the image that was asked for last: an older one may be gone from its registry, or
    /// its credentials from this node, when the layer is opened again.
    fn note_origin(&self, source: &LayerSource) -> Result<()> {
        let known = self.store.origin(&source.layer)?;
        let image = source.image.to_string();
        if known.image == image {
            return Ok(());
        }
        self.store
            .set_origin(&source.layer, &Origin { image, ..known })
    }

    pub(super) fn add_new(
        self: &Arc<Self>,
        id: LayerId,
        source: &LayerSource,
        config: &LazyConfig,
    ) -> Result<Option<Arc<Filler>>> {
        let (source, image) = self.describe_new(source, config)?;
        if let Some(image) = &image {
            self.open_above(&source, image, config);
        }
        self.add_described(id, &source, image.as_ref(), config)
    }

    /// Reads what describes a layer of which all is known that manifests tell.
    pub(super) fn add_described(
        self: &Arc<Self>,
        id: LayerId,
        source: &LayerSource,
        image: Option<&Arc<Image>>,
        config: &LazyConfig,
    ) -> Result<Option<Arc<Filler>>> {
        let blob = self.blob_of(source)?;
        let streams = config.plain == Plain::Stream && source.is_tar();
        let query = LayerQuery {
            blob: &*blob,
            layer: source.layer,
            media_type: &source.media_type,
            annotations: &source.annotations,
            image,
            skip_footer: streams,
            trust_referrers: config.trust_referrers,
            allow_unverified: config.allow_unverified_toc,
        };
        let begun = Instant::now();
        let opened = by_other_hosts(&*blob, (0, blob.size()), || match open_layer(&query) {
            Ok(Opened::TocElsewhere) => self
                .toc_image(&source.image)
                .and_then(|toc_image| open_external(&query, &toc_image)),
            opened => opened,
        });
        source.note(
            begun,
            What::Open {
                layer: source.layer,
            },
        );
        let mut diff_id = None;
        let index = match opened {
            Ok(Opened::Lazy(index)) => index,
            Ok(Opened::Ordinary | Opened::Unverified)
                if streams && let Some(kept) = self.store.kept_index(&source.layer) =>
            {
                diff_id = Some(kept.diff_id);
                Box::new(kept.index)
            }
            Ok(Opened::Ordinary | Opened::Unverified) if streams => {
                if let Some(image) = image
                    && !source.alone
                    && !names_index(image)
                {
                    self.stream_above(source, image);
                }
                return self.stream(source, blob);
            }
            Ok(Opened::Ordinary) => {
                tracing::info!(layer = %id, image = %source.image, "not lazy: an ordinary layer");
                return Ok(None);
            }
            Ok(Opened::Unverified) => {
                tracing::warn!(
                    layer = %id, image = %source.image,
                    "not lazy: the manifest does not state the TOC's digest"
                );
                return Ok(None);
            }
            Ok(Opened::TocElsewhere) => {
                return Err(Error::Internal(format!(
                    "no TOC was looked for, of layer {id}"
                )));
            }
            Err(error @ (Error::Malformed { .. } | Error::DigestMismatch { .. }))
                if source.nydus_part().is_none() =>
            {
                tracing::warn!(image = %source.image, %error, "not lazy");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let origin = Origin {
            image: source.image.to_string(),
            size: blob.size(),
            diff_id,
        };
        // The blob at hand knows where it was redirected to, a new handle does not.
        let sources = if index.blobs().eq([(source.layer, blob.size())]) {
            vec![blob]
        } else {
            self.sources(&source.image, &index)?
        };
        let space = self.store.space();
        let make = || space.with_room(|| self.store.create(&index, &origin));
        self.keep_new(id, make, sources).map(Some)
    }

    /// An image as its registry describes it; asked for once for a while.
    pub(super) fn image(&self, image: &ImageRef, manifest: Option<Digest>) -> Result<Arc<Image>> {
        self.images.get(image, manifest)
    }

    /// The client of all registries.
    pub(super) fn registry(&self) -> &dyn Blobs {
        &*self.blobs
    }

    /// The bytes of a layer that is not in the store.
    pub(super) fn blob_of(&self, source: &LayerSource) -> Result<Arc<dyn BlobSource>> {
        self.blobs.blob(&source.image, &source.layer, source.size)
    }

    /// Makes a layer in the store and keeps it open; `sources` has one for each of its blobs.
    pub(super) fn keep_new(
        &self,
        id: LayerId,
        make: impl FnOnce() -> Result<Blob>,
        sources: Vec<Arc<dyn BlobSource>>,
    ) -> Result<Arc<Filler>> {
        self.settled(id).unsettled.insert(id);
        let kept = make().map(|stored| {
            let filler = Filler::with_sources(Arc::new(stored), sources, Arc::clone(&self.pool));
            self.lock_open().fillers.insert(id, Arc::clone(&filler));
            filler
        });
        self.settle(id);
        kept
    }

    /// The image that holds the TOCs of `image`'s layers.
    fn toc_image(&self, image: &ImageRef) -> Result<Arc<Image>> {
        let reference = image
            .with_suffix(TOC_IMAGE_SUFFIX)
            .ok_or_else(|| Error::NotFound(format!("TOC image of {image}, which names no tag")))?;
        self.images.get(&reference, None)
    }

    /// An open layer; opens it if it is in the store. No network.
    pub(super) fn get(&self, id: LayerId) -> Result<Arc<Filler>> {
        let mut open = self.settled(id);
        if let Some(filler) = open.fillers.get(&id) {
            return Ok(Arc::clone(filler));
        }
        let blob = Arc::new(self.store.load(id.digest())?);
        let origin = self.store.origin(id.digest())?;
        let image = ImageRef::parse(&origin.image)?;
        let filler = Filler::with_sources(
            Arc::clone(&blob),
            self.sources(&image, blob.index())?,
            Arc::clone(&self.pool),
        );
        open.fillers.insert(id, Arc::clone(&filler));
        Ok(filler)
    }

    /// A handle on each blob that holds bytes of a layer; no network.
    fn sources(&self, image: &ImageRef, index: &LayerIndex) -> Result<Vec<Arc<dyn BlobSource>>> {
        let blobs = index.blobs();
        blobs
            .map(|(digest, size)| self.blobs.blob(image, &digest, size))
            .collect()
    }

    /// The path of a file that is kept beside a layer's and removed with them.
    pub(super) fn beside(&self, id: LayerId, name: &str) -> PathBuf {
        self.store.beside(id.digest(), name)
    }

    /// The layer's diff ID, if all of it was read when it came into the store.
    pub(super) fn diff_id(&self, id: LayerId) -> Result<Option<Digest>> {
        Ok(self.store.origin(id.digest())?.diff_id)
    }

    /// What happened to the layers that are in use, by digest.
    pub(super) fn insight(&self) -> Vec<LayerInsight> {
        let open: Vec<_> = self
            .lock_open()
            .fillers
            .iter()
            .map(|(id, filler)| (*id, filler.counts()))
            .collect();
        let describe = |(id, counts): (LayerId, Counts)| LayerInsight {
            layer: id.to_string(),
            // One that was removed just now has no origin any more.
            image: self
                .store
                .origin(id.digest())
                .map_or_else(|_| String::new(), |origin| origin.image),
            counts,
        };
        let mut insight: Vec<_> = open.into_iter().map(describe).collect();
        insight.sort_by(|one, other| one.layer.cmp(&other.layer));
        insight
    }

    /// How the registries answer.
    pub(super) fn health(&self) -> Vec<HostHealth> {
        self.blobs.health()
    }

    /// Bytes on disk and number of inodes.
    pub(super) fn usage(&self, id: LayerId) -> Result<(u64, u64)> {
        let bytes = self.store.footprint(id.digest())?.bytes;
        let inodes = self.get(id)?.blob().index().inodes();
        Ok((bytes, u64::from(inodes)))
    }

    /// Deletes a layer that nobody has mounted.
    pub(super) fn remove(&self, id: LayerId) -> Result<()> {
        self.settled(id).fillers.remove(&id);
        self.store.remove(id.digest())
    }

    /// Every layer of the store, without those that a pull is about to ask for.
    pub(super) fn all(&self) -> Result<Vec<LayerId>> {
        let layers = self.store.layers()?.into_iter().map(LayerId::from);
        Ok(layers.filter(|id| !self.streams.is_expected(*id)).collect())
    }

    /// Lets go of what was looked at in the indexes: a mounted tree is served from its image, or from
    /// the page cache, and what is read of complete files needs none.
    pub(super) fn let_go_of_indexes(&self) {
        for filler in self.lock_open().fillers.values() {
            filler.blob().index().let_go();
        }
    }

    /// Waits until no layer is open for nothing but to be synced, and keeps it so.
    pub(super) fn wait_for_tidier(&self) -> MutexGuard<'_, ()> {
        lock(&self.tidying)
    }

    /// Makes what was fetched survive a power failure, seals it if there is time for that (it takes
    /// a second or so for each gigabyte), and lets go of what nobody uses.
    pub(super) fn tidy(&self, has_time: bool) {
        let open: Vec<_> = self.lock_open().fillers.keys().copied().collect();
        for id in open {
            // One after the other: who evicts waits for one at most.
            let _tidying = lock(&self.tidying);
            let Some(filler) = self.lock_open().fillers.get(&id).cloned() else {
                continue;
            };
            if let Err(error) = filler.blob().sync() {
                tracing::warn!(%error, "what was fetched may have to be fetched again");
            }
            if has_time {
                filler.blob().seal();
            }
        }
        let is_used = |filler: &mut Arc<Filler>| Arc::strong_count(filler) > 1;
        let mut open = self.lock_open();
        open.fillers.retain(|_, filler| is_used(filler));
        drop(open);
        sys::give_back();
    }
}

/// Whether containerd has passed on all annotations that count.
fn tells_enough(source: &LayerSource) -> Result<bool> {
    Ok(vouched(&source.annotations)?.is_some() && !needs_image(&source.annotations))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
