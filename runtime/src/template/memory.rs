//! The memory of one process, made flat: private anonymous areas become private mappings of one
//! sparse page file. Pure: bytes of images in, bytes of images and a list of copies out.
//!
//! An area is laid into the page file whole, so that a page that was never touched is a hole there
//! and reads as zeroes, and is followed by a gap, so that growing it reads neither another area nor
//! beyond the end of the file. A part of an area that grows reads what follows it in the area, which
//! is why the guard refuses `mremap`.

use super::wire::{self, Damaged, Fields, Value};
use crate::checkpoint::messages::{self as image, Kind};

/// Bytes of a page, as CRIU counts them.
pub(crate) const PAGE: u64 = 4096;
/// Areas from this size on are aligned to it, as a huge page is.
const HUGE: u64 = 2 << 20;
/// Room for all gaps together: far below what ext4 can address (16 TiB).
const GAPS: u64 = 4 << 40;
/// A gap is no longer than this.
const GAP_MAX: u64 = 64 << 30;
/// User space ends here on every machine that CRIU knows; what the kernel shows beyond is its own.
const ADDRESS_MAX: u64 = 1 << 56;

/// Fields of `mm_entry`, `vma_entry`, `pagemap_head` and `pagemap_entry`.
const MM_VMAS: u64 = 14;
const VMA_START: u64 = 1;
const VMA_END: u64 = 2;
const VMA_PGOFF: u64 = 3;
const VMA_SHMID: u64 = 4;
const VMA_FLAGS: u64 = 6;
const VMA_STATUS: u64 = 7;
const VMA_MADV: u64 = 9;
const PAGES_ID: u64 = 1;
const PAGES_ADDRESS: u64 = 1;
const PAGES_COUNT: u64 = 2;
const PAGES_IN_PARENT: u64 = 3;
const PAGES_FLAGS: u64 = 4;
const PAGES_LONG_COUNT: u64 = 5;

/// Bits of an area's status.
const REGULAR: u64 = 1;
const HEAP: u64 = 1 << 5;
const FILE_PRIVATE: u64 = 1 << 6;
const ANON_PRIVATE: u64 = 1 << 9;
const GUARD: u64 = 1 << 16;
/// A private anonymous area about which nothing is special.
const ORDINARY: u64 = REGULAR | HEAP | ANON_PRIVATE;

/// Bits of its `mmap(2)` flags.
const ANONYMOUS: u64 = 0x20;
const SPECIAL: u64 = (libc::MAP_GROWSDOWN | libc::MAP_LOCKED | libc::MAP_HUGETLB) as u64;

/// Pages in an earlier checkpoint, pages that a server may have, and pages in this checkpoint.
const PARENT: u64 = 1;
const LAZY: u64 = 1 << 1;
const PRESENT: u64 = 1 << 2;

/// What is wrong with an image of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    /// It is cut off, or no such image.
    #[error("not an image of a process's memory")]
    Damaged,
    /// Areas or pages overlap, or are out of order.
    #[error("its areas or pages are out of order")]
    Disordered,
    /// The checkpoint needs an earlier one.
    #[error("some of its pages are in an earlier checkpoint")]
    Incremental,
}

impl From<Damaged> for Unusable {
    fn from(_: Damaged) -> Self {
        Self::Damaged
    }
}

/// An area of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    start: u64,
    end: u64,
    /// It can be a mapping of a file without anybody noticing.
    ordinary: bool,
    guard: bool,
}

/// Pages one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where they are in the process.
    pub(crate) address: u64,
    pub(crate) pages: u64,
    /// Where they are in the image of pages; nowhere if they are zeroes.
    pub(crate) stored: Option<u64>,
}

/// The memory of a process, as its images tell of it.
#[derive(Debug)]
pub(crate) struct Memory<'a> {
    mm: &'a [u8],
    head: &'a [u8],
    entries: Vec<(&'a [u8], Run)>,
    areas: Vec<Area>,
    /// The number in the name of its image of pages.
    pub(crate) pages_id: u64,
}

/// Bytes that are copied from an image of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) length: u64,
}

/// A process whose memory is flat.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flat {
    /// The new `mm-PID.img` and `pagemap-PID.img`.
    pub(crate) mm: Vec<u8>,
    pub(crate) pagemap: Vec<u8>,
    /// Into the page file.
    pub(crate) moved: Vec<Copy>,
    /// Into the new image of pages.
    pub(crate) kept: Vec<Copy>,
}

/// The page file while it is laid out: that of all processes together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    end: u64,
    gap: u64,
}

impl Layout {
    /// For as many areas as will come.
    pub(crate) fn for_areas(count: usize) -> Self {
        let share = GAPS / (count as u64).max(1);
        Self {
            end: 0,
            gap: (share & !(HUGE - 1)).min(GAP_MAX),
        }
    }

    /// Bytes of the page file.
    pub(crate) fn size(self) -> u64 {
        self.end
    }

