//! Telling the timelines of starts what is fetched and waited for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use crate::timeline::{Timeline, What};

/// Which starts a layer takes part in just now; mostly none.
#[derive(Default)]
pub(super) struct Timed {
    any: AtomicBool,
    list: RwLock<Vec<Arc<Timeline>>>,
}

impl Timed {
    pub(super) fn add(&self, timeline: Arc<Timeline>) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        list.retain(|known| known.is_open() && !Arc::ptr_eq(known, &timeline));
        list.push(timeline);
        self.any.store(true, Ordering::Relaxed);
    }

    /// Notes what is over now; costs one load when nobody wants to know.
    pub(super) fn note(&self, begun: Instant, what: impl Fn() -> What) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        for timeline in &*list {
            timeline.note(begun, what());
        }
        let is_over = list.iter().any(|timeline| !timeline.is_open());
        drop(list);
        if is_over {
            let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
            list.retain(|timeline| timeline.is_open());
            self.any.store(!list.is_empty(), Ordering::Relaxed);
        }
    }
}
