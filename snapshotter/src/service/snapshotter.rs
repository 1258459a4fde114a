//! The operations of the snapshots API, free of gRPC.
//!
//! Nothing here holds a lock while the network is used, except the lock of the one layer that is
//! being looked up.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::absent;
use super::chain;
use super::labels::{self, Request};
use super::locks::KeyedLocks;
use super::lowers::{HeldTree, Lowers};
use super::spare::Spare;
use crate::direct::PREFIX;
use crate::error::{Error, Result};
use crate::mount::{Alternative, LayerId, LayerSource, Lazy};
use crate::snapshots::catalog::{Catalog, Named};
use crate::snapshots::dirs::{self, LayerDirs, Owner};
use crate::snapshots::filter::Filters;
use crate::snapshots::mounts::{self, Mount, Parts};
use crate::snapshots::record::{Kind, Labels, LazyLayer, Record, SnapshotId, Usage};
use crate::snapshots::usage;
use crate::store::Footprint;

/// All snapshots of one root, ordinary and lazy.
pub struct Snapshotter {
    catalog: Catalog,
    dirs: LayerDirs,
    lazy: Option<Arc<Lazy>>,
    /// Delete removed layers in `cleanup` instead of `remove`.
    async_remove: bool,
    overlay_options: Vec<String>,
    /// The lazy trees that are mounted, by the active snapshot or view that uses them.
    held: Mutex<HashMap<SnapshotId, HeldTree>>,
    /// Taken while a layer is added and recorded, so that it is not swept in between.
    layers: KeyedLocks<LayerId>,
    /// Taken while the trees of a snapshot are mounted.
    mounting: KeyedLocks<SnapshotId>,
    said_anonymous: AtomicBool,
    /// Held by who evicts.
    evicting: Mutex<()>,
    spare: Spare,
}

/// What a `Prepare` came to.
#[derive(Debug)]
pub enum Prepared {
    /// The snapshot is to be mounted like this.
    Mounts(Vec<Mount>),
    /// The layer is there already, under the name it was wanted under.
    Present(String),
}

/// How much of a lazy layer is here; all zero when lazy mounts are switched off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerState {
    /// Bytes that it takes on this node's disk, its index included.
    pub local_bytes: u64,
    /// Bytes of the data of its files, when all of it is here.
    pub data_bytes: u64,
    /// Bytes of its blob in the registry.
    pub blob_bytes: u64,
    /// Files, directories and other inodes.
    pub inodes: u64,
}

/// A snapshot's new place among the others.
struct Place<'a> {
    kind: Kind,
    key: &'a str,
    parent: Option<&'a str>,
}

impl Snapshotter {
    /// Opens the snapshots under `root`; without `lazy`, every image is pulled and unpacked.
    pub fn open(root: &Path, lazy: Option<Arc<Lazy>>, async_remove: bool) -> Result<Self> {
        let dirs = LayerDirs::open(root.join("snapshots"))?;
        let catalog = Catalog::open(&root.join("snapshots.redb"))?;
        let held = adopt(&catalog, lazy.as_ref())?;
        let spare = Spare::new(root);
        spare.take();
        Ok(Self {
            catalog,
            dirs,
            lazy,
            async_remove,
            overlay_options: mounts::host_options(),
            held: Mutex::new(held),
            layers: KeyedLocks::new(),
            mounting: KeyedLocks::new(),
            said_anonymous: AtomicBool::new(false),
            evicting: Mutex::default(),
            spare,
        })
    }

    /// The record of a snapshot.
    pub fn stat(&self, key: &str) -> Result<Record> {
        self.catalog.get(key)
    }

    /// Replaces labels; see [`Record::relabel`].
    pub fn update(&self, key: &str, labels: &Labels, mask: &[String]) -> Result<Record> {
        self.with_room(|| self.catalog.update(key, labels, mask))
    }

    /// Every snapshot of containerd's that `filters` ask for. Those of other clients would be taken
    /// for garbage.
    pub fn list(&self, filters: &[String]) -> Result<Vec<Named>> {
        let mut found = self.catalog.list(&Filters::parse(filters)?)?;
        found.retain(|(name, _)| !name.starts_with(PREFIX));
        Ok(found)
    }

