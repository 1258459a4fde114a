//! Which units are fetched by one request.

use std::ops::Range;

/// Packed bytes between two units that are fetched along rather than skipped: at 100 Mbit/s and
/// 20 ms a request costs as much as 250 KB, at 1 Gbit/s and 2 ms as well.
const MAX_GAP: u64 = 64 << 10;
/// The same where one request can have several ranges: one more of them costs next to nothing.
const SMALL_GAP: u64 = 4 << 10;
/// Most packed bytes of one request: bounds memory, and the time until its first unit is there.
pub(super) const MAX_RUN: u64 = 4 << 20;
/// Most ranges of one request: more look like an attack to some servers.
pub(super) const MAX_RANGES: usize = 16;

/// One request for some units of a blob.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// What is asked for, in the order in which it is to come.
    pub(super) ranges: Vec<Range<u64>>,
    /// Where each unit's bytes are in those of all ranges, one after the other.
    pub(super) places: Vec<Range<usize>>,
}

impl Request {
    /// A request for as many of the leading `units` (blob and bytes) as go into one: those of one
    /// blob, neighbours with small gaps in one range, at most `most` ranges, up to a bound.
    pub(super) fn of(units: impl Iterator<Item = (u16, Range<u64>)>, most: usize) -> Self {
        let (mut ranges, mut places) = (Vec::<Range<u64>>::new(), Vec::new());
        // Bytes of all ranges but the last; blob and beginning of the unit before.
        let (mut before, mut last) = (0, None);
        let most_between = if most > 1 { SMALL_GAP } else { MAX_GAP };
        for (blob, unit) in units {
            if last.is_some_and(|(of, _)| of != blob) {
                break;
            }
            let follows = |range: &&mut Range<u64>| {
                // Neighbours may have bytes in common.
                let gap = unit.start.saturating_sub(range.end);
                let in_order = last.is_some_and(|(_, start)| unit.start >= start);
                in_order && unit.end >= range.end && gap <= most_between
            };
            let len = |range: &Range<u64>| range.end - range.start;
            let fits = |bytes: u64| bytes <= MAX_RUN || places.is_empty();
            match ranges.last_mut().filter(follows) {
                Some(range) if fits(before + unit.end - range.start) => range.end = unit.end,
                Some(_) => break,
                None => {
                    let full = before + ranges.last().map_or(0, len);
                    if !fits(full + len(&unit)) || ranges.len() == most {
                        break;
                    }
                    before = full;
                    ranges.push(unit.clone());
                }
            }
            let start = ranges.last().map_or(0, |range| range.start);
            let place = |at: u64| (before + at - start) as usize;
            places.push(place(unit.start)..place(unit.end));
            last = Some((blob, unit.start));
        }
        Self { ranges, places }
    }

    /// What each range begins with and how much of it is there when `len` bytes have arrived.
    pub(super) fn arrived(&self, len: usize) -> impl Iterator<Item = (u64, u64)> {
        let mut left = len as u64;
        self.ranges.iter().map(move |range| {
            let bytes = left.min(range.end - range.start);
            left -= bytes;
            (range.start, bytes)
        })
    }

    /// Number of bytes that are asked for.
    pub(super) fn len(&self) -> usize {
        let lens = self.ranges.iter().map(|range| range.end - range.start);
        lens.sum::<u64>() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(offset: u64, len: u64) -> (u16, Range<u64>) {
        (0, offset..offset + len)
    }

    #[test]
    fn neighbouring_units_make_one_range_and_far_ones_two() {
        let gap = |gap| vec![unit(0, 10), unit(10 + gap, 10)];
        for (what, units, [at_once, in_one_range]) in [
            ("adjacent", vec![unit(0, 10), unit(10, 10)], [2, 2]),
            ("a small gap", gap(MAX_GAP), [2, 2]),
            ("a large gap", gap(MAX_GAP + 1), [2, 1]),
            (
                "the second lies before",
                vec![unit(500, 10), unit(0, 10)],
                [2, 1],
            ),
            (
                "too much",
                vec![unit(0, MAX_RUN), unit(MAX_RUN, 10)],
                [1, 1],
            ),
            (
                "too much, far",
                vec![unit(0, MAX_RUN), unit(3 * MAX_RUN, 10)],
                [1, 1],
            ),
            ("another blob", vec![unit(0, 10), (1, 10..20)], [1, 1]),
            (
                "one that is too large alone",
                vec![unit(0, 2 * MAX_RUN)],
                [1, 1],
            ),
            ("none", vec![], [0, 0]),
        ] {
            let count = |most| Request::of(units.iter().cloned(), most).places.len();
            assert_eq!(
                [count(MAX_RANGES), count(1)],
                [at_once, in_one_range],
                "{what}"
            );
        }
        for (between, count) in [(SMALL_GAP, 1), (SMALL_GAP + 1, 2)] {
            let request = Request::of(gap(between).into_iter(), MAX_RANGES);
            assert_eq!(request.ranges.len(), count, "{between} bytes between");
        }
        let far = (0..100).map(|n| unit(n * 1_000_000, 10));
        assert_eq!(Request::of(far, MAX_RANGES).ranges.len(), MAX_RANGES);
    }

    #[test]
    fn places_are_those_in_the_bytes_of_all_ranges() {
        let far = 1 << 20;
        let units = [
            unit(far, 10),
            unit(far + 15, 5),
            unit(far + 18, 7),
            unit(0, 3),
            unit(3, 1),
        ];
        let request = Request::of(units.into_iter(), 2);
        assert_eq!(request.ranges, [far..far + 25, 0..4]);
        assert_eq!(request.places, [0..10, 15..20, 18..25, 25..28, 28..29]);
        assert_eq!(request.len(), 29);
        let arrived: Vec<_> = request.arrived(26).collect();
        assert_eq!(arrived, [(far, 25), (0, 1)]);
    }
}
