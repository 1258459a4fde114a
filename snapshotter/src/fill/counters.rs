//! What is counted of reads and requests, for metrics and status.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::pool::{CLASSES, Class};

/// Upper bounds in milliseconds of the classes in which the times of requests are counted.
pub const BOUNDS: [u64; 12] = [2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10_000, 30_000];

/// The counters of one layer since it was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    fetched: [AtomicU64; CLASSES.len()],
    local_reads: AtomicU64,
    cold_reads: AtomicU64,
    spoilt: AtomicU64,
    failed: AtomicU64,
}

/// What the counters of a layer show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packed bytes fetched, by what for (as [`CLASSES`]).
    pub fetched: [u64; CLASSES.len()],
    /// Reads that needed nothing from the registry, of those that were seen: the kernel answers
    /// most by itself.
    pub local_reads: u64,
    /// Reads that had to wait for it.
    pub cold_reads: u64,
    /// Units whose bytes were not what they must be.
    pub spoilt: u64,
    /// Requests that failed.
    pub failed: u64,
}

impl Counts {
    /// Packed bytes fetched for one purpose.
    pub fn fetched_for(&self, class: Class) -> u64 {
        self.fetched[class as usize]
    }
}

impl Counters {
    pub(super) fn fetched(&self, class: Class, bytes: u64) {
        self.fetched[class as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn read(&self, is_local: bool) {
        let counter = if is_local {
            &self.local_reads
        } else {
            &self.cold_reads
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn spoilt(&self) {
        self.spoilt.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn show(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            fetched: std::array::from_fn(|class| load(&self.fetched[class])),
            local_reads: load(&self.local_reads),
            cold_reads: load(&self.cold_reads),
            spoilt: load(&self.spoilt),
            failed: load(&self.failed),
        }
    }
}

/// How long the requests of one class took, in this process.
#[derive(Debug)]
pub struct Times {
    counts: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

/// What [`Times`] show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Histogram {
    /// Requests by their time, each bound's own; those beyond the last bound come last.
    pub counts: [u64; BOUNDS.len() + 1],
    /// All times together.
    pub sum: Duration,
}

static TIMES: [Times; CLASSES.len()] = [const { Times::new() }; CLASSES.len()];

/// The times of all requests of a class.
pub(super) fn times(class: Class) -> &'static Times {
    &TIMES[class as usize]
}

/// How long the requests of each class took, as [`CLASSES`].
pub fn histograms() -> [Histogram; CLASSES.len()] {
    std::array::from_fn(|class| TIMES[class].show())
}

impl Times {
    const fn new() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BOUNDS.len() + 1],
            microseconds: AtomicU64::new(0),
        }
    }

    pub(super) fn add(&self, time: Duration) {
        let millis = time.as_millis() as u64;
        let place = BOUNDS.partition_point(|bound| *bound < millis);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.microseconds
            .fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    fn show(&self) -> Histogram {
        Histogram {
            counts: std::array::from_fn(|place| self.counts[place].load(Ordering::Relaxed)),
            sum: Duration::from_micros(self.microseconds.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_in_the_first_class_that_holds_it() {
        let times = Times::new();
        for millis in [0, 2, 3, 30_000, 30_001] {
            times.add(Duration::from_millis(millis));
        }
        let shown = times.show();
        assert_eq!((shown.counts[0], shown.counts[1]), (2, 1));
        assert_eq!(
            (shown.counts[BOUNDS.len() - 1], shown.counts[BOUNDS.len()]),
            (1, 1)
        );
        assert_eq!(shown.sum, Duration::from_millis(60_006));
    }
}