    /// What a snapshot takes on this node's disk, in allocated bytes and inodes; of an active one or
    /// a lazy layer, at this moment. A layer that several snapshots have is counted with the first of
    /// them, so that the sum of all is what is really taken.
    pub fn usage(&self, key: &str) -> Result<Usage> {
        let record = self.catalog.get(key)?;
        match (record.kind, record.layer, &self.lazy) {
            (Kind::Active, _, _) => usage::of_tree(&self.dirs.upper(record.id)),
            (_, Some(layer), Some(lazy)) if lazy.contains(layer) => {
                let same = self.catalog.select(|_, other| other.layer == Some(layer))?;
                if same.iter().any(|(_, other)| other.id < record.id) {
                    return Ok(Usage::default());
                }
                let Footprint { bytes, inodes } = lazy.footprint(layer)?;
                Ok(Usage { inodes, bytes })
            }
            _ => Ok(record.usage),
        }
    }

    /// Makes an active snapshot, or finds that its layer need not be unpacked.
    pub fn prepare(&self, key: &str, parent: Option<&str>, labels: &Labels) -> Result<Prepared> {
        tracing::debug!(key, parent, ?labels, "prepare");
        let place = Place {
            kind: Kind::Active,
            key: named("key", key)?,
            parent,
        };
        if let Some(name) = self.prepare_lazily(&place, labels)? {
            return Ok(Prepared::Present(name));
        }
        self.with_room(|| self.create(&place, labels.clone()))
            .map(Prepared::Mounts)
    }

    /// Makes a read-only view.
    pub fn view(&self, key: &str, parent: Option<&str>, labels: &Labels) -> Result<Vec<Mount>> {
        let place = Place {
            kind: Kind::View,
            key: named("key", key)?,
            parent,
        };
        self.with_room(|| self.create(&place, labels.clone()))
    }

