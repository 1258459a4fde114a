use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::template::wire::{put_bytes, put_number};

const ORDINARY_FLAGS: u64 = 0x22;

/// An area of a test, in pages.
#[derive(Clone, Debug)]
struct Given {
    start: u64,
    pages: u64,
    status: u64,
    flags: u64,
    madv: u64,
    /// Which of its pages are stored.
    stored: Vec<bool>,
}

impl Given {
    fn ordinary(start: u64, stored: &[bool]) -> Self {
        Self {
            start,
            pages: stored.len() as u64,
            status: REGULAR | ANON_PRIVATE,
            flags: ORDINARY_FLAGS,
            madv: 0,
            stored: stored.to_vec(),
        }
    }

    fn message(&self) -> Vec<u8> {
        let mut vma = Vec::new();
        for (field, value) in [
            (VMA_START, self.start * PAGE),
            (VMA_END, (self.start + self.pages) * PAGE),
            (VMA_PGOFF, 0),
            (VMA_SHMID, 0),
            (5, 3),
            (VMA_FLAGS, self.flags),
            (VMA_STATUS, self.status),
            (8, 1),
            (VMA_MADV, self.madv),
        ] {
            put_number(&mut vma, field, value);
        }
        vma
    }
}

/// `mm-1.img` and `pagemap-1.img`; runs of pages may go across areas, as CRIU's do.
fn images(areas: &[Given]) -> (Vec<u8>, Vec<u8>) {
    let mut mm = Vec::new();
    put_number(&mut mm, 12, 99);
    let mut stored = Vec::new();
    for area in areas {
        put_bytes(&mut mm, MM_VMAS, &area.message());
        let pages = area.stored.iter().zip(area.start..);
        stored.extend(pages.filter(|(stored, _)| **stored).map(|(_, page)| page));
    }
    put_number(&mut mm, 18, 1);
    let mut head = Vec::new();
    put_number(&mut head, PAGES_ID, 4);
    let mut messages = vec![head];
    for run in stored.chunk_by(|a, b| a + 1 == *b) {
        let mut entry = Vec::new();
        put_number(&mut entry, PAGES_ADDRESS, run[0] * PAGE);
        put_number(&mut entry, PAGES_COUNT, run.len() as u64);
        put_number(&mut entry, PAGES_FLAGS, PRESENT);
        messages.push(entry);
    }
    let pagemap = image::encode(Kind::Pagemap, &messages);
    (image::encode(Kind::Memory, &[mm]), pagemap)
}

/// Where each page of the process is found in the original image of pages: by its own pagemap, or
/// through mappings of the page file and the list of copies.
fn pages_of(memory: &Memory<'_>) -> BTreeMap<u64, u64> {
    let each = |run: Run| {
        let first = run.stored.map(|at| at / PAGE);
        let first = first.expect("all are stored");
        (0..run.pages).map(move |page| (run.address / PAGE + page, first + page))
    };
    memory
        .entries
        .iter()
        .flat_map(|(_, run)| each(*run))
        .collect()
}

fn pages_of_flat(flat: &Flat) -> BTreeMap<u64, u64> {
    let origin = |copies: &[Copy]| -> BTreeMap<u64, u64> {
        let each = |copy: &Copy| {
            let (from, to) = (copy.from / PAGE, copy.to / PAGE);
            (0..copy.length / PAGE).map(move |page| (to + page, from + page))
        };
        copies.iter().flat_map(each).collect()
    };
    let (file, kept) = (origin(&flat.moved), origin(&flat.kept));
    let memory = Memory::parse(&flat.mm, &flat.pagemap).expect("images");
    let mut pages: BTreeMap<u64, u64> = pages_of(&memory)
        .into_iter()
        .map(|(page, at)| (page, kept[&at]))
        .collect();
    let mm = image::messages(&flat.mm, Kind::Memory).expect("an image");
    for field in Fields::of(mm[0]).map(|field| field.expect("a field")) {
        let (MM_VMAS, Value::Bytes(vma)) = (field.number, field.value) else {
            continue;
        };
        let number = |field| wire::number_of(vma, field).unwrap().unwrap_or(0);
        if number(VMA_STATUS) & FILE_PRIVATE == 0 {
            continue;
        }
        assert_eq!(number(VMA_FLAGS) & ANONYMOUS, 0);
        let (start, first) = (number(VMA_START) / PAGE, number(VMA_PGOFF) / PAGE);
        for page in 0..number(VMA_END) / PAGE - start {
            if let Some(from) = file.get(&(first + page)) {
                assert_eq!(pages.insert(start + page, *from), None);
            }
        }
    }
    pages
}

#[test]
fn an_area_with_pages_becomes_a_mapping_and_one_without_stays() {
    let areas = [
        Given::ordinary(16, &[true, false, true]),
        Given::ordinary(32, &[false, false]),
    ];
    let (mm, pagemap) = images(&areas);
    let memory = Memory::parse(&mm, &pagemap).expect("images");
    assert_eq!((memory.pages_id, memory.movable()), (4, 1));
    let mut layout = Layout::for_areas(memory.movable());
    let flat = memory.flatten(77, &mut layout).expect("flat");
    let copy = |from, to| Copy {
        from: from * PAGE,
        to: to * PAGE,
        length: PAGE,
    };
    assert_eq!(flat.moved, [copy(0, 0), copy(1, 2)]);
    assert_eq!(flat.kept, []);
    assert_eq!(layout.size(), 3 * PAGE + GAP_MAX);
    let areas = image::messages(&flat.mm, Kind::Memory).expect("an image");
    let vmas: Vec<_> = Fields::of(areas[0])
        .map(|field| field.expect("a field"))
        .filter_map(|field| match field.value {
            Value::Bytes(vma) if field.number == MM_VMAS => wire::number_of(vma, VMA_SHMID).ok(),
            _ => None,
        })
        .collect();
    assert_eq!(vmas, [Some(77), Some(0)]);
}

