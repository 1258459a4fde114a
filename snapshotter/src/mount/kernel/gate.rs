//! The gate before the store's segments: whoever reads bytes that are not there waits here.
//!
//! **Own accesses.** The daemon reads and writes the same files, and an event for its own write
//! would wait for itself. A descriptor opened before the watch raises none, but a successor comes
//! after it. So the store is opened by way of a mount of our own, the *door*, which the group
//! ignores; the images name the segments by their ordinary paths.
//!
//! **A watch is only ever taken from a complete segment.** Whether somebody still has an
//! unmounted tree open cannot be known, and a hole without a watch reads as zeros.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::super::LayerId;
use super::super::layers::Layers;
use super::Keeping;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fill::Filler;
use crate::fill::pool::{Class, Pool};
use crate::keeper::group::{Group, Verdict};
use crate::keeper::link::Link;
use crate::keeper::stored;
use crate::keeper::wire::Event;

/// Numbers that events of a dead keeper may have: it has no more descriptors.
const MOST_EVENTS: i32 = 1 << 20;
/// That many unused numbers in a row, and there are no further events.
const GAP: i32 = 4096;

/// Watches segments and fills what is read.
pub(in crate::mount) struct Gate {
    group: Group,
    /// The store's directory, by the mount whose accesses are not watched.
    door: OwnedFd,
    root: PathBuf,
    keeping: Keeping,
    /// Nobody watched before this daemon.
    is_new: bool,
    closing: AtomicBool,
    link: Mutex<Arc<Link>>,
    /// Events that this daemon has not answered yet.
    open: Mutex<BTreeSet<i32>>,
    answered: Condvar,
    watched: Mutex<HashSet<(LayerId, u32)>>,
    /// Layers of adopted mounts, whose watched segments are still to be found out.
    adopted: Mutex<HashSet<LayerId>>,
}

impl Gate {
    /// Takes the watch over from the keeper, or begins one and starts a keeper for it.
    pub(in crate::mount) fn open(root: &Path, keeping: Keeping) -> Result<Self> {
        if let Some((link, group)) = Link::to_keeper(&keeping.socket)? {
            return Self::new(root, keeping, link, group, false);
        }
        if let Some(group) = stored::take() {
            tracing::error!("the keeper was killed with the daemon; systemd has kept the watch");
            return Self::with_new_keeper(root, keeping, group, false);
        }
        let group = Group::new().map_err(Error::io("watch files below", root))?;
        stored::put(&group);
        Self::with_new_keeper(root, keeping, group, true)
    }

    fn with_new_keeper(root: &Path, keeping: Keeping, group: Group, is_new: bool) -> Result<Self> {
        if !is_new {
            deny_lost(&group);
        }
        let link = Link::to_new_keeper(&group, &keeping)?;
        Self::new(root, keeping, link, group, is_new)
    }

    /// Takes the watch over from the keeper; `None` if there is none.
    pub(in crate::mount) fn take_over(root: &Path, keeping: Keeping) -> Result<Option<Self>> {
        let known = Link::to_keeper(&keeping.socket)?;
        known
            .map(|(link, group)| Self::new(root, keeping, link, group, false))
            .transpose()
    }