    /// The mounts of an active snapshot or a view; lazy trees are mounted if they are not yet.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let (record, parents) = self.catalog.chain(key)?;
        if record.kind == Kind::Committed {
            return Err(Error::FailedPrecondition(format!(
                "snapshot {key:?} is committed"
            )));
        }
        let lowers = Lowers::of(&parents)?;
        let paths = self.mounting.with(record.id, || {
            // Whoever removes the snapshot from here on waits, and gives back what is held.
            if self.catalog.get(key)?.id != record.id {
                return Err(Error::NotFound(format!("snapshot {key:?}")));
            }
            let held = self.held().remove(&record.id);
            let hold = || self.with_room(|| self.hold(&lowers, &parents));
            let held = held.map_or_else(hold, |tree| Ok(Some(tree)))?;
            let paths = lowers.paths(|id| self.dirs.upper(id), held.as_ref());
            self.keep(record.id, held);
            Ok(paths)
        })?;
        Ok(self.plan(&record, &paths))
    }

    /// Turns the active snapshot `key` into the committed snapshot `name`.
    pub fn commit(&self, name: &str, key: &str, labels: &Labels) -> Result<()> {
        let record = self.catalog.get(named("key", key)?)?;
        if record.kind != Kind::Active {
            return Err(Error::FailedPrecondition(format!(
                "snapshot {key:?} is not active"
            )));
        }
        let usage = usage::of_tree(&self.dirs.upper(record.id))?;
        let name = named("name", name)?;
        self.with_room(|| self.catalog.commit(key, name, labels.clone(), usage))?;
        self.release(record.id);
        Ok(())
    }

    /// Forgets a snapshot; its disk space is freed now or in `cleanup`.
    pub fn remove(&self, key: &str) -> Result<()> {
        let record = self.with_room(|| self.catalog.remove(key))?;
        self.release(record.id);
        if !self.async_remove {
            self.cleanup()?;
        }
        Ok(())
    }

    /// Frees the disk space of everything that no snapshot needs.
    pub fn cleanup(&self) -> Result<()> {
        let orphans = self.catalog.with_ids(|ids| self.dirs.orphans(ids))?;
        for orphan in &orphans {
            if let Err(error) = dirs::delete(orphan) {
                // The next cleanup tries again; the others need not wait for it.
                tracing::warn!(%error, "removed layer stays on disk");
            }
        }
        match &self.lazy {
            Some(lazy) => self.sweep(lazy),
            None => Ok(()),
        }
    }

    /// Deletes the lazy layers that no snapshot uses. One that is being added just now is left
    /// alone: its record may follow.
    fn sweep(&self, lazy: &Lazy) -> Result<()> {
        let used = self.used_layers()?;
        for layer in lazy
            .layers()?
            .into_iter()
            .filter(|layer| !used.contains(layer))
        {
            // Asked again: a snapshot may have been recorded since.
            let removed = self.layers.try_with(layer, || {
                if self.used_layers()?.contains(&layer) {
                    Ok(())
                } else {
                    lazy.remove(layer)
                }
            });
            if let Some(Err(error)) = removed {
                tracing::warn!(%layer, %error, "unused layer stays on disk");
            }
        }
        Ok(())
    }

    fn used_layers(&self) -> Result<HashSet<LayerId>> {
        let lazy = self.catalog.select(|_, record| record.layer.is_some())?;
        Ok(lazy
            .into_iter()
            .filter_map(|(_, record)| record.layer)
            .collect())
    }

    /// The topmost lazy layer of a snapshot, by its name or by what comes last in it: the name that
    /// containerd's clients know.
    pub fn top_layer(&self, name: &str) -> Option<LayerId> {
        let whole = self.catalog.chain(name).ok();
        let chain = whole.or_else(|| {
            let end = format!("/{name}");
            let found = self.catalog.select(|key, _| key.ends_with(&end)).ok()?;
            let (key, _) = found.into_iter().next()?;
            self.catalog.chain(&key).ok()
        });
        let (record, parents) = chain?;
        let mut chain = std::iter::once(record).chain(parents);
        chain.find_map(|record| record.layer)
    }

    /// Every snapshot, each with the lazy tree that is mounted for it.
    pub fn overview(&self) -> Result<Vec<(Named, Option<PathBuf>)>> {
        let all = self.catalog.select(|_, _| true)?;
        let held = self.held();
        let tree = |id: SnapshotId| held.get(&id).map(|tree| tree.point().path().to_owned());
        Ok(all
            .into_iter()
            .map(|(name, record)| {
                let tree = tree(record.id);
                ((name, record), tree)
            })
            .collect())
    }

    /// What there is of a lazy layer on this node.
    pub fn layer(&self, layer: LayerId) -> Result<LayerState> {
        let Some(lazy) = self.lazy.as_ref().filter(|lazy| lazy.contains(layer)) else {
            return Ok(LayerState::default());
        };
        let (local_bytes, inodes) = lazy.usage(layer)?;
        let (blob_bytes, data_bytes) = lazy.sizes(layer)?;
        Ok(LayerState {
            local_bytes,
            data_bytes,
            blob_bytes,
            inodes,
        })
    }

    /// Records the layer that `labels` name as a lazy snapshot, if it can be read lazily.
    ///
    /// Whatever is wrong with the layer, its labels or its registry, the answer is a pull by
    /// containerd, which checks every byte by the digests of the manifest: a forged TOC costs
    /// laziness, never correctness. The reason is logged.
    fn prepare_lazily(&self, place: &Place<'_>, labels: &Labels) -> Result<Option<String>> {
        let Some(lazy) = &self.lazy else {
            return Ok(None);
        };
        match labels::read(labels) {
            Ok(Request::Ordinary) => Ok(None),
            Ok(Request::Anonymous) => {
                if !self.said_anonymous.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "not lazy: containerd does not say which image a layer belongs to; \
                         see docs/containerd.md for the settings it needs"
                    );
                }
                Ok(None)
            }
            Ok(Request::Layer { target, source }) => self.layers.with(source.stored_as(), || {
                self.adopt(lazy, place, &target, &source, labels)
            }),
            Err(error) => {
                tracing::warn!(key = place.key, %error, "not lazy");
                Ok(None)
            }
        }
    }

    fn adopt(
        &self,
        lazy: &Lazy,
        place: &Place<'_>,
        target: &str,
        source: &LayerSource,
        labels: &Labels,
    ) -> Result<Option<String>> {
        // Fails for a parent that nothing can build on, before any byte is fetched for it.
        let parents = self.catalog.parents(place.parent)?;
        if parents.iter().any(|parent| parent.layer.is_none()) {
            let layer = source.layer;
            if must_be_lazy(source, &parents) {
                return Err(refused(source, "lies on an ordinary layer"));
            }
            tracing::info!(image = %source.image, %layer, "not lazy: it lies on an ordinary layer");
            return Ok(None);
        }
        let direct = place.key.starts_with(PREFIX);
        if let Some(name) = self.find_lazy(target, place.parent, direct)? {
            return Ok(Some(name));
        }
        let mut source = source.clone();
        source.below = parents.len();
        if !source.chain.is_empty() {
            // Parents come topmost first.
            let below = parents.iter().rev().filter_map(|parent| parent.layer);
            let below = below.map(|layer| *layer.digest());
            source.chain.splice(0..0, below);
        }
        let alternative = lazy.alternative(&source).unwrap_or_else(|error| {
            tracing::debug!(image = %source.image, %error, "no Nydus form was looked for");
            None
        });
        let layer = match alternative {
            Some(Alternative::Whole(layer)) => LazyLayer { layer, whole: true },
            Some(Alternative::Below) => LayerId::from(source.layer).into(),
            None => match add(lazy, target, &source, &parents)? {
                Some(layer) => layer.into(),
                None => return Ok(None),
            },
        };
        let mut labels = labels.clone();
        labels.insert(labels::REMOTE.to_owned(), "xebec".to_owned());
        // The wanted name may belong to the same layer on another parent (one that another
        // namespace unpacked); containerd finds a layer by its label, not by its name here.
        let hidden = direct.then(|| format!("{PREFIX}{target}"));
        let wanted = hidden.as_deref().unwrap_or(target);
        let name = match self
            .catalog
            .create_lazy(wanted, place.parent, labels.clone(), layer)
        {
            Ok(_) => wanted,
            Err(Error::AlreadyExists(_)) => {
                self.catalog
                    .create_lazy(place.key, place.parent, labels, layer)?;
                place.key
            }
            Err(error) => return Err(error),
        };
        tracing::debug!(image = %source.image, layer = %source.layer, name, "lazy");
        Ok(Some(name.to_owned()))
    }

    /// The lazy layer that is wanted as `target`, of the clients that are `direct` or of containerd.
    fn find_lazy(
        &self,
        target: &str,
        parent: Option<&str>,
        direct: bool,
    ) -> Result<Option<String>> {
        let found = self.catalog.select(|name, record| {
            record.layer.is_some()
                && name.starts_with(PREFIX) == direct
                && record.parent.as_deref() == parent
                && record
                    .labels
                    .get(labels::SNAPSHOT_REF)
                    .is_some_and(|name| name == target)
        })?;
        Ok(found.into_iter().next().map(|(name, _)| name))
    }

    fn create(&self, place: &Place<'_>, labels: Labels) -> Result<Vec<Mount>> {
        let parents = self.catalog.parents(place.parent)?;
        let lowers = Lowers::of(&parents)?;
        let held = self.hold(&lowers, &parents)?;
        let paths = lowers.paths(|id| self.dirs.upper(id), held.as_ref());
        // The root directory of an overlay is that of its upper layer, so it takes over the owner.
        let owner = match mounts::mapped_root(&labels)? {
            Some(owner) => Some(owner),
            None => paths.first().map(|path| owner_of(path)).transpose()?,
        };
        let Place { kind, key, parent } = *place;
        let make = |record: &Record| self.dirs.create(record.id, kind, owner);
        let record = self.catalog.create(kind, key, parent, labels, make)?;
        self.keep(record.id, held);
        Ok(self.plan(&record, &paths))
    }

    /// Mounts the lazy tree of `lowers`, if they have one; they are those of `parents`.
    fn hold(&self, lowers: &Lowers, parents: &[Record]) -> Result<Option<HeldTree>> {
        match (lowers.chain(), &self.lazy) {
            (None, _) => Ok(None),
            (Some(chain), Some(lazy)) => {
                absent::complete(lazy, parents)?;
                HeldTree::mount(lazy, chain).map(Some)
            }
            (Some(_), None) => Err(Error::FailedPrecondition(
                "the image was pulled lazily, but lazy mounts are switched off".to_owned(),
            )),
        }
    }

    fn plan(&self, record: &Record, lower: &[PathBuf]) -> Vec<Mount> {
        let parts = Parts {
            kind: record.kind,
            upper: &self.dirs.upper(record.id),
            work: &self.dirs.work(record.id),
            lower,
            labels: &record.labels,
        };
        mounts::plan(&parts, &self.overlay_options)
    }

    fn keep(&self, id: SnapshotId, held: Option<HeldTree>) {
        if let Some(tree) = held {
            self.held().insert(id, tree);
        }
    }

    /// Gives back the lazy tree of a snapshot; the table is not locked while it is unmounted.
    fn release(&self, id: SnapshotId) {
        let held = self.mounting.with(id, || self.held().remove(&id));
        drop(held);
    }

    pub(super) fn lazy(&self) -> Option<&Arc<Lazy>> {
        self.lazy.as_ref()
    }

    pub(super) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The right to evict.
    pub(super) fn evicting(&self) -> MutexGuard<'_, ()> {
        self.evicting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work`, again if the disk was full and room could be made, and once more with what was
    /// set aside.
    fn with_room<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let outcome = match &self.lazy {
            Some(lazy) => lazy.space().with_room(&mut work),
            None => work(),
        };
        match outcome {
            Err(error) if error.is_full() && self.spare.give() => work(),
            outcome => outcome,
        }
    }

    /// Room is set aside again.
    pub(super) fn take_spare(&self) {
        self.spare.take();
    }

    fn held(&self) -> MutexGuard<'_, HashMap<SnapshotId, HeldTree>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes over the trees that are still mounted for snapshots of an earlier daemon, and unmounts
/// those that no snapshot uses.
fn adopt(catalog: &Catalog, lazy: Option<&Arc<Lazy>>) -> Result<HashMap<SnapshotId, HeldTree>> {
    let mut held = HashMap::new();
    let Some(lazy) = lazy else {
        return Ok(held);
    };
    for (name, record) in catalog.select(|_, record| record.kind != Kind::Committed)? {
        let (_, parents) = catalog.chain(&name)?;
        let lowers = Lowers::of(&parents)?;
        let tree = lowers.chain().map(|chain| HeldTree::adopt(lazy, chain));
        if let Some(tree) = tree.transpose()?.flatten() {
            held.insert(record.id, tree);
        }
    }
    lazy.clear_unadopted()?;
    Ok(held)
}

/// Makes a layer itself ready to be read. `None`: containerd must pull it, the reason is logged.
fn add(
    lazy: &Lazy,
    target: &str,
    source: &LayerSource,
    parents: &[Record],
) -> Result<Option<LayerId>> {
    // containerd could not do without them either.
    absent::complete(lazy, parents)?;
    let must_be_lazy = must_be_lazy(source, parents);
    let layer = match lazy.add_layer(source) {
        Ok(Some(layer)) => layer,
        // The reason is logged.
        Ok(None) if must_be_lazy => return Err(refused(source, "cannot be read lazily")),
        Ok(None) => return Ok(None),
        Err(error) if must_be_lazy => return Err(error),
        Err(error) => {
            tracing::warn!(image = %source.image, layer = %source.layer, %error, "not lazy");
            return Ok(None);
        }
    };
    let Some(diff_id) = lazy.diff_id(layer)? else {
        return Ok(Some(layer));
    };
    let actual = chain::id(parents, &diff_id);
    if actual == target {
        return Ok(Some(layer));
    }
    if must_be_lazy {
        let reason = "has another diff ID than its configuration says";
        return Err(refused(source, reason));
    }
    tracing::warn!(
        image = %source.image, layer = %source.layer, %diff_id, %actual, target,
        "not lazy: the configuration gives the layer another diff ID"
    );
    Ok(None)
}

fn refused(source: &LayerSource, reason: &str) -> Error {
    let what = format!("layer {} of Nydus image {}", source.layer, source.image);
    Error::FailedPrecondition(format!("{what} {reason}"))
}

/// Whether a layer cannot be unpacked: it is part of a Nydus image, or lies on a part that adds
/// nothing to the tree by itself.
fn must_be_lazy(source: &LayerSource, parents: &[Record]) -> bool {
    let below = parents.first().and_then(|parent| parent.layer);
    source.nydus_part().is_some() || below == Some(LayerId::empty())
}

fn named<'a>(what: &str, name: &'a str) -> Result<&'a str> {
    if name.is_empty() {
        return Err(Error::InvalidArgument(format!("empty {what}")));
    }
    Ok(name)
}

fn owner_of(path: &Path) -> Result<Owner> {
    let metadata = fs::symlink_metadata(path).map_err(Error::io("stat", path))?;
    Ok((metadata.uid(), metadata.gid()))
}
