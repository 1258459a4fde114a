//! How much is written to the store, and who makes room when the disk is full.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;

/// How often a write is tried again after room was made: others write at the same time.
const MAX_TRIES: u32 = 3;
/// How long what was given up may take to be let go of: a FUSE session ends after its unmounting.
const LETTING_GO: Duration = Duration::from_secs(2);

/// Makes room on a full disk; whether there is some now.
type MakeRoom = Box<dyn Fn() -> bool + Send + Sync>;

/// What a file takes on disk is a multiple of this many bytes.
const BLOCK: u64 = 4096;

/// What everyone who writes to the store tells, and what is done about it.
pub struct Space {
    /// Bytes written since the daemon's start, in whole blocks: never too few.
    written: AtomicU64,
    /// How many they are when somebody is to look at the whole.
    look_at: AtomicU64,
    /// How many they are when there is room no more for what nobody has asked for.
    spare_until: AtomicU64,
    /// More is stored than may be, and all of it is in use.
    is_short: AtomicBool,
    state: Mutex<State>,
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

/// What wakes those who wait.
#[derive(Default)]
struct State {
    is_over: bool,
    /// How often something came out of use, and when it did last.
    unused: u64,
    unused_at: Option<Instant>,
}

/// What had happened when a look at the whole began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    written: u64,
    unused: u64,
}

/// What was found when somebody looked at the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Bytes that may be written before the next look.
    pub leeway: u64,
    /// Bytes that may be written of what nobody has asked for.
    pub spare: u64,
    /// More is stored than may be, and all of it is in use.
    pub is_short: bool,
}

