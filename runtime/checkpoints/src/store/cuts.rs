//! Where files are cut into chunks. Pages of memory move in their file from one checkpoint to the
//! next, as soon as one is added before them, but not in memory: so the pages of a file are cut where
//! their addresses are multiples of a window, and what has not changed makes the same chunks again.

use xebec_proto::criu_images::{PagemapEntry, PagemapHead};

use super::chunk::CHUNK_MAX;
use crate::images::{Entries, PAGEMAP};

/// Flag of an entry whose pages are in the file.
const PRESENT: u32 = 1 << 2;

/// Pages that follow each other in memory and in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Address of the first one.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) length: u64,
}

/// Reads an image of a page map: the number of the file with its pages, and where these were; none
/// if it is anything else.
pub(crate) fn page_map(content: &[u8], page_size: u64) -> Option<(u32, Vec<Run>)> {
    let mut entries = Entries::new(content, String::new(), &PAGEMAP).ok()?;
    let head = entries.next::<PagemapHead>().ok()??;
    let mut runs = Vec::new();
    while let Some(entry) = entries.next::<PagemapEntry>().ok()? {
        let is_there = match entry.flags {
            Some(flags) => flags & PRESENT != 0,
            None => !entry.in_parent(),
        };
        let pages = entry.nr_pages.unwrap_or(entry.compat_nr_pages().into());
        let length = pages.checked_mul(page_size)?;
        entry.vaddr.checked_add(length)?;
        if is_there && length > 0 {
            runs.push(Run {
                address: entry.vaddr,
                length,
            });
        }
    }
    Some((head.pages_id, runs))
}

/// Lengths of the chunks of a file of `size` bytes that holds these runs, one after the other.
pub(crate) fn along(runs: &[Run], size: u64, window: u64) -> Vec<u32> {
    let total = runs
        .iter()
        .try_fold(0_u64, |sum, run| sum.checked_add(run.length));
    if total != Some(size) {
        return evenly(size);
    }
    let mut lengths = Vec::new();
    let (mut open, mut place) = (0, None);
    for run in runs {
        let (mut address, end) = (run.address, run.address + run.length);
        while address < end {
            let next = (address / window + 1).saturating_mul(window).min(end);
            // Maps are in order; but a file may say anything.
            if place != Some(address / window) || open + (next - address) > window {
                close(&mut open, &mut lengths);
            }
            place = Some(address / window);
            open += next - address;
            address = next;
        }
    }
    close(&mut open, &mut lengths);
    lengths
}

/// The chunks of any other file.
pub(crate) fn evenly(size: u64) -> Vec<u32> {
    let whole = CHUNK_MAX as u64;
    let mut lengths = vec![CHUNK_MAX as u32; (size / whole) as usize];
    close(&mut (size % whole), &mut lengths);
    lengths
}

fn close(open: &mut u64, lengths: &mut Vec<u32>) {
    if *open > 0 {
        lengths.push(*open as u32);
        *open = 0;
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// First two words of an image of a page map.
    const MAGIC: [u8; 8] = [0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56];
    const PAGE: u64 = 4096;
    const WINDOW: u64 = 4 * PAGE;

    fn runs(pages: &[(u64, u64)]) -> Vec<Run> {
        let run = |&(first, count): &(u64, u64)| Run {
            address: first * PAGE,
            length: count * PAGE,
        };
        pages.iter().map(run).collect()
    }

    fn cut(pages: &[(u64, u64)]) -> Vec<u64> {
        let runs = runs(pages);
        let size = runs.iter().map(|run| run.length).sum();
        along(&runs, size, WINDOW)
            .into_iter()
            .map(|length| u64::from(length) / PAGE)
            .collect()
    }

    #[test]
    fn cuts_are_at_addresses_so_that_new_pages_shift_nothing_else() {
        assert_eq!(cut(&[(2, 10)]), [2, 4, 4]);
        assert_eq!(cut(&[(1, 11)]), [3, 4, 4]);
        // Holes between pages of one window do not split it.
        assert_eq!(cut(&[(0, 1), (2, 1), (4, 1), (9, 3)]), [2, 1, 3]);
        assert_eq!(cut(&[]), [0; 0]);
    }

    #[test]
    fn a_map_that_lies_makes_chunks_of_bounded_length_of_the_whole_file() {
        assert_eq!(cut(&[(0, 4), (0, 4), (0, 3)]), [4, 4, 3]);
        assert_eq!(along(&runs(&[(0, 3)]), 10, WINDOW), [10]);
        assert_eq!(
            along(
                &[Run {
                    address: u64::MAX - 1,
                    length: 1
                }],
                1,
                WINDOW
            ),
            [1]
        );
        assert_eq!(evenly(CHUNK_MAX as u64 + 1), [CHUNK_MAX as u32, 1]);
    }

    #[test]
    fn a_page_map_tells_which_pages_are_in_which_file() {
        let mut image = MAGIC.to_vec();
        let mut add = |message: Vec<u8>| {
            image.extend((message.len() as u32).to_le_bytes());
            image.extend(message);
        };
        add(PagemapHead { pages_id: 3 }.encode_to_vec());
        let entry = |first: u64, flags| PagemapEntry {
            vaddr: first * PAGE,
            compat_nr_pages: Some(2),
            flags: Some(flags),
            ..PagemapEntry::default()
        };
        add(entry(5, PRESENT).encode_to_vec());
        // In a parent.
        add(entry(9, 1).encode_to_vec());
        assert_eq!(page_map(&image, PAGE), Some((3, runs(&[(5, 2)]))));
        for length in 0..image.len() {
            // Cut between two messages it is a shorter map.
            if let Some((_, found)) = page_map(&image[..length], PAGE) {
                assert!(found.len() <= 1);
            }
        }
    }
}