#[test]
fn what_is_special_about_an_area_keeps_it_as_it_is() {
    let plain = Given::ordinary(16, &[true]);
    let with = |change: &dyn Fn(&mut Given)| {
        let mut area = plain.clone();
        change(&mut area);
        let (mm, pagemap) = images(&[area]);
        Memory::parse(&mm, &pagemap).expect("images").movable()
    };
    assert_eq!(with(&|_| ()), 1);
    assert_eq!(with(&|area| area.status |= HEAP), 1);
    for status in [1 << 1, 1 << 8, 1 << 10, 1 << 13, 1 << 14, 1 << 15] {
        assert_eq!(with(&|area| area.status |= status), 0, "{status:#x}");
    }
    for flag in [libc::MAP_GROWSDOWN, libc::MAP_LOCKED, libc::MAP_HUGETLB] {
        assert_eq!(with(&|area| area.flags |= flag as u64), 0, "{flag:#x}");
    }
    assert_eq!(with(&|area| area.madv = 1 << libc::MADV_WIPEONFORK), 0);
    let guard = Given {
        status: GUARD,
        stored: vec![false],
        ..plain.clone()
    };
    let (mm, pagemap) = images(&[plain.clone(), guard]);
    assert_eq!(Memory::parse(&mm, &pagemap).expect("images").movable(), 0);
}

#[test]
fn an_image_that_does_not_hold_together_is_refused() {
    let areas = |list: &[Given]| {
        let (mm, pagemap) = images(list);
        Memory::parse(&mm, &pagemap).map(|memory| memory.movable())
    };
    let twice = Given::ordinary(16, &[true, false]);
    let overlapping = [twice.clone(), Given::ordinary(17, &[false])];
    assert_eq!(areas(&overlapping), Err(Unusable::Disordered));
    let (mm, pagemap) = images(&[twice]);
    let cut = Memory::parse(&mm, &pagemap[..pagemap.len() - 1]).map(|_| ());
    assert_eq!(cut, Err(Unusable::Damaged));
    assert_eq!(
        Memory::parse(&pagemap, &mm).map(|_| ()),
        Err(Unusable::Damaged)
    );
    let entry = |numbers: &[(u64, u64)]| {
        let mut entry = Vec::new();
        for (field, value) in numbers {
            put_number(&mut entry, *field, *value);
        }
        let mut head = Vec::new();
        put_number(&mut head, PAGES_ID, 1);
        let pagemap = image::encode(Kind::Pagemap, &[head, entry]);
        Memory::parse(&mm, &pagemap).map(|_| ()).unwrap_err()
    };
    assert_eq!(entry(&[(1, PAGE), (2, 1), (3, 1)]), Unusable::Incremental);
    assert_eq!(entry(&[(1, PAGE), (2, 1), (4, 1)]), Unusable::Incremental);
    assert_eq!(entry(&[(1, 1), (2, 1)]), Unusable::Disordered);
    assert_eq!(entry(&[(1, PAGE), (5, u64::MAX)]), Unusable::Damaged);
}

fn any_areas() -> impl Strategy<Value = Vec<Given>> {
    let area = (
        0_u64..3,
        proptest::collection::vec(any::<bool>(), 1..12),
        prop_oneof![4 => Just(0), 1 => Just(1 << 1), 1 => Just(HEAP)],
    );
    proptest::collection::vec(area, 0..12).prop_map(|list| {
        let mut at = 16;
        let place = |(gap, stored, status): (u64, Vec<bool>, u64)| {
            let mut area = Given::ordinary(at + gap, &stored);
            area.status |= status;
            at = area.start + area.pages;
            area
        };
        list.into_iter().map(place).collect()
    })
}

proptest! {
    #[test]
    fn every_page_is_where_it_was(areas in any_areas()) {
        let (mm, pagemap) = images(&areas);
        let memory = Memory::parse(&mm, &pagemap).expect("images");
        let mut layout = Layout::for_areas(memory.movable());
        let flat = memory.flatten(5, &mut layout).expect("flat");
        prop_assert_eq!(pages_of_flat(&flat), pages_of(&memory));
        // What a mapping shows beyond its pages is nobody's.
        let mut moved = flat.moved.clone();
        moved.sort_by_key(|copy| copy.to);
        prop_assert!(moved.windows(2).all(|pair| pair[0].to + pair[0].length <= pair[1].to));
        prop_assert!(moved.last().is_none_or(|copy| copy.to + copy.length <= layout.size()));
    }

    #[test]
    fn any_bytes_are_refused_or_read(mm: Vec<u8>, pagemap: Vec<u8>) {
        let mm = image::encode(Kind::Memory, &[mm]);
        let pagemap = image::encode(Kind::Pagemap, &[vec![8, 1], pagemap]);
        if let Ok(memory) = Memory::parse(&mm, &pagemap) {
            let mut layout = Layout::for_areas(memory.movable());
            let _ = memory.flatten(5, &mut layout);
        }
    }
}
