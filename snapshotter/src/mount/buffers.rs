//! Room for what goes from the store to the kernel.
//!
//! One read is up to a MiB, and every session has threads of its own. What each thread kept for
//! itself would be most of what an idle daemon weighs, so all of them share a few buffers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most buffers that are kept while nobody uses them.
const KEPT: usize = 2;

/// The buffers of all sessions.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    kept: Mutex<Vec<Vec<u8>>>,
    /// Whether any was lent since the last look.
    lent: AtomicBool,
}

impl Buffers {
    /// Lends `len` bytes, whatever is in them.
    pub(super) fn lend<T>(&self, len: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
        self.lent.store(true, Ordering::Relaxed);
        let mut buffer = self.kept().pop().unwrap_or_default();
        buffer.resize(buffer.len().max(len), 0);
        let result = work(&mut buffer[..len]);
        let mut kept = self.kept();
        if kept.len() < KEPT {
            kept.push(buffer);
        }
        result
    }

    /// Frees what nobody has needed since the last call.
    pub(super) fn let_go(&self) {
        if !self.lent.swap(false, Ordering::Relaxed) {
            self.kept().clear();
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_are_needed_are_lent_and_a_few_are_kept() {
        let buffers = Buffers::default();
        buffers.lend(10, |first| {
            first.fill(1);
            buffers.lend(1 << 20, |second| {
                second.fill(2);
                buffers.lend(5, |third| third.fill(3));
                assert_eq!(second.len(), 1 << 20);
            });
            assert_eq!(first, [1; 10]);
        });
        assert_eq!(buffers.kept().len(), KEPT);
        buffers.lend(7, |again| assert_eq!(again.len(), 7));
        // Once after a use, and once more: nobody has come back.
        buffers.let_go();
        assert_eq!(buffers.kept().len(), KEPT);
        buffers.let_go();
        assert!(buffers.kept().is_empty());
    }
}
