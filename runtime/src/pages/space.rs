//! Where the pages of a process are in its image: pure.

use std::collections::BTreeMap;

use crate::template::{PAGE, Run};

/// The memory of one process, as far as it may still be in the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Space {
    /// Pieces by their first address; they do not overlap.
    pieces: BTreeMap<u64, Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    end: u64,
    /// Where its first byte is in the image.
    stored: u64,
}

impl Space {
    /// What an image holds; pages of zeroes need no place.
    pub(super) fn new(runs: impl Iterator<Item = Run>) -> Self {
        let piece = |run: Run| {
            let end = run.address + run.pages * PAGE;
            run.stored
                .map(|stored| (run.address, Piece { end, stored }))
        };
        Self {
            pieces: runs.filter_map(piece).collect(),
        }
    }

    /// What is left: where it is in the process, where in the image, and how many bytes it is.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        let pieces = self.pieces.iter();
        pieces.map(|(start, piece)| (*start, piece.stored, piece.end - start))
    }

    /// How many bytes are left.
    pub(super) fn size(&self) -> u64 {
        self.pieces().map(|(_, _, length)| length).sum()
    }

    /// Where the page at `address` is, and how many bytes from there on lie one after the other in
    /// both; none for a page of zeroes.
    pub(super) fn at(&self, address: u64) -> Option<(u64, u64)> {
        let (start, piece) = self.pieces.range(..=address).next_back()?;
        let stored = piece.stored + (address - start);
        (address < piece.end).then(|| (stored, piece.end - address))
    }

    /// Memory from `start` to `end` is empty, or not there any more.
    pub(super) fn forget(&mut self, start: u64, end: u64) {
        drop(self.take(start, end));
    }

    /// Memory has moved, with what was in it; what was there is gone.
    pub(super) fn remap(&mut self, from: u64, to: u64, length: u64) {
        let moved = self.take(from, from.saturating_add(length));
        self.forget(to, to.saturating_add(length));
        for (start, piece) in moved {
            let place = |address: u64| address - from + to;
            let end = place(piece.end);
            self.pieces.insert(place(start), Piece { end, ..piece });
        }
    }

    /// Cuts out what lies between two addresses.
    fn take(&mut self, start: u64, end: u64) -> Vec<(u64, Piece)> {
        if start >= end {
            return Vec::new();
        }
        let before = self
            .pieces
            .range(..start)
            .next_back()
            .map(|(first, _)| *first);
        let within = self.pieces.range(start..end).map(|(first, _)| *first);
        let touched: Vec<u64> = before.into_iter().chain(within).collect();
        let mut taken = Vec::new();
        for first in touched {
            let Some(piece) = self.pieces.remove(&first) else {
                continue;
            };
            let mut keep = |from: u64, end: u64, into: Option<&mut Vec<(u64, Piece)>>| {
                if from < end {
                    let stored = piece.stored + (from - first);
                    match into {
                        Some(taken) => taken.push((from, Piece { end, stored })),
                        None => drop(self.pieces.insert(from, Piece { end, stored })),
                    }
                }
            };
            keep(first, piece.end.min(start), None);
            keep(first.max(start), piece.end.min(end), Some(&mut taken));
            keep(first.max(end), piece.end, None);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Change {
        Forget(u64, u64),
        Remap(u64, u64, u64),
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let page = 0..40_u64;
        let forget =
            (page.clone(), page.clone()).prop_map(|(start, end)| Change::Forget(start, end));
        let remap = (page.clone(), page, 1..12_u64)
            // The kernel moves nothing onto itself.
            .prop_filter("they overlap", |(from, to, length)| {
                from.abs_diff(*to) >= *length
            })
            .prop_map(|(from, to, length)| Change::Remap(from, to, length));
        prop::collection::vec(prop_oneof![forget, remap], 0..12)
    }

    proptest! {
        #[test]
        fn every_page_is_where_a_list_of_pages_says(
            runs in prop::collection::vec((1..5_u64, 0..4_u64, any::<bool>()), 0..8),
            changes in changes(),
        ) {
            let (mut at, mut stored) = (0, 0);
            let mut all = Vec::new();
            let mut pages = BTreeMap::new();
            for (length, gap, present) in runs {
                at += gap;
                all.push(Run { address: at * PAGE, pages: length, stored: present.then_some(stored) });
                for page in 0..length {
                    if present {
                        pages.insert(at + page, stored + page * PAGE);
                    }
                }
                at += length;
                stored += if present { length * PAGE } else { 0 };
            }
            let mut space = Space::new(all.into_iter());
            for change in changes {
                match change {
                    Change::Forget(start, end) => {
                        space.forget(start * PAGE, end * PAGE);
                        pages.retain(|page, _| *page < start || *page >= end);
                    }
                    Change::Remap(from, to, length) => {
                        space.remap(from * PAGE, to * PAGE, length * PAGE);
                        let moved: Vec<_> = (0..length)
                            .filter_map(|page| Some((to + page, pages.remove(&(from + page))?)))
                            .collect();
                        pages.retain(|page, _| *page < to || *page >= to + length);
                        pages.extend(moved);
                    }
                }
            }
            for page in 0..80 {
                let found = space.at(page * PAGE);
                prop_assert_eq!(found.map(|(stored, _)| stored), pages.get(&page).copied());
                if let Some((stored, length)) = found {
                    for next in 0..length / PAGE {
                        prop_assert_eq!(pages.get(&(page + next)), Some(&(stored + next * PAGE)));
                    }
                }
            }
        }
    }
}
