//! How files are cut into chunks: what a start reads of them into some of its own.
//!
//! A start by profile fetches whole chunks. So those that it needs hold nothing else, are longer
//! than others and packed as small as can be; a few megabytes of an image, for which that is cheap.

use std::collections::{BTreeMap, HashMap};

use bstr::{BStr, ByteSlice};

use crate::formats::estargz::toc::EntryType;

use super::guided::Recorded;
use super::tar::TarEntry;

/// What kernels read at least: ranges begin and end with it.
const PAGE: u64 = 4 << 10;
/// Ranges that are as near to each other are one: a chunk more costs as much, and is a hole in what
/// a kernel reads ahead.
const GAP: u64 = 16 << 10;
/// Largest chunk that a start reads, unless something else is said.
const LARGEST: u64 = 1 << 20;

/// Ranges of a file as their ends, in order, none touching another.
type Ranges = Vec<(u64, u64)>;

/// What a start reads of an image, by path without leading slash. Nothing, unless a start is known.
#[derive(Debug, Clone, Default)]
pub(super) struct Hot(BTreeMap<String, Ranges>);

impl Hot {
    /// What was recorded of a start.
    pub(super) fn new(recorded: &[Recorded]) -> Self {
        let mut files: BTreeMap<String, Ranges> = BTreeMap::new();
        for file in recorded {
            let ranges = file.ranges.iter().filter(|(_, len)| *len > 0);
            let pages = ranges.map(|&(at, len)| {
                let end = at.saturating_add(len);
                (at / PAGE * PAGE, end.div_ceil(PAGE).saturating_mul(PAGE))
            });
            files.entry(file.path.clone()).or_default().extend(pages);
        }
        Self(files.into_iter().map(|(p, r)| (p, joined(r))).collect())
    }

    /// Whether no start is known.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&self, name: &BStr) -> Option<&[(u64, u64)]> {
        let name = name.to_str().ok()?;
        self.0.get(name).map(Vec::as_slice)
    }
}

/// `ranges` in order, with small gaps closed.
fn joined(mut ranges: Ranges) -> Ranges {
    ranges.sort_unstable();
    let mut joined: Ranges = Vec::new();
    for (from, to) in ranges {
        match joined.last_mut() {
            Some((_, end)) if from <= end.saturating_add(GAP) => *end = to.max(*end),
            _ => joined.push((from, to)),
        }
    }
    joined
}

/// Largest chunks, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) ordinary: u64,
    pub(super) hot: u64,
}

impl Sizes {
    /// Those of a conversion for which the size `said` was asked for.
    pub(super) fn new(said: Option<u64>, default: u64) -> Self {
        Self {
            ordinary: said.unwrap_or(default),
            hot: said.unwrap_or(LARGEST),
        }
    }
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Offset in the file.
    pub(super) at: u64,
    pub(super) length: u64,
    /// Whether a start reads it.
    pub(super) is_hot: bool,
}

/// How the files of a layer are cut.
#[derive(Debug)]
pub(super) struct Cuts<'a> {
    sizes: Sizes,
    /// What is read, by the number of the entry whose content it is.
    hot: HashMap<usize, &'a [(u64, u64)]>,
}

impl<'a> Cuts<'a> {
    /// A hard link's ranges are those of the file it is a link to.
    pub(super) fn new(entries: &[TarEntry], hot: &'a Hot, sizes: Sizes) -> Self {
        let mut known = HashMap::new();
        if !hot.is_empty() {
            let numbers = entries
                .iter()
                .enumerate()
                .map(|(at, e)| (e.name.as_ref(), at));
            let by_name: HashMap<&BStr, usize> = numbers.collect();
            for (at, entry) in entries.iter().enumerate() {
                let Some(ranges) = hot.of(entry.name.as_ref()) else {
                    continue;
                };
                let is_link = entry.kind == EntryType::Hardlink;
                let target = is_link.then(|| by_name.get::<BStr>(entry.link.as_ref()).copied());
                known.insert(target.flatten().unwrap_or(at), ranges);
            }
        }
        Self { sizes, hot: known }
    }

    /// The chunks of the file of `size` bytes that is entry number `entry`, without gap.
    pub(super) fn of(&self, entry: usize, size: u64) -> impl Iterator<Item = Cut> + use<'a> {
        let sizes = self.sizes;
        let ranges = self.hot.get(&entry).copied().unwrap_or_default();
        let inside = ranges.iter().take_while(move |(from, _)| *from < size);
        let inside = inside.map(move |&(from, to)| (from, to.min(size)));
        let mut end = 0;
        inside.chain([(size, size)]).flat_map(move |(from, to)| {
            let before = pieces(end, from, sizes.ordinary, false);
            end = to;
            before.chain(pieces(from, to, sizes.hot, true))
        })
    }
}

