//! From images to chunks, on all processors: what is new is packed, what the store has is named.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::chunk::{Packer, Word, digest, id};
use super::cuts::{Run, along, evenly, page_map};
use super::record::{Assembled, Content, Stored};
use crate::error::{Error, Result};
use crate::flat::Image;

/// Bytes of memory whose pages make one chunk. A quarter of it would save a fifth of ten successive
/// checkpoints of a Python server, and make more than twice as many files.
pub(crate) const WINDOW: u64 = 64 << 10;
/// No page map is larger: one of a terabyte in single pages.
const MAP_MAX: u64 = 4 << 30;

/// A part of a file.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    file: usize,
    offset: u64,
    length: u32,
}

/// What a checkpoint consists of.
#[derive(Default)]
pub(crate) struct Prepared {
    /// Every chunk once.
    pub(crate) chunks: Vec<Stored>,
    /// What is in them.
    pub(crate) contents: Vec<Content>,
    /// How files are made of them.
    pub(crate) files: Vec<Assembled>,
    /// Those that the store lacks.
    pub(crate) new: Vec<(Word, Vec<u8>)>,
}

/// Cuts files into pieces, in order.
pub(crate) fn pieces(images: &[Image]) -> Result<Vec<Piece>> {
    let maps = page_maps(images)?;
    let mut pieces = Vec::new();
    for (file, image) in images.iter().enumerate() {
        let lengths = match maps.get(&image.name) {
            Some(runs) => along(runs, image.size, WINDOW),
            None => evenly(image.size),
        };
        let mut offset = 0;
        for length in lengths {
            pieces.push(Piece {
                file,
                offset,
                length,
            });
            offset += u64::from(length);
        }
    }
    Ok(pieces)
}

/// Where the pages of a file were in memory.
fn page_maps(images: &[Image]) -> Result<HashMap<String, Vec<Run>>> {
    let mut maps = HashMap::new();
    for image in images {
        if !image.name.starts_with("pagemap-") || image.size > MAP_MAX {
            continue;
        }
        let mut content = vec![0; image.size as usize];
        let read = image.file.read_exact_at(&mut content, 0);
        read.map_err(Error::io("read", &image.name))?;
        if let Some((number, runs)) = page_map(&content, rustix::param::page_size() as u64) {
            maps.insert(format!("pages-{number}.img"), runs);
        }
    }
    Ok(maps)
}

/// Names and packs all pieces. `known` tells how large a chunk is that the store has.
pub(crate) fn prepare(
    images: &[Image],
    (key, sealed): (&Word, bool),
    known: impl Fn(Word) -> Option<u32> + Sync,
) -> Result<Prepared> {
    let pieces = pieces(images)?;
    let claimed = Mutex::new(HashSet::new());
    let named = in_parallel(&pieces, Packer::new, |packer, piece| {
        let image = &images[piece.file];
        let mut plain = vec![0; piece.length as usize];
        let read = image.file.read_exact_at(&mut plain, piece.offset);
        read.map_err(Error::io("read", &image.name))?;
        let digest = digest(key, &plain);
        let id = id(digest);
        let is_first = claimed.lock().map_or(true, |mut all| all.insert(id));
        let packed = match known(id) {
            None if is_first => Some(packer.pack(&plain, digest, sealed)?),
            _ => None,
        };
        Ok((digest, packed))
    })?;
    Ok(assemble(images, &pieces, named, sealed, known))
}

fn assemble(
    images: &[Image],
    pieces: &[Piece],
    mut named: Vec<(Word, Option<Vec<u8>>)>,
    sealed: bool,
    known: impl Fn(Word) -> Option<u32>,
) -> Prepared {
    let mut all = Prepared::default();
    let file = |image: &Image| Assembled {
        name: image.name.clone(),
        chunks: Vec::new(),
    };
    all.files = images.iter().map(file).collect();
    // Whoever claimed a chunk has packed it, and need not be the first one in order.
    let mut sizes = HashMap::new();
    for (digest, packed) in &mut named {
        if let Some(packed) = packed.take() {
            sizes.insert(id(*digest), packed.len() as u32);
            all.new.push((id(*digest), packed));
        }
    }
    let mut numbers = HashMap::new();
    for (piece, (digest, _)) in pieces.iter().zip(named) {
        let id = id(digest);
        let number = *numbers.entry(id).or_insert_with(|| {
            let bytes = sizes
                .get(&id)
                .copied()
                .or_else(|| known(id))
                .unwrap_or_default();
            all.chunks.push(Stored { id, bytes });
            let digest = sealed.then_some(digest);
            all.contents.push(Content {
                length: piece.length,
                digest,
            });
            all.chunks.len() as u32 - 1
        });
        all.files[piece.file].chunks.push(number);
    }
    all
}

/// Does something about each item, on all processors; each thread has a state of its own. The results
/// are in the order of the items; the first failure ends it.
pub(crate) fn in_parallel<T: Sync, S, R: Send>(
    items: &[T],
    state: impl Fn() -> Result<S> + Sync,
    work: impl Fn(&mut S, &T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    const THREADS_MAX: usize = 8;
    let threads = thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
    let next = AtomicUsize::new(0);
    let share = &|| -> Result<Vec<(usize, R)>> {
        let mut state = state()?;
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(number) else {
                return Ok(done);
            };
            // Others stop, too, when one has failed.
            let result = work(&mut state, item);
            if result.is_err() {
                next.store(items.len(), Ordering::Relaxed);
            }
            done.push((number, result?));
        }
    };
    let shares: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(share)).collect();
        running
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect()
    });
    let mut all = Vec::with_capacity(items.len());
    for share in shares {
        match share {
            Ok(share) => all.extend(share?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, result)| result).collect())
}