    fn new(root: &Path, keeping: Keeping, link: Link, group: Group, is_new: bool) -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let door = open_tree(CWD, root, flags).map_err(Error::io("open", root))?;
        group
            .ignore_mount(door.as_fd())
            .map_err(Error::io("open a door to", root))?;
        tracing::info!(
            keeper = link.keeper(),
            taken_over = !is_new,
            "reads are watched"
        );
        Ok(Self {
            group,
            door,
            root: root.to_owned(),
            keeping,
            is_new,
            closing: AtomicBool::new(false),
            link: Mutex::new(Arc::new(link)),
            open: Mutex::default(),
            answered: Condvar::new(),
            watched: Mutex::default(),
            adopted: Mutex::default(),
        })
    }

    /// The root by the door, for the store.
    pub(in crate::mount) fn door(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.door.as_raw_fd().to_string())
    }

    /// Whether nobody watched before.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Begins to answer.
    pub(in crate::mount) fn serve(
        self: &Arc<Self>,
        layers: Arc<Layers>,
        pool: Arc<Pool>,
    ) -> Result<()> {
        let gate = Arc::clone(self);
        let thread = std::thread::Builder::new().name("xebec-gate".to_owned());
        thread
            .spawn(move || gate.run(&layers, &pool))
            .map(drop)
            .map_err(|error| Error::Internal(format!("start a thread: {error}")))
    }

    /// Stops answering; what is not answered is left to a successor. The keeper goes too when
    /// there is nothing left to watch.
    pub(in crate::mount) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        let link = self.link();
        match self.group.watches_anything() {
            Ok(false) => {
                link.dismiss();
                stored::remove();
            }
            Ok(true) => {}
            Err(error) => tracing::warn!(%error, "the keeper stays"),
        }
        link.close();
    }

    /// Makes a segment ready to be mounted: there at its full length, and watched unless it is
    /// complete. Gives its ordinary path.
    pub(super) fn guard(&self, layer: LayerId, filler: &Filler, segment: u32) -> Result<PathBuf> {
        let blob = filler.blob();
        drop(blob.segment(segment)?);
        let path = blob.segment_path(segment);
        if !blob.is_segment_complete(segment) {
            self.group
                .watch(self.door.as_fd(), self.below_door(&path)?)
                .map_err(Error::io("watch", &path))?;
            lock(&self.watched).insert((layer, segment));
        }
        Ok(path)
    }

    /// Segments of these layers are watched since an earlier daemon.
    pub(super) fn remember(&self, chain: &[LayerId]) {
        lock(&self.adopted).extend(chain);
    }

    /// Says that there was a time without a watch.
    pub(super) fn report_gap(path: &Path) {
        tracing::error!(
            path = %path.display(),
            "daemon and keeper were both gone while this tree was mounted: what containers on it \
             have read for the first time in the meantime was zeros. Restart them"
        );
    }

    fn below_door<'a>(&self, path: &'a Path) -> Result<&'a Path> {
        path.strip_prefix(&self.root)
            .map_err(|_| Error::Internal(format!("{} is not in the store", path.display())))
    }

    /// Takes the watch from segments that are complete.
    pub(super) fn release_complete(&self, layers: &Layers) {
        for layer in std::mem::take(&mut *lock(&self.adopted)) {
            if let Ok(filler) = layers.get(layer) {
                let segments = 0..filler.blob().index().segments();
                lock(&self.watched).extend(segments.map(|segment| (layer, segment)));
            }
        }
        let watched: Vec<_> = lock(&self.watched).iter().copied().collect();
        for (layer, segment) in watched {
            let is_over = match layers.get(layer) {
                Ok(filler) => self.release_if_complete(&filler, segment),
                // The layer was removed: its file is gone as soon as nobody has it open.
                Err(Error::NotFound(_)) => true,
                Err(_) => false,
            };
            if is_over {
                lock(&self.watched).remove(&(layer, segment));
            }
        }
    }

    fn release_if_complete(&self, filler: &Filler, segment: u32) -> bool {
        let blob = filler.blob();
        if !blob.is_segment_complete(segment) {
            return false;
        }
        let path = blob.segment_path(segment);
        let released = self
            .below_door(&path)
            .map(|path| self.group.unwatch(self.door.as_fd(), path));
        match released {
            Ok(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a complete file stays watched");
            }
            _ => {}
        }
        true
    }

    fn run(self: &Arc<Self>, layers: &Arc<Layers>, pool: &Arc<Pool>) {
        loop {
            let link = self.link();
            match link.next_event() {
                Ok(Some(event)) => self.take(&link, &event, layers, pool),
                _ if self.closing.load(Ordering::SeqCst) => return,
                ended => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "the keeper is not understood");
                    }
                    if let Err(error) = self.replace_keeper(&link) {
                        tracing::error!(
                            %error,
                            "there is no keeper: if this daemon dies, holes read as zeros"
                        );
                        std::thread::sleep(std::time::Duration::from_secs(1));
                    }
                }
            }
        }
    }

    /// Answers one event, at once if its bytes are here.
    fn take(
        self: &Arc<Self>,
        link: &Arc<Link>,
        event: &Event,
        layers: &Arc<Layers>,
        pool: &Arc<Pool>,
    ) {
        lock(&self.open).insert(event.id);
        let answer = Answer {
            gate: Arc::clone(self),
            link: Arc::clone(link),
            id: event.id,
            given: false,
        };
        let Some((layer, segment)) = parse(&event.path) else {
            tracing::error!(path = %event.path.display(), "a read of a file that is not served");
            return answer.give(Verdict::Deny);
        };
        let filler = match layers.get(layer) {
            Ok(filler) => filler,
            Err(error) => {
                tracing::error!(%layer, %error, "a read gets EIO");
                return answer.give(Verdict::Deny);
            }
        };
        let (offset, len) = match event.count {
            0 => (0, u64::MAX),
            count => (event.offset, count),
        };
        if event.count > 0 {
            filler.touch_range(segment, offset, len);
        }
        let is_local = filler.is_range_local(segment, offset, len);
        filler.count_read(is_local);
        if is_local {
            return answer.give(Verdict::Allow);
        }
        let gate = Arc::clone(self);
        pool.run(Class::Read, move || {
            let filled = filler.fill_range(segment, offset, len);
            // A large file has a segment of its own; looking at all small ones is the tidier's work.
            if segment > 0 && gate.release_if_complete(&filler, segment) {
                lock(&gate.watched).remove(&(layer, segment));
            }
            // The cause is in the log already.
            answer.give(if filled.is_ok() {
                Verdict::Allow
            } else {
                Verdict::Deny
            });
        });
    }

    /// Starts a keeper in the place of one that has died. The events that it had are answered
    /// first: a new one will use their numbers again.
    fn replace_keeper(&self, dead: &Link) -> Result<()> {
        tracing::error!(
            keeper = dead.keeper(),
            "the keeper has died; starting another"
        );
        dead.reap();
        let mut open = lock(&self.open);
        while !open.is_empty() {
            open = self
                .answered
                .wait(open)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(open);
        deny_lost(&self.group);
        let link = Link::to_new_keeper(&self.group, &self.keeping)?;
        tracing::info!(keeper = link.keeper(), "there is a keeper again");
        *lock(&self.link) = Arc::new(link);
        Ok(())
    }

    fn link(&self) -> Arc<Link> {
        Arc::clone(&lock(&self.link))
    }
}

