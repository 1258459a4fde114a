//! What else to fetch when a read misses: its neighbours in the blob, the more the denser reads
//! are there.
//!
//! Layers are packed in path order, so what a program reads next mostly lies near what it read
//! last: further chunks of the same file, or other files of the same directory, in any order. The
//! blob is divided in regions; each miss in a region doubles what the next miss there fetches. One
//! stray read so costs little, and a walk through a directory or file soon fetches in pieces that
//! use the line fully.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::index::{LayerIndex, Unit};

/// Packed bytes of a region.
const REGION: u64 = 2 << 20;
/// Packed bytes fetched along with the first miss of a region: about one round trip's worth of
/// wire time both at 100 Mbit/s, 20 ms and at 1 Gbit/s, 2 ms.
const FIRST_WINDOW: u64 = 256 << 10;
/// How often the window doubles at most.
const MAX_DOUBLINGS: u8 = 3;

/// How often reads missed, by region.
pub(super) struct Ahead {
    misses: Box<[AtomicU8]>,
    /// A profile says what will be read: what it does not know is an exception.
    is_calm: AtomicBool,
}

impl Ahead {
    pub(super) fn new(blob_size: u64) -> Self {
        let regions = blob_size / REGION + 1;
        Self {
            misses: (0..regions).map(|_| AtomicU8::new(0)).collect(),
            is_calm: AtomicBool::new(false),
        }
    }

    /// Makes the windows small from now on.
    pub(super) fn calm(&self) {
        self.is_calm.store(true, Ordering::Relaxed);
    }

    /// Counts a miss at `offset` of the blobs together and tells how many packed bytes to fetch along.
    pub(super) fn window(&self, offset: u64) -> u64 {
        let misses = &self.misses[(offset / REGION) as usize];
        let before = misses.load(Ordering::Relaxed).min(MAX_DOUBLINGS);
        // A count lost between two threads only makes the next window smaller.
        misses.store(before + 1, Ordering::Relaxed);
        if !self.is_calm.load(Ordering::Relaxed) {
            return FIRST_WINDOW << before;
        }
        // Mostly a reader who is sooner than the profile: what is around it is either on its way
        // or not needed.
        match before.checked_sub(1) {
            None => 0,
            Some(before) => (FIRST_WINDOW / 8) << before,
        }
    }
}

/// The absent units of its blob that follow `after` without interruption, up to `window` packed bytes; what is
/// left of the window then goes to those right before it.
pub(super) fn neighbours(
    index: &LayerIndex,
    after: u32,
    window: u64,
    is_absent: impl Fn(u32) -> bool,
) -> Vec<u32> {
    let mut left = window;
    let blob = index.unit(after).blob;
    let mut fits = |unit: &u32| {
        let Unit { len, blob: its, .. } = index.unit(*unit);
        let len = u64::from(len);
        let fits = its == blob && len <= left && is_absent(*unit);
        left -= if fits { len } else { 0 };
        fits
    };
    let mut units: Vec<u32> = (after + 1..index.units()).take_while(&mut fits).collect();
    units.extend((0..after).rev().take_while(fits));
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_doubles_with_each_miss_in_a_region_and_stays_bounded() {
        let ahead = Ahead::new(10 * REGION);
        let windows: Vec<u64> = (0..6).map(|i| ahead.window(i * 1000)).collect();
        let k = FIRST_WINDOW;
        assert_eq!(windows, [k, 2 * k, 4 * k, 8 * k, 8 * k, 8 * k]);
        assert_eq!(ahead.window(9 * REGION + 5), k);
        assert_eq!(ahead.window(10 * REGION), k, "the very end");
        ahead.calm();
        let calm: Vec<u64> = (0..3).map(|_| ahead.window(5 * REGION)).collect();
        assert_eq!(calm, [0, k / 8, k / 4], "a profile knows better");
    }
}