fn pieces(from: u64, to: u64, size: u64, is_hot: bool) -> impl Iterator<Item = Cut> {
    let count = to.saturating_sub(from).div_ceil(size);
    (0..count).map(move |i| Cut {
        at: from + i * size,
        length: size.min(to - from - i * size),
        is_hot,
    })
}

#[cfg(test)]
mod tests {
    use super::super::order::tests::entry;
    use super::*;

    const SIZES: Sizes = Sizes {
        ordinary: 100_000,
        hot: 200_000,
    };

    fn recorded(path: &str, ranges: &[(u64, u64)]) -> Recorded {
        Recorded {
            path: path.to_owned(),
            at: 0,
            ranges: ranges.to_vec(),
        }
    }

    /// The chunks of the second entry of a layer, as (offset, length), hot ones apart.
    fn cut(size: u64, hot: &Hot, second: TarEntry) -> (Ranges, Ranges) {
        let entries = [entry("lib", EntryType::Dir, ""), second];
        let cuts: Vec<Cut> = Cuts::new(&entries, hot, SIZES).of(1, size).collect();
        let mut end = 0;
        for cut in &cuts {
            assert_eq!(cut.at, end, "no gap, no overlap");
            assert!(cut.length > 0);
            end += cut.length;
        }
        assert_eq!(end, size);
        let of = |is_hot| {
            let those = cuts.iter().filter(move |cut| cut.is_hot == is_hot);
            those.map(|cut| (cut.at, cut.length)).collect()
        };
        (of(false), of(true))
    }

    fn file() -> TarEntry {
        entry("lib/x", EntryType::Reg, "")
    }

    #[test]
    fn files_of_which_nothing_is_known_are_cut_evenly() {
        let hot = Hot::new(&[recorded("lib/y", &[(0, 9)])]);
        let (cold, none) = cut(250_000, &hot, file());
        assert_eq!(cold, [(0, 100_000), (100_000, 100_000), (200_000, 50_000)]);
        assert!(none.is_empty());
        assert_eq!(cut(0, &hot, file()), (vec![], vec![]));
    }

    #[test]
    fn what_is_read_has_chunks_of_its_own_in_whole_pages() {
        let ranges = [(300_000, 10), (9000, 1), (10_000, 5000), (700_000, 400_000)];
        let (cold, read) = cut(1_000_001, &Hot::new(&[recorded("lib/x", &ranges)]), file());
        assert_eq!(
            read,
            [
                (8192, 8192),
                (299_008, 4096),
                (696_320, 200_000),
                (896_320, 103_681)
            ]
        );
        assert_eq!(
            cold,
            [
                (0, 8192),
                (16_384, 100_000),
                (116_384, 100_000),
                (216_384, 82_624),
                (303_104, 100_000),
                (403_104, 100_000),
                (503_104, 100_000),
                (603_104, 93_216),
            ]
        );
    }

    #[test]
    fn small_gaps_belong_to_what_is_read_around_them() {
        let near = [(0, 4096), (4096 + GAP, 4096)];
        let hot = Hot::new(&[recorded("lib/x", &near[..1]), recorded("lib/x", &near[1..])]);
        assert_eq!(cut(50_000, &hot, file()).1, [(0, 8192 + GAP)]);
        let far = [(0, 4096), (8192 + GAP, 4096)];
        let hot = Hot::new(&[recorded("lib/x", &far)]);
        assert_eq!(cut(50_000, &hot, file()).1.len(), 2);
    }

    #[test]
    fn ranges_that_lie_outside_of_the_file_are_cut_off() {
        let wild = [(4000, u64::MAX), (u64::MAX, u64::MAX), (5000, 0)];
        let hot = Hot::new(&[recorded("lib/x", &wild)]);
        assert_eq!(cut(5000, &hot, file()), (vec![], vec![(0, 5000)]));
        let beyond = Hot::new(&[recorded("lib/x", &[(8192, 1)])]);
        assert_eq!(cut(5000, &beyond, file()), (vec![(0, 5000)], vec![]));
    }

    #[test]
    fn a_hard_link_that_is_read_is_the_file() {
        let entries = [file(), entry("bin/x", EntryType::Hardlink, "lib/x")];
        let hot = Hot::new(&[recorded("bin/x", &[(0, 10)])]);
        let cuts: Vec<Cut> = Cuts::new(&entries, &hot, SIZES).of(0, 10).collect();
        assert!(matches!(
            cuts[..],
            [Cut {
                is_hot: true,
                length: 10,
                ..
            }]
        ));
    }
}
