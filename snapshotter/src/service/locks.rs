//! Locks by name: work on one thing waits for nobody who works on another.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// A lock for each key that is in use.
#[derive(Debug)]
pub(super) struct KeyedLocks<K> {
    locks: Mutex<HashMap<K, Arc<Mutex<()>>>>,
}

impl<K: Eq + Hash + Copy> KeyedLocks<K> {
    pub(super) fn new() -> Self {
        Self {
            locks: Mutex::new(HashMap::new()),
        }
    }

    /// Runs `work` when nobody else works on `key`.
    pub(super) fn with<T>(&self, key: K, work: impl FnOnce() -> T) -> T {
        let lock = self.enter(key);
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = work();
        drop(guard);
        self.leave(key, lock);
        outcome
    }

    /// Runs `work` unless somebody works on `key`.
    pub(super) fn try_with<T>(&self, key: K, work: impl FnOnce() -> T) -> Option<T> {
        let lock = self.enter(key);
        let guard = match lock.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let outcome = guard.map(|_guard| work());
        self.leave(key, lock);
        outcome
    }

    fn enter(&self, key: K) -> Arc<Mutex<()>> {
        Arc::clone(self.table().entry(key).or_default())
    }

    /// Forgets the lock when the last one leaves: the table's own count and this one remain.
    fn leave(&self, key: K, lock: Arc<Mutex<()>>) {
        let mut table = self.table();
        if Arc::strong_count(&lock) == 2 {
            table.remove(&key);
        }
        drop(lock);
    }

    fn table(&self) -> MutexGuard<'_, HashMap<K, Arc<Mutex<()>>>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    #[test]
    fn one_key_is_worked_on_by_one_at_a_time() {
        let locks = KeyedLocks::new();
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        locks.with(1, || {
                            let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                            most.fetch_max(now, Ordering::SeqCst);
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
        assert!(locks.table().is_empty());
    }

    #[test]
    fn another_key_does_not_wait_and_trying_a_busy_one_gives_up() {
        let locks = KeyedLocks::new();
        let (entered, wait) = mpsc::channel();
        let (release, held) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let locks = &locks;
            scope.spawn(move || {
                locks.with(1, || {
                    entered.send(()).unwrap();
                    held.recv().unwrap();
                });
            });
            wait.recv().unwrap();
            assert_eq!(locks.with(2, || 5), 5);
            assert_eq!(locks.try_with(1, || 6), None);
            release.send(()).unwrap();
        });
        assert_eq!(locks.try_with(1, || 7), Some(7));
        assert!(locks.table().is_empty());
    }
}
