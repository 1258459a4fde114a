//! How much is written to the store, and who makes room when the disk is full.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::error::Result;

/// How often a write is tried again after room was made: others write at the same time.
const MAX_TRIES: u32 = 3;

/// Makes room on a full disk; whether there is some now.
type MakeRoom = Box<dyn Fn() -> bool + Send + Sync>;

/// What everyone who writes to the store tells, and what is done about it.
#[derive(Default)]
pub struct Space {
    /// Bytes that may be written before somebody is to look at the whole.
    left: AtomicI64,
    /// More is stored than may be, and all of it is in use.
    is_short: AtomicBool,
    is_over: Mutex<bool>,
    change: Condvar,
    make_room: OnceLock<MakeRoom>,
    evictions: AtomicU64,
    evicted_bytes: AtomicU64,
}

/// What was evicted since the daemon's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evictions {
    /// Layers whose data was deleted, and kept indexes.
    pub count: u64,
    /// Bytes that they took on disk.
    pub bytes: u64,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl Space {
    /// From now on `make_room` is called when a write finds the disk full. Only the first call
    /// counts.
    pub fn when_full(&self, make_room: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.make_room.set(Box::new(make_room));
    }

    /// Takes note of `bytes` that were written.
    pub(super) fn note(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let before = self.left.fetch_sub(bytes, Ordering::Relaxed);
        if before > 0 && before <= bytes {
            self.change.notify_all();
        }
    }

    /// Runs `write`, again if the disk was full and room could be made.
    pub fn with_room<T>(&self, mut write: impl FnMut() -> Result<T>) -> Result<T> {
        let mut outcome = write();
        for _ in 0..MAX_TRIES {
            match &outcome {
                Err(error) if error.is_full() && self.make_room() => outcome = write(),
                _ => break,
            }
        }
        outcome
    }

    fn make_room(&self) -> bool {
        self.make_room.get().is_some_and(|make_room| make_room())
    }

    /// Allows `bytes` to be written before [`Space::wait`] returns. With `is_short` it returns also
    /// when something is no longer in use.
    pub fn allow(&self, bytes: u64, is_short: bool) {
        self.is_short.store(is_short, Ordering::Relaxed);
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.left.store(bytes, Ordering::Relaxed);
    }

    /// Says that something is no longer in use.
    pub fn note_unused(&self) {
        if self.is_short.load(Ordering::Relaxed) {
            self.left.store(0, Ordering::Relaxed);
            self.change.notify_all();
        }
    }

    /// Waits until more was written than was allowed, or for `most`. `false`: it is over.
    pub fn wait(&self, most: Duration) -> bool {
        let is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |is_over: &mut bool| !*is_over && self.left.load(Ordering::Relaxed) > 0;
        let waited = self.change.wait_timeout_while(is_over, most, goes_on);
        let (is_over, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !*is_over
    }

    /// Ends all waiting.
    pub fn close(&self) {
        *self.is_over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.change.notify_all();
    }

    /// Counts what was evicted.
    pub fn count(&self, bytes: u64) {
        self.evictions.fetch_add(1, Ordering::Relaxed);
        self.evicted_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What was evicted so far.
    pub fn evictions(&self) -> Evictions {
        Evictions {
            count: self.evictions.load(Ordering::Relaxed),
            bytes: self.evicted_bytes.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn full() -> Error {
        Error::io("write", std::path::Path::new("/x"))(std::io::Error::from_raw_os_error(28))
    }

    #[test]
    fn a_write_is_tried_again_as_long_as_room_is_made() {
        let space = Space::default();
        assert!(
            space.with_room(|| Err::<(), _>(full())).is_err(),
            "nobody makes room"
        );
        let calls = std::sync::Arc::new(AtomicU64::new(0));
        let counter = std::sync::Arc::clone(&calls);
        space.when_full(move || counter.fetch_add(1, Ordering::Relaxed) < 2);
        let mut tries = 0;
        let outcome = space.with_room(|| {
            tries += 1;
            if tries < 3 { Err(full()) } else { Ok(tries) }
        });
        assert_eq!(outcome.unwrap(), 3);
        assert!(
            space.with_room(|| Err::<(), _>(full())).is_err(),
            "no room can be made"
        );
        assert_eq!(calls.load(Ordering::Relaxed), 3);
        let other = || Err::<(), _>(Error::NotFound("x".to_owned()));
        assert!(space.with_room(other).is_err());
        assert_eq!(
            calls.load(Ordering::Relaxed),
            3,
            "another error is none of its business"
        );
    }

    #[test]
    fn who_waits_is_woken_when_more_was_written_than_allowed() {
        let space = Space::default();
        space.allow(100, false);
        space.note_unused();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| space.wait(Duration::from_mins(1)));
            space.note(60);
            space.note(60);
            assert!(waiter.join().unwrap());
        });
        space.allow(100, true);
        space.note_unused();
        assert!(space.wait(Duration::from_mins(1)), "it was short of space");
        space.allow(100, true);
        space.close();
        assert!(!space.wait(Duration::from_mins(1)));
    }
}