impl Default for Space {
    fn default() -> Self {
        Self {
            written: AtomicU64::new(0),
            look_at: AtomicU64::new(0),
            // Without limits there is room as long as the disk has some.
            spare_until: AtomicU64::new(u64::MAX),
            is_short: AtomicBool::default(),
            state: Mutex::default(),
            change: Condvar::new(),
            make_room: OnceLock::new(),
            evictions: AtomicU64::new(0),
            evicted_bytes: AtomicU64::new(0),
        }
    }
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space")
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Space {
    /// From now on `make_room` is called when a write finds the disk full. Only the first call
    /// counts.
    pub fn when_full(&self, make_room: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.make_room.set(Box::new(make_room));
    }

    /// Takes note of `bytes` that were written to one place.
    pub(super) fn note(&self, bytes: u64) {
        let bytes = bytes.next_multiple_of(BLOCK);
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        let look_at = self.look_at.load(Ordering::Relaxed);
        if before < look_at && before + bytes >= look_at {
            self.wake();
        }
    }

    /// This moment; to be asked for before the whole is measured.
    pub fn now(&self) -> Moment {
        Moment {
            written: self.written.load(Ordering::Relaxed),
            unused: self.lock().unused,
        }
    }

    /// Whether what nobody has asked for may be written to these many `places`, `bytes` in all:
    /// so that nothing that is stored has to go for it. Costs nothing.
    pub fn has_spare(&self, bytes: u64, places: u64) -> bool {
        let most = bytes.saturating_add(places.saturating_mul(BLOCK));
        let written = self.written.load(Ordering::Relaxed);
        written.saturating_add(most) <= self.spare_until.load(Ordering::Relaxed)
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
        let Some(make_room) = self.make_room.get() else {
            return false;
        };
        loop {
            let began = self.now();
            if make_room() {
                return true;
            }
            if !self.wait_for_unused(began) {
                return false;
            }
        }
    }

    /// Whether something has come out of use since `began`; waits for it if something was given up
    /// a moment ago.
    fn wait_for_unused(&self, began: Moment) -> bool {
        let state = self.lock();
        let left = state
            .unused_at
            .map_or(Duration::ZERO, |at| LETTING_GO.saturating_sub(at.elapsed()));
        let goes_on = |state: &mut State| !state.is_over && state.unused == began.unused;
        let waited = self.change.wait_timeout_while(state, left, goes_on);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !state.is_over && state.unused != began.unused
    }

    /// Allows what was found by a look that `began` then. Short of space, [`Space::wait`] returns
    /// also when something has come out of use, during the look or later.
    pub fn allow(&self, began: Moment, allowance: Allowance) {
        let Allowance {
            leeway,
            spare,
            is_short,
        } = allowance;
        let spare_until = began.written.saturating_add(spare);
        self.spare_until.store(spare_until, Ordering::Relaxed);
        let now = self.written.load(Ordering::Relaxed);
        let look_at = now.saturating_add(leeway);
        self.look_at.store(look_at, Ordering::SeqCst);
        self.is_short.store(is_short, Ordering::SeqCst);
        if is_short && self.now().unused != began.unused {
            self.look_at.store(0, Ordering::SeqCst);
        }
    }

    /// Says that something is no longer in use.
    pub fn note_unused(&self) {
        {
            let mut state = self.lock();
            state.unused += 1;
            state.unused_at = Some(Instant::now());
        }
        if self.is_short.load(Ordering::SeqCst) {
            self.look_at.store(0, Ordering::SeqCst);
        }
        self.wake();
    }

    /// Has whoever waits look again at what it waits for.
    fn wake(&self) {
        // With the lock, since it may have looked just now and not be asleep yet.
        drop(self.lock());
        self.change.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until more was written than was allowed, or for `most`. `false`: it is over.
    pub fn wait(&self, most: Duration) -> bool {
        let is_due = || self.written.load(Ordering::Relaxed) >= self.look_at.load(Ordering::SeqCst);
        let goes_on = |state: &mut State| !state.is_over && !is_due();
        let waited = self.change.wait_timeout_while(self.lock(), most, goes_on);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !state.is_over
    }

    /// Ends all waiting.
    pub fn close(&self) {
        self.lock().is_over = true;
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
    fn what_is_being_let_go_of_is_waited_for_before_a_write_fails() {
        let space = std::sync::Arc::new(Space::default());
        let is_free = std::sync::Arc::new(AtomicBool::new(false));
        let known = std::sync::Arc::clone(&is_free);
        space.when_full(move || known.load(Ordering::SeqCst));
        let is_free = &is_free;
        // Unmounted, but its session has not ended.
        space.note_unused();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                is_free.store(true, Ordering::SeqCst);
                space.note_unused();
            });
            let has_room = || is_free.load(Ordering::SeqCst);
            let written = space.with_room(|| has_room().then_some(()).ok_or_else(full));
            assert!(written.is_ok(), "{written:?}");
        });
        is_free.store(false, Ordering::SeqCst);
        assert!(space.with_room(|| Err::<(), _>(full())).is_err());
    }

    const LONG: Duration = Duration::from_mins(1);

    fn allowance(leeway: u64, is_short: bool) -> Allowance {
        Allowance {
            leeway,
            spare: 0,
            is_short,
        }
    }

    #[test]
    fn who_waits_is_woken_when_more_was_written_than_allowed() {
        let space = Space::default();
        space.allow(space.now(), allowance(2 * BLOCK, false));
        space.note_unused();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| space.wait(LONG));
            space.note(60);
            space.note(60);
            assert!(waiter.join().unwrap());
        });
        space.allow(space.now(), allowance(BLOCK, true));
        space.close();
        assert!(!space.wait(LONG));
    }

    #[test]
    fn what_comes_out_of_use_wakes_who_was_short_of_space_whenever_it_does() {
        let space = Space::default();
        let begun = Instant::now();
        space.allow(space.now(), allowance(BLOCK, true));
        space.note_unused();
        assert!(space.wait(LONG));
        // While somebody looked, before it was known that space is short.
        let began = space.now();
        space.note_unused();
        space.allow(began, allowance(BLOCK, true));
        assert!(space.wait(LONG));
        // While somebody goes to sleep.
        for _ in 0..1000 {
            space.allow(space.now(), allowance(BLOCK, true));
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| space.wait(LONG));
                space.note_unused();
                assert!(waiter.join().unwrap());
            });
        }
        assert!(begun.elapsed() < LONG, "one was missed");
    }

    #[test]
    fn what_nobody_has_asked_for_gets_what_was_spare_less_what_was_written_since() {
        let space = Space::default();
        assert!(space.has_spare(1 << 40, 1), "no limit is known");
        let began = space.now();
        // Written while the whole was measured: perhaps seen, perhaps not.
        space.note(BLOCK);
        let found = Allowance {
            leeway: 1 << 30,
            spare: 10 * BLOCK,
            is_short: false,
        };
        space.allow(began, found);
        assert!(space.has_spare(8 * BLOCK, 1));
        assert!(!space.has_spare(8 * BLOCK, 2), "each place begins a block");
        space.note(1);
        assert!(!space.has_spare(8 * BLOCK, 1), "one byte takes a block");
        assert!(space.has_spare(7 * BLOCK, 1));
        space.allow(space.now(), Allowance { spare: 0, ..found });
        assert!(!space.has_spare(1, 0));
    }
}
