//! What a start reads of a layer, by a profile.

use std::collections::{BTreeSet, HashSet};

use serde::Serialize;

use crate::index::LayerIndex;
use crate::profile::{Profile, Read};

/// What a start needs of a layer, or of all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StartUp {
    /// Packed bytes that are fetched.
    pub size: u64,
    /// What they unpack to, where an index says so.
    pub unpacked: u64,
    /// Files that they belong to, where an index says so.
    pub files: u64,
}

/// The needs of a layer, and the inodes that it reads.
pub(super) fn of_layer(
    profile: &Profile,
    layer: usize,
    index: Option<&LayerIndex>,
) -> (StartUp, HashSet<u32>) {
    let reads: Vec<Read> = profile
        .reads()
        .iter()
        .copied()
        .filter(|read| read.layer == layer)
        .collect();
    let mut start_up = StartUp {
        size: covered(&reads),
        ..StartUp::default()
    };
    let mut inodes = HashSet::new();
    if let Some(index) = index {
        let units: BTreeSet<u32> = reads
            .iter()
            .flat_map(|read| index.units_among_blobs(read.offset, read.len))
            .collect();
        for id in units {
            for chunk in index.unit_chunks(&index.unit(id)) {
                let chunk = index.chunk(chunk);
                start_up.unpacked += u64::from(chunk.len);
                inodes.insert(chunk.inode);
            }
        }
    }
    start_up.files = inodes.len() as u64;
    (start_up, inodes)
}

/// Bytes that any of the ranges covers.
fn covered(reads: &[Read]) -> u64 {
    let mut ranges: Vec<(u64, u64)> = reads
        .iter()
        .map(|read| (read.offset, read.offset + read.len))
        .collect();
    ranges.sort_unstable();
    let (mut total, mut end) = (0, 0);
    for (from, to) in ranges {
        total += to.saturating_sub(from.max(end));
        end = end.max(to);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap_count_once() {
        let read = |offset, len| (0, offset, len, 0).into();
        assert_eq!(covered(&[]), 0);
        let reads = [read(10, 10), read(0, 5), read(15, 10), read(12, 2)];
        assert_eq!(covered(&reads), 20);
    }
}