    fn place(&mut self, length: u64) -> u64 {
        let align = if length >= HUGE { HUGE } else { PAGE };
        let at = self.end.next_multiple_of(align);
        self.end = at + length + self.gap;
        at
    }
}

impl<'a> Memory<'a> {
    /// Reads `mm-PID.img` and `pagemap-PID.img`.
    pub(crate) fn parse(mm: &'a [u8], pagemap: &'a [u8]) -> Result<Self, Unusable> {
        let mm = image::messages(mm, Kind::Memory).ok_or(Unusable::Damaged)?;
        let [mm] = mm[..] else {
            return Err(Unusable::Damaged);
        };
        let pagemap = image::messages(pagemap, Kind::Pagemap).ok_or(Unusable::Damaged)?;
        let (head, entries) = pagemap.split_first().ok_or(Unusable::Damaged)?;
        let pages_id = wire::number_of(head, PAGES_ID)?.ok_or(Unusable::Damaged)?;
        let areas = areas(mm)?;
        Ok(Self {
            mm,
            head,
            entries: runs(entries)?,
            areas,
            pages_id,
        })
    }

    /// What it has pages of, in order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run> {
        self.entries.iter().map(|(_, run)| *run)
    }

    /// What CRIU leaves out if a server has it; none if some of that is not here.
    pub(crate) fn left_out(&self) -> Option<Vec<Run>> {
        let is_lazy = |message: &[u8]| {
            let flags = wire::number_of(message, PAGES_FLAGS).ok().flatten();
            flags.is_some_and(|flags| flags & LAZY != 0)
        };
        let left_out = self.entries.iter().filter(|(message, _)| is_lazy(message));
        left_out.map(|(_, run)| run.stored.map(|_| *run)).collect()
    }

    /// How many areas can become mappings: those that have pages.
    pub(crate) fn movable(&self) -> usize {
        self.to_move().len()
    }

    fn to_move(&self) -> Vec<Area> {
        let guards = || self.areas.iter().filter(|area| area.guard);
        let candidates = self.areas.iter().filter(|area| {
            let guarded = || guards().any(|g| g.start < area.end && area.start < g.end);
            area.ordinary && !guarded()
        });
        let has_pages = |area: &&Area| {
            let first = self
                .entries
                .partition_point(|(_, run)| run.end() <= area.start);
            self.entries
                .get(first)
                .is_some_and(|(_, run)| run.address < area.end)
        };
        candidates.filter(has_pages).copied().collect()
    }

    /// Makes it flat, as mappings of the file with this number.
    pub(crate) fn flatten(&self, file: u64, layout: &mut Layout) -> Result<Flat, Unusable> {
        let mut placed = Vec::new();
        for area in self.to_move() {
            placed.push((area, layout.place(area.end - area.start)));
        }
        let mm = self.remap(file, &placed)?;
        self.split(&placed, mm)
    }

    /// Where each page goes.
    fn split(&self, placed: &[(Area, u64)], mm: Vec<u8>) -> Result<Flat, Unusable> {
        let (mut moved, mut kept) = (Vec::new(), Vec::new());
        let mut messages = vec![self.head.to_vec()];
        let mut end = 0;
        for (message, run) in &self.entries {
            for (part, place) in parts(*run, placed) {
                let length = part.pages * PAGE;
                if let Some(to) = place {
                    moved.extend(part.stored.map(|from| Copy { from, to, length }));
                    continue;
                }
                messages.push(wire::with_numbers(message, &part.numbers())?);
                if let Some(from) = part.stored {
                    kept.push(Copy {
                        from,
                        to: end,
                        length,
                    });
                    end += length;
                }
            }
        }
        Ok(Flat {
            mm,
            pagemap: image::encode(Kind::Pagemap, &messages),
            moved,
            kept,
        })
    }

    /// The image of areas, with those placed as mappings.
    fn remap(&self, file: u64, placed: &[(Area, u64)]) -> Result<Vec<u8>, Unusable> {
        let mut mm = Vec::with_capacity(self.mm.len() + 16 * placed.len());
        for field in Fields::of(self.mm) {
            let field = field?;
            let (MM_VMAS, Value::Bytes(vma)) = (field.number, field.value) else {
                mm.extend_from_slice(field.raw);
                continue;
            };
            let area = area(vma)?;
            match placed.binary_search_by_key(&area.start, |(area, _)| area.start) {
                Ok(index) if !area.guard => {
                    let mapping = as_mapping(vma, file, placed[index].1)?;
                    wire::put_bytes(&mut mm, MM_VMAS, &mapping);
                }
                _ => mm.extend_from_slice(field.raw),
            }
        }
        Ok(image::encode(Kind::Memory, &[mm]))
    }
}

impl Run {
    fn end(self) -> u64 {
        self.address + self.pages * PAGE
    }