/// Denies what a dead keeper had taken from the queue and told nobody: a wrong number is no error,
/// so all are tried.
fn deny_lost(group: &Group) {
    let mut last = 0;
    for id in 0..MOST_EVENTS {
        match group.answer_known(id, Verdict::Deny) {
            Ok(true) => {
                tracing::error!("a read got EIO, since the keeper died with it");
                last = id;
            }
            _ if id - last > GAP => return,
            _ => {}
        }
    }
}

/// The duty to answer an event. Dropped without an answer it is EIO, unless the daemon ends and a
/// successor will answer.
struct Answer {
    gate: Arc<Gate>,
    link: Arc<Link>,
    id: i32,
    given: bool,
}

impl Answer {
    fn give(mut self, verdict: Verdict) {
        self.end(verdict);
    }

    fn end(&mut self, verdict: Verdict) {
        self.given = true;
        if let Err(error) = self.gate.group.answer(self.id, verdict) {
            tracing::error!(%error, "answer a read");
        }
        self.link.done(self.id);
        lock(&self.gate.open).remove(&self.id);
        self.gate.answered.notify_all();
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.given && !self.gate.closing.load(Ordering::SeqCst) {
            self.end(Verdict::Deny);
        }
    }
}

/// The layer and segment that a path of the store stands for.
fn parse(path: &Path) -> Option<(LayerId, u32)> {
    let mut parts = path.iter().rev().map(|part| part.to_str());
    let (name, parent) = (parts.next()??, parts.next()??);
    let (hex, segment) = match (parent, name) {
        ("obj", number) => (parts.next()??, number.parse().ok()?),
        (hex, "data") => (hex, 0),
        _ => return None,
    };
    let digest: Digest = format!("sha256:{hex}").parse().ok()?;
    Some((digest.into(), segment))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_the_store_names_layer_and_segment() {
        let digest = Digest::of(b"layer");
        let store = format!("/any/where/blobs/sha256/{}", digest.hex());
        let found = |rest: &str| parse(Path::new(&format!("{store}/{rest}")));
        assert_eq!(found("data"), Some((digest.into(), 0)));
        assert_eq!(found("obj/17"), Some((digest.into(), 17)));
        for other in ["obj/x", "obj/1 (deleted)", "live", "obj", "tree-1"] {
            assert_eq!(found(other), None, "{other}");
        }
        assert_eq!(parse(Path::new("/data")), None);
    }
}
