//! The pages that a first request touches: copied one after the other, so that they come by one read.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::flatten::{copy, create, memories, processes, write};
use super::memory::{Copy, PAGE, Run};
use crate::error::Result;

/// Bytes of one entry of a list.
const ENTRY: usize = 24;

/// Pages that clones need soon: where they are in the process and in its image; in the file of hot
/// pages they follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HotRun {
    pub(crate) address: u64,
    pub(crate) stored: u64,
    pub(crate) pages: u64,
}

/// Where the list of a process is, in the directory of hot pages.
pub(crate) fn list_name(pid: i32) -> PathBuf {
    format!("list-{pid}").into()
}

/// Where its pages are.
pub(crate) fn pages_name(pid: i32) -> PathBuf {
    format!("pages-{pid}").into()
}

/// Copies pages of the images in `from` that are `present` in a process, which has the pid that it had
/// when it was dumped; the bytes of all of them.
///
/// # Errors
/// An image is damaged, a process cannot be looked at, or the disk is full.
pub(crate) fn write_hot(
    from: &Path,
    to: &Path,
    mut present: impl FnMut(i32, Run) -> Result<Vec<bool>>,
) -> Result<u64> {
    let processes = processes(from)?;
    let mut total = 0;
    for (process, memory) in processes.iter().zip(&memories(from, &processes)?) {
        let mut hot = Vec::new();
        for run in memory.runs().filter(|run| run.stored.is_some()) {
            hot.extend(hot_runs(run, &present(process.pid, run)?));
        }
        let image = from.join(format!("pages-{}.img", memory.pages_id));
        let pages = to.join(pages_name(process.pid));
        copy(&image, &copies(&hot), &pages, &create(&pages)?)?;
        write(&to.join(list_name(process.pid)), &encode(&hot))?;
        total += hot.iter().map(|run| run.pages * PAGE).sum::<u64>();
    }
    Ok(total)
}

/// Which parts of pages that lie together are there.
fn hot_runs(run: Run, present: &[bool]) -> Vec<HotRun> {
    let Some(stored) = run.stored else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut at = 0;
    for same in present.chunk_by(|one, next| one == next) {
        let pages = same.len() as u64;
        if same.first() == Some(&true) {
            found.push(HotRun {
                address: run.address + at * PAGE,
                stored: stored + at * PAGE,
                pages,
            });
        }
        at += pages;
    }
    found
}

fn copies(hot: &[HotRun]) -> Vec<Copy> {
    let mut to = 0;
    let place = |run: &HotRun| {
        let length = run.pages * PAGE;
        to += length;
        Copy {
            from: run.stored,
            to: to - length,
            length,
        }
    };
    hot.iter().map(place).collect()
}

fn encode(hot: &[HotRun]) -> Vec<u8> {
    let words = hot
        .iter()
        .flat_map(|run| [run.address, run.stored, run.pages]);
    words.flat_map(u64::to_le_bytes).collect()
}

/// Parses a list; none if it is not one.
pub(crate) fn parse_list(bytes: &[u8]) -> Option<Vec<HotRun>> {
    let (entries, rest) = bytes.as_chunks::<ENTRY>();
    let word = |entry: &[u8; ENTRY], at: usize| {
        let bytes = entry[at * 8..][..8].try_into().unwrap_or_default();
        u64::from_le_bytes(bytes)
    };
    let parse = |entry: &[u8; ENTRY]| {
        let [address, stored, pages] = [0, 1, 2].map(|at| word(entry, at));
        let length = pages.checked_mul(PAGE)?;
        let is_whole = (address | stored).is_multiple_of(PAGE) && pages > 0;
        let fits = address.checked_add(length).is_some() && stored.checked_add(length).is_some();
        (is_whole && fits).then_some(HotRun {
            address,
            stored,
            pages,
        })
    };
    rest.is_empty()
        .then(|| entries.iter().map(parse).collect())
        .flatten()
}

/// Bit of an entry of `/proc/PID/pagemap`: the page is in memory, or in swap.
const PRESENT: u64 = 1 << 63 | 1 << 62;

/// Which pages of a run are in a process, by its open `pagemap`.
///
/// # Errors
/// It cannot be read.
pub(crate) fn present_in(pagemap: &File, run: Run) -> std::io::Result<Vec<bool>> {
    let mut entries = vec![0; run.pages as usize * size_of::<u64>()];
    let at = run.address / PAGE * size_of::<u64>() as u64;
    std::os::unix::fs::FileExt::read_exact_at(pagemap, &mut entries, at)?;
    let (entries, _) = entries.as_chunks();
    let is_present = |entry: &[u8; 8]| u64::from_ne_bytes(*entry) & PRESENT != 0;
    Ok(entries.iter().map(is_present).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_page_that_is_there_is_in_the_list_once(
            present in prop::collection::vec(any::<bool>(), 0..50),
            first in 0..1000_u64,
        ) {
            let run = Run { address: first * PAGE, pages: present.len() as u64, stored: Some(7 * PAGE) };
            let hot = hot_runs(run, &present);
            let pages = hot.iter().flat_map(|run| {
                (0..run.pages).map(|page| (run.address / PAGE + page, run.stored / PAGE + page))
            });
            let there = present.iter().zip(0..).filter(|(there, _)| **there);
            let wanted: Vec<_> = there.map(|(_, page)| (first + page, 7 + page)).collect();
            prop_assert_eq!(pages.collect::<Vec<_>>(), wanted);
            prop_assert_eq!(parse_list(&encode(&hot)), Some(hot.clone()));
            let copied = copies(&hot);
            let total: u64 = hot.iter().map(|run| run.pages * PAGE).sum();
            prop_assert_eq!(copied.last().map_or(0, |copy| copy.to + copy.length), total);
        }

        #[test]
        fn any_bytes_are_a_list_or_none(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Some(hot) = parse_list(&bytes) {
                prop_assert_eq!(encode(&hot), bytes);
            }
        }
    }
}
