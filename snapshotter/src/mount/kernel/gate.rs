//! The gate before the store's segments: whoever reads bytes that are not there waits here.
//!
//! **Own accesses.** The daemon reads and writes the same files, and an event for its own write
//! would wait for itself. A descriptor opened before the watch raises none, but a successor comes
//! after it. So the store is opened by way of a mount of our own, the *door*, which the group
//! ignores; the images name the segments by their ordinary paths.
//!
//! **A watch is only ever taken from a complete segment.** Whether somebody still has an
//! unmounted tree open cannot be known, and a hole without a watch reads as zeros.
//!
//! **A start that is recorded for the first time is watched whole.** What is complete raises no
//! event once it is not watched: a profile would miss it, and another node would have to wait for
//! exactly that.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::super::LayerId;
use super::super::layers::Layers;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fill::Filler;
use crate::fill::pool::{Class, Pool};
use crate::keeper::custody::{Custody, Duties};
use crate::keeper::group::{Group, Verdict};
use crate::keeper::link::Link;
use crate::keeper::wire::Event;

/// Watches segments and fills what is read.
pub(in crate::mount) struct Gate {
    group: Arc<Group>,
    custody: Arc<Custody>,
    /// The store's directory, by the mount whose accesses are not watched.
    door: OwnedFd,
    root: PathBuf,
    /// Nobody watched before this daemon.
    is_new: bool,
    /// Events that this daemon has not answered yet.
    open: Mutex<BTreeSet<i32>>,
    answered: Condvar,
    watched: Mutex<HashSet<(LayerId, u32)>>,
    /// Layers of adopted mounts, whose watched segments are still to be found out.
    adopted: Mutex<HashSet<LayerId>>,
}

impl Gate {
    /// Takes over the watch that is kept, or begins one.
    pub(in crate::mount) fn open(root: &Path, custody: &Arc<Custody>) -> Result<Self> {
        if let Some(gate) = Self::take_over(root, custody)? {
            return Ok(gate);
        }
        let group = Group::new().map_err(Error::io("watch files below", root))?;
        Self::new(root, custody, custody.begin_watch(group), true)
    }

    /// Takes over the watch that is kept; `None` if there is none.
    pub(in crate::mount) fn take_over(root: &Path, custody: &Arc<Custody>) -> Result<Option<Self>> {
        let known = custody.group();
        known
            .map(|group| Self::new(root, custody, group, false))
            .transpose()
    }

    fn new(root: &Path, custody: &Arc<Custody>, group: Arc<Group>, is_new: bool) -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let door = open_tree(CWD, root, flags).map_err(Error::io("open", root))?;
        group
            .ignore_mount(door.as_fd())
            .map_err(Error::io("open a door to", root))?;
        tracing::info!(taken_over = !is_new, "reads are watched");
        Ok(Self {
            group,
            custody: Arc::clone(custody),
            door,
            root: root.to_owned(),
            is_new,
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

    /// Makes a segment ready to be mounted: there at its full length, and watched unless nobody
    /// needs to know of its reads. Gives its ordinary path.
    pub(super) fn guard(&self, layer: LayerId, filler: &Filler, segment: u32) -> Result<PathBuf> {
        let blob = filler.blob();
        drop(blob.segment(segment)?);
        let path = blob.segment_path(segment);
        if is_wanted(filler, segment) {
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

    /// The files of a layer were replaced by others that nobody has mounted.
    pub(in crate::mount) fn forget(&self, layer: LayerId) {
        lock(&self.watched).retain(|(watched, _)| *watched != layer);
        lock(&self.adopted).remove(&layer);
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

    /// Takes the watch from segments that nobody needs to know of any more.
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
                Ok(filler) => self.release_if_unwanted(&filler, segment),
                // The layer was removed: its file is gone as soon as nobody has it open.
                Err(Error::NotFound(_)) => true,
                Err(_) => false,
            };
            if is_over {
                lock(&self.watched).remove(&(layer, segment));
            }
        }
    }

    fn release_if_unwanted(&self, filler: &Filler, segment: u32) -> bool {
        if is_wanted(filler, segment) {
            return false;
        }
        let path = filler.blob().segment_path(segment);
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
            if segment > 0 && gate.release_if_unwanted(&filler, segment) {
                lock(&gate.watched).remove(&(layer, segment));
            }
            match filled {
                Ok(()) => answer.give(Verdict::Allow),
                // The end of the daemon fails what it had begun: the successor begins anew.
                Err(_) if gate.custody.is_closing() => drop(answer),
                // The cause is in the log already.
                Err(_) => answer.give(Verdict::Deny),
            }
        });
    }
}

/// What the gate does for the keeper.
pub(in crate::mount) struct Doorman {
    pub(in crate::mount) gate: Option<Arc<Gate>>,
    pub(in crate::mount) layers: Arc<Layers>,
    pub(in crate::mount) pool: Arc<Pool>,
}

impl Duties for Doorman {
    fn take(&self, link: &Arc<Link>, event: &Event) {
        if let Some(gate) = &self.gate {
            gate.take(link, event, &self.layers, &self.pool);
        }
    }

    fn settle(&self) {
        let Some(gate) = &self.gate else {
            return;
        };
        let mut open = lock(&gate.open);
        while !open.is_empty() {
            open = gate
                .answered
                .wait(open)
                .unwrap_or_else(PoisonError::into_inner);
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
        if !self.given && !self.gate.custody.is_closing() {
            self.end(Verdict::Deny);
        }
    }
}

/// Whether reads of a segment must be seen: those of its holes, and all that a first profile is
/// made of.
fn is_wanted(filler: &Filler, segment: u32) -> bool {
    !filler.blob().is_segment_complete(segment) || filler.wants_every_read()
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