    /// Its part from one page to another, counted from its start.
    fn part(self, from: u64, pages: u64) -> Self {
        Self {
            address: self.address + from * PAGE,
            pages,
            stored: self.stored.map(|stored| stored + from * PAGE),
        }
    }

    fn numbers(self) -> [(u64, u64); 3] {
        // The short one is for readers that are older than the long one.
        let short = self.pages.min(u32::MAX.into());
        [
            (PAGES_ADDRESS, self.address),
            (PAGES_COUNT, short),
            (PAGES_LONG_COUNT, self.pages),
        ]
    }
}

/// Cuts a run where areas begin and end; with each part its place in the page file, if it has one.
fn parts(run: Run, placed: &[(Area, u64)]) -> Vec<(Run, Option<u64>)> {
    let mut parts = Vec::new();
    let mut done = 0;
    while done < run.pages {
        let at = run.address + done * PAGE;
        let next = placed.partition_point(|(area, _)| area.end <= at);
        let (end, place) = match placed.get(next) {
            Some((area, place)) if area.start <= at => (area.end, Some(place + at - area.start)),
            Some((area, _)) => (area.start, None),
            None => (u64::MAX, None),
        };
        let pages = ((end - at) / PAGE).min(run.pages - done);
        parts.push((run.part(done, pages), place));
        done += pages;
    }
    parts
}

fn as_mapping(vma: &[u8], file: u64, offset: u64) -> Result<Vec<u8>, Damaged> {
    let number = |field| Ok(wire::number_of(vma, field)?.unwrap_or(0));
    wire::with_numbers(
        vma,
        &[
            (VMA_PGOFF, offset),
            (VMA_SHMID, file),
            (VMA_FLAGS, number(VMA_FLAGS)? & !ANONYMOUS),
            (
                VMA_STATUS,
                number(VMA_STATUS)? & !ANON_PRIVATE | FILE_PRIVATE,
            ),
        ],
    )
}

fn areas(mm: &[u8]) -> Result<Vec<Area>, Unusable> {
    let mut areas: Vec<Area> = Vec::new();
    for field in Fields::of(mm) {
        let field = field?;
        if let (MM_VMAS, Value::Bytes(vma)) = (field.number, field.value) {
            let area = area(vma)?;
            // Guards are told of after all others.
            let before = areas.last().filter(|before| before.guard == area.guard);
            if before.is_some_and(|before| before.end > area.start) {
                return Err(Unusable::Disordered);
            }
            areas.push(area);
        }
    }
    Ok(areas)
}

fn area(vma: &[u8]) -> Result<Area, Unusable> {
    let number = |field| wire::number_of(vma, field);
    let needed = |field| number(field)?.ok_or(Unusable::Damaged);
    let (start, end) = (needed(VMA_START)?, needed(VMA_END)?);
    if start >= end || !(start | end).is_multiple_of(PAGE) {
        return Err(Unusable::Disordered);
    }
    let (status, flags) = (needed(VMA_STATUS)?, needed(VMA_FLAGS)?);
    let advice = number(VMA_MADV)?.unwrap_or(0);
    let wiped = advice >> libc::MADV_WIPEONFORK & 1 != 0;
    Ok(Area {
        start,
        end,
        ordinary: end <= ADDRESS_MAX
            && status & ANON_PRIVATE != 0
            && status & !ORDINARY == 0
            && flags & SPECIAL == 0
            && !wiped,
        guard: status & GUARD != 0,
    })
}

/// What a pagemap says, and where in the image of pages each entry's are.
fn runs<'a>(entries: &[&'a [u8]]) -> Result<Vec<(&'a [u8], Run)>, Unusable> {
    let (mut runs, mut stored, mut end) = (Vec::new(), 0, 0);
    for message in entries {
        let number = |field| wire::number_of(message, field);
        let address = number(PAGES_ADDRESS)?.ok_or(Unusable::Damaged)?;
        let count = number(PAGES_LONG_COUNT)?.filter(|count| *count != 0);
        let pages = count.or(number(PAGES_COUNT)?).ok_or(Unusable::Damaged)?;
        let flags = number(PAGES_FLAGS)?;
        if number(PAGES_IN_PARENT)? == Some(1) || flags.unwrap_or(0) & PARENT != 0 {
            return Err(Unusable::Incremental);
        }
        let length = pages
            .checked_mul(PAGE)
            .filter(|length| *length <= ADDRESS_MAX);
        let length = length.ok_or(Unusable::Damaged)?;
        if address < end || address > ADDRESS_MAX || !address.is_multiple_of(PAGE) || pages == 0 {
            return Err(Unusable::Disordered);
        }
        end = address + length;
        let present = flags.is_none_or(|flags| flags & PRESENT != 0);
        let run = Run {
            address,
            pages,
            stored: present.then_some(stored),
        };
        if present {
            stored += length;
        }
        runs.push((*message, run));
    }
    Ok(runs)
}

#[cfg(test)]
mod tests;
