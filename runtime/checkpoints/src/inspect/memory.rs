//! The memory of a process: what its areas are, and where the pages of them are stored.

use serde::Serialize;
use xebec_proto::criu_images::{AreaEntry, MemoryEntry, PagemapEntry, PagemapHead};

use crate::archive::CHECKPOINT;
use crate::error::Result;
use crate::files::{Files, Piece};
use crate::images::{self, PAGEMAP};

const PAGE: u64 = 4096;
/// Pages of this entry are in the pages file.
const PRESENT: u32 = 1 << 2;
/// Most of arguments or environment that is looked at.
const TEXT_MAX: u64 = 128 << 10;

/// Memory by kind, in bytes that are mapped and that are stored.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Private memory of no file, and the heap.
    pub anonymous: Size,
    /// Stacks that the kernel grows.
    pub stack: Size,
    /// Private mappings of files.
    pub file_private: Size,
    /// Shared mappings of files.
    pub file_shared: Size,
    /// Memory that processes share.
    pub shared: Size,
    /// What the kernel maps.
    pub kernel: Size,
}

/// How large something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Bytes of address space.
    pub mapped: u64,
    /// Bytes in the checkpoint.
    pub stored: u64,
}

impl Memory {
    /// All kinds with their names.
    pub fn kinds(&self) -> [(&'static str, Size); 6] {
        [
            ("anonymous", self.anonymous),
            ("stack", self.stack),
            ("file private", self.file_private),
            ("file shared", self.file_shared),
            ("shared", self.shared),
            ("kernel", self.kernel),
        ]
    }

    fn kind_of(&mut self, area: &AreaEntry) -> &mut Size {
        let is = |bit: u32| area.status & (1 << bit) != 0;
        // The numbers of bits are CRIU's.
        if is(2) || is(3) || is(12) {
            &mut self.kernel
        } else if is(1) || area.flags & GROWS_DOWN != 0 {
            &mut self.stack
        } else if is(6) {
            &mut self.file_private
        } else if is(7) {
            &mut self.file_shared
        } else if is(8) || is(10) {
            &mut self.shared
        } else {
            &mut self.anonymous
        }
    }
}

/// `MAP_GROWSDOWN`.
const GROWS_DOWN: u32 = 0x100;

/// Pages that follow each other in memory and in the file.
#[derive(Debug)]
struct Run {
    address: u64,
    bytes: u64,
    offset: u64,
}

/// Where the pages of a process are.
#[derive(Debug, Default)]
pub(super) struct Pages {
    file: String,
    runs: Vec<Run>,
}

impl Pages {
    pub(super) fn read(files: &Files, pid: u32) -> Result<Self> {
        let Some(mut entries) = images::open(files, &format!("pagemap-{pid}"), &PAGEMAP)? else {
            return Ok(Self::default());
        };
        let Some(head) = entries.next::<PagemapHead>()? else {
            return Ok(Self::default());
        };
        let mut runs = Vec::new();
        let mut offset = 0_u64;
        let mut before = 0;
        while let Some(entry) = entries.next::<PagemapEntry>()? {
            let pages = entry
                .nr_pages
                .unwrap_or_else(|| entry.compat_nr_pages().into());
            let bytes = pages.saturating_mul(PAGE);
            if entry.vaddr < before {
                return Err(entries.damaged("pages are not in their order"));
            }
            before = entry.vaddr.saturating_add(bytes);
            // Before there were flags, what was not in the parent was here.
            let present = entry
                .flags
                .map_or(!entry.in_parent(), |flags| flags & PRESENT != 0);
            if present {
                runs.push(Run {
                    address: entry.vaddr,
                    bytes,
                    offset,
                });
                offset = offset.saturating_add(bytes);
            }
        }
        Ok(Self {
            file: format!("{CHECKPOINT}/pages-{}.img", head.pages_id),
            runs,
        })
    }

    /// How the memory is divided; none if areas are not in their order.
    pub(super) fn divide(&self, areas: &[AreaEntry]) -> Option<Memory> {
        let is_sorted = areas.windows(2).all(|pair| pair[0].end <= pair[1].start)
            && areas.iter().all(|area| area.start <= area.end);
        if !is_sorted {
            return None;
        }
        let mut memory = Memory::default();
        for area in areas {
            let size = memory.kind_of(area);
            size.mapped = size
                .mapped
                .saturating_add(area.end.saturating_sub(area.start));
        }
        for run in &self.runs {
            let end = run.address.saturating_add(run.bytes);
            let first = areas.partition_point(|area| area.end <= run.address);
            let touched = areas[first..].iter().take_while(|area| area.start < end);
            for area in touched {
                let inside = area
                    .end
                    .min(end)
                    .saturating_sub(area.start.max(run.address));
                let size = memory.kind_of(area);
                size.stored = size.stored.saturating_add(inside);
            }
        }
        Some(memory)
    }

    /// The piece of the pages file that has these addresses, as far as one run has them.
    pub(super) fn piece(&self, start: u64, end: u64) -> Option<Piece> {
        let run = self
            .runs
            .iter()
            .find(|run| run.address <= start && start < run.address.saturating_add(run.bytes))?;
        let within = start - run.address;
        let length = end
            .checked_sub(start)?
            .min(run.bytes - within)
            .min(TEXT_MAX);
        Some(Piece {
            name: self.file.clone(),
            offset: run.offset.checked_add(within)?,
            length: length as usize,
        })
    }

    /// Where arguments and environment are.
    pub(super) fn texts(&self, memory: &MemoryEntry) -> [Option<Piece>; 2] {
        [
            self.piece(memory.mm_arg_start, memory.mm_arg_end),
            self.piece(memory.mm_env_start, memory.mm_env_end),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(start: u64, end: u64, status: u32) -> AreaEntry {
        AreaEntry {
            start,
            end,
            status,
            ..AreaEntry::default()
        }
    }

    #[test]
    fn stored_pages_are_counted_for_the_areas_that_they_are_in() {
        let run = |address, bytes, offset| Run {
            address,
            bytes,
            offset,
        };
        let pages = Pages {
            file: "pages".to_owned(),
            runs: vec![run(0x1000, 0x3000, 0), run(0x9000, 0x1000, 0x3000)],
        };
        let areas = [
            area(0x1000, 0x2000, 1 << 6),
            area(0x2000, 0x8000, 1 << 9),
            area(0x9000, 0xb000, 1 << 1),
        ];
        let memory = pages.divide(&areas).expect("in their order");
        let size = |mapped, stored| Size { mapped, stored };
        assert_eq!(memory.file_private, size(0x1000, 0x1000));
        assert_eq!(memory.anonymous, size(0x6000, 0x2000));
        assert_eq!(memory.stack, size(0x2000, 0x1000));
        let piece = pages.piece(0x9010, 0x9020).expect("stored");
        assert_eq!((piece.offset, piece.length), (0x3010, 0x10));
        assert!(pages.piece(0x8000, 0x8010).is_none());
        let overlapping = [area(0x1000, 0x3000, 0), area(0x2000, 0x4000, 0)];
        assert_eq!(pages.divide(&overlapping), None);
    }
}
