//! Telling recordings which packed bytes a read needs for the first time.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::index::{Inode, LayerIndex};
use crate::profile::{Read, Recording};

/// Who wants to know what is read of a layer; mostly nobody.
#[derive(Default)]
pub(super) struct Watchers {
    any: AtomicBool,
    list: RwLock<Vec<Watcher>>,
}

struct Watcher {
    recording: Arc<Recording>,
    /// The layer's number in the recording's chain.
    layer: usize,
    /// One bit a unit.
    seen: Box<[AtomicU8]>,
}

impl Watchers {
    pub(super) fn add(&self, recording: Arc<Recording>, layer: usize, units: u32) {
        let seen = (0..units.div_ceil(8)).map(|_| AtomicU8::new(0)).collect();
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        list.push(Watcher {
            recording,
            layer,
            seen,
        });
        self.any.store(true, Ordering::Relaxed);
    }

    /// Whether nobody watches, as mostly.
    pub(super) fn are_none(&self) -> bool {
        !self.any.load(Ordering::Relaxed)
    }

    pub(super) fn want_every_read(&self) -> bool {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.iter()
            .any(|watcher| watcher.recording.wants_every_read())
    }

    /// Notes a read; costs one load when nobody watches.
    pub(super) fn touch(&self, index: &LayerIndex, file: &Inode, offset: u64, len: u64) {
        if self.are_none() {
            return;
        }
        let mut is_over = false;
        for watcher in &*self.list.read().unwrap_or_else(PoisonError::into_inner) {
            match watcher.recording.time() {
                Some(at) => watcher.note(index, file, (offset, len), at),
                None => is_over = true,
            }
        }
        if is_over {
            let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
            list.retain(|watcher| !watcher.recording.is_over());
            self.any.store(!list.is_empty(), Ordering::Relaxed);
        }
    }
}

impl Watcher {
    fn note(&self, index: &LayerIndex, file: &Inode, (offset, len): (u64, u64), at: u32) {
        for chunk in index.chunks_at(file, offset, len) {
            let id = index.chunk(chunk).unit;
            let bit = 1 << (id % 8);
            if self.seen[id as usize / 8].fetch_or(bit, Ordering::Relaxed) & bit == 0 {
                let unit = index.unit(id);
                self.recording.note(Read {
                    layer: self.layer,
                    offset: index.place_among_blobs(&unit),
                    len: u64::from(unit.len),
                    at,
                });
            }
        }
    }
}
