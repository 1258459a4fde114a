//! Fetching what a profile says will be read, in the order in which it will be.
//!
//! The pending units of all layers of an image stand in one order. A few workers take the most
//! urgent one, with those beside it in the blob that are pending too, in one request each: enough
//! to keep the line busy over the round trips. Where servers send several ranges at once, the next
//! ones come with it as long as they are few bytes: what lies scattered costs few requests. A reader who comes first fetches for himself; what
//! he finds under way he waits for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Filler;
use super::pool::{Class, Pool};
use super::request::MAX_RANGES;
use crate::index::LayerIndex;
use crate::profile::Profile;

/// Requests of one plan that are under way at a time.
const WORKERS: usize = 6;
/// Most packed bytes of one request: at 100 Mbit/s and 20 ms twice what is under way on the line,
/// and little enough that urgent ones come through.
const PIECE: u64 = 512 << 10;
/// Packed bytes between two pending units that are fetched along rather than skipped. Requests
/// overlap, so that one more costs less here than where a reader waits for each.
const GAP: u64 = 24 << 10;
/// Packed bytes up to which one request takes in others that lie elsewhere: what is on the line in one
/// round trip of 20 ms at 100 Mbit/s, so that no other one has to wait much longer for its turn.
const TOGETHER: u64 = 256 << 10;
/// Most pending units that are looked at for that.
const LOOK_AHEAD: usize = 64;

/// How often a profile may name each unit of a layer on the average: once for every way in which
/// the layer was indexed, and some more.
const MAX_STEPS: u64 = 16;

/// What is still to be fetched of one image.
pub struct Plan {
    profile: Profile,
    pool: Arc<Pool>,
    state: Mutex<State>,
}

/// When a unit will be needed: milliseconds, and its place among those of the same moment.
type Turn = (u32, u32);

#[derive(Default)]
struct State {
    /// When each pending unit will be needed, and which it is.
    order: BTreeMap<Turn, (usize, u32)>,
    layers: BTreeMap<usize, Layer>,
    workers: usize,
}

struct Layer {
    filler: Arc<Filler>,
    /// The keys in `order`, by unit.
    pending: BTreeMap<u32, Turn>,
}

