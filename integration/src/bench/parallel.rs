//! Doing something many times, several at once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use crate::error::{Error, Result};

/// Does `action` for each number below `count`, `at_once` of them side by side. A failure ends the
/// worker that met it, and is returned when the others are through.
pub fn for_each(count: u32, at_once: u32, action: impl Fn(u32) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicU32::new(0);
    let worker = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            action(number)?;
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(worker)).collect();
        let panicked = |_| Err(Error::invalid("a parallel worker", "it panicked"));
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(panicked))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_its_turn_once_and_a_failure_is_told() {
        let sum = AtomicU32::new(0);
        let add = |n| {
            sum.fetch_add(n, Ordering::Relaxed);
            Ok(())
        };
        for_each(100, 8, add).unwrap();
        assert_eq!(sum.into_inner(), 100 * 99 / 2);
        let failed = for_each(100, 8, |n| match n {
            70 => Err(Error::invalid("70", "failed")),
            _ => Ok(()),
        });
        assert!(failed.is_err());
    }
}