impl Plan {
    /// A plan to fetch what `profile` holds.
    pub fn new(profile: Profile, pool: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            profile,
            pool,
            state: Mutex::default(),
        })
    }

    /// Begins to fetch for a layer that can be read now, at most `limit` packed bytes of it. A
    /// layer that is not in the profile, or was begun, is left alone.
    pub fn begin(self: &Arc<Self>, filler: &Arc<Filler>, limit: u64) {
        let digest = filler.layer();
        let mut numbers = self.profile.layers().iter().enumerate();
        let Some((number, _)) = numbers.find(|(_, layer)| **layer == digest) else {
            return;
        };
        let mut state = self.lock();
        if state.layers.contains_key(&number) {
            return;
        }
        filler.follow_profile();
        let (order, bytes) = wanted(filler.index(), &self.profile, number, limit);
        tracing::debug!(layer = %digest, units = order.len(), bytes, "fetching by profile");
        let pending = order.iter().map(|&(key, unit)| (unit, key)).collect();
        let filler = Arc::clone(filler);
        state
            .order
            .extend(order.into_iter().map(|(key, unit)| (key, (number, unit))));
        state.layers.insert(number, Layer { filler, pending });
        while state.workers < WORKERS.min(state.order.len()) {
            state.workers += 1;
            self.queue();
        }
    }

    /// Queues one step of a worker.
    fn queue(self: &Arc<Self>) {
        let plan = Arc::clone(self);
        self.pool.run(Class::Profile, move || plan.step());
    }

    fn step(self: Arc<Self>) {
        let Some((filler, units, is_several)) = self.lock().take() else {
            return;
        };
        let (mine, _) = filler.claim(units.into_iter());
        filler.fetch_by(mine, Class::Profile, |_| is_several);
        self.queue();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A layer's units that the profile wants, each with a key by which it comes in its turn, and
/// their packed bytes.
fn wanted(
    index: &LayerIndex,
    profile: &Profile,
    number: usize,
    limit: u64,
) -> (Vec<(Turn, u32)>, u64) {
    let mut seen = BTreeMap::new();
    let mut bytes = 0;
    // A forged profile may name the same bytes over and over.
    let mut steps = MAX_STEPS.saturating_mul(u64::from(index.units()) + 1);
    for (turn, read) in profile.reads().iter().enumerate() {
        if read.layer != number || read.len == 0 {
            continue;
        }
        for unit in index.units_among_blobs(read.offset, read.len) {
            let len = u64::from(index.unit(unit).len);
            steps = steps.saturating_sub(1);
            if steps == 0 {
                return (order(seen), bytes);
            }
            if seen.contains_key(&unit) {
                continue;
            }
            if bytes + len > limit {
                return (order(seen), bytes);
            }
            bytes += len;
            seen.insert(unit, (read.at, turn as u32));
        }
    }
    (order(seen), bytes)
}

/// One key for each unit: units of the same read follow each other in the blob's order.
fn order(seen: BTreeMap<u32, Turn>) -> Vec<(Turn, u32)> {
    let mut units: Vec<_> = seen.into_iter().map(|(unit, turn)| (turn, unit)).collect();
    units.sort_unstable();
    let numbered = (0..).zip(units);
    numbered
        .map(|(turn, ((at, _), unit))| ((at, turn), unit))
        .collect()
}

impl State {
    /// The most urgent unit, with the pending ones around it that fit in the same request, and the
    /// next ones elsewhere if they do; in the blob's order, and whether there are some elsewhere. A
    /// worker that finds nothing ends.
    fn take(&mut self) -> Option<(Arc<Filler>, Vec<u32>, bool)> {
        let Some((_, (number, unit))) = self.order.pop_first() else {
            self.workers -= 1;
            return None;
        };
        let filler = Arc::clone(&self.layers.get(&number)?.filler);
        let blob = filler.index().unit(unit).blob;
        let (mut units, mut bytes) = self.take_around(number, unit, PIECE)?;
        let mut groups = 1;
        while let Some(next) = self.next_of(number, blob, TOGETHER.saturating_sub(bytes)) {
            if groups == MAX_RANGES || (groups == 1 && !filler.takes_several(blob)) {
                break;
            }
            let (more, len) = self.take_around(number, next, TOGETHER - bytes)?;
            units.extend(more);
            bytes += len;
            groups += 1;
        }
        units.sort_unstable();
        Some((filler, units, groups > 1))
    }

    /// The most urgent unit of a layer's blob that has at most so many bytes, if it is among the
    /// next ones of all layers.
    fn next_of(&self, number: usize, blob: u16, most: u64) -> Option<u32> {
        let index = self.layers.get(&number)?.filler.index();
        let fits = |unit: &u32| {
            let unit = index.unit(*unit);
            unit.blob == blob && u64::from(unit.len) <= most
        };
        let next = self.order.values().take(LOOK_AHEAD);
        let mut next = next.filter(|(of, _)| *of == number).map(|(_, unit)| *unit);
        next.find(fits)
    }

    /// Takes a unit of a layer with the pending ones around it, at most so many bytes unless it has
    /// more itself; all from the first to the last, and how many bytes that are.
    fn take_around(&mut self, number: usize, unit: u32, most: u64) -> Option<(Vec<u32>, u64)> {
        let layer = self.layers.get_mut(&number)?;
        let (first, last) = layer.grow(unit, most);
        for unit in first..=last {
            if let Some(key) = layer.pending.remove(&unit) {
                self.order.remove(&key);
            }
        }
        let index = layer.filler.index();
        let bytes = index.unit(last).end() - index.unit(first).offset;
        Some(((first..=last).collect(), bytes))
    }
}

impl Layer {
    /// Takes in pending neighbours behind, then before, as long as they are near and few bytes.
    fn grow(&self, unit: u32, most: u64) -> (u32, u32) {
        let index = self.filler.index();
        let of = |unit| index.unit(unit);
        let (mut first, mut last) = (unit, unit);
        let fits = |first: u32, last: u32, gap: (u32, u32)| {
            let (before, behind) = (of(gap.0), of(gap.1));
            before.blob == behind.blob
                && behind.offset.saturating_sub(before.end()) <= GAP
                && of(last).end() - of(first).offset <= most
        };
        for &next in self.pending.range(unit + 1..).map(|(unit, _)| unit) {
            if !fits(first, next, (last, next)) {
                break;
            }
            last = next;
        }
        for &next in self.pending.range(..unit).rev().map(|(unit, _)| unit) {
            if !fits(next, last, (next, first)) {
                break;
            }
            first = next;
        }
        (first, last)
    }
}
