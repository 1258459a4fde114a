//! Fetching before anyone asks: what a landmark marks, and the rest of a layer.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use super::flight::Claim;
use super::pool::Class;
use super::request::MAX_RUN;
use super::{Filler, Shared};
use crate::error::Error;
use crate::index::LayerIndex;

/// Packed bytes of one request: large enough to use the line, small enough that a reader who
/// comes in between waits for little.
const PIECE: u64 = 1 << 20;

impl Filler {
    /// Queues what the layer's landmark or table marks, in its order, up to `limit` packed bytes.
    pub fn prefetch(self: &Arc<Self>, limit: u64) {
        self.queue(Class::Prefetch, self.index().prefetch_units(), limit);
    }

    /// The first units that are absent, about one request's worth; none when everything is local.
    pub fn absent_piece(&self) -> Option<Vec<u32>> {
        let known = self.filled.load(Ordering::Relaxed);
        let absent = |unit: &u32| !self.is_unit_local(*unit);
        let first = (known..self.index().units()).find(absent);
        self.filled
            .store(first.unwrap_or(self.index().units()), Ordering::Relaxed);
        let absent = (first?..self.index().units()).filter(absent);
        let mut left = PIECE;
        let fits = |unit: &u32| {
            let len = u64::from(self.index().unit(*unit).len);
            let fits = left == PIECE || len <= left;
            left = left.saturating_sub(len);
            fits
        };
        Some(absent.take_while(fits).collect())
    }

    /// Bytes that these units unpack to, and the number of places that they are written to.
    pub fn unpacked(&self, units: &[u32]) -> (u64, u64) {
        let (mut bytes, mut places) = (0, 0);
        for unit in units {
            let unit = self.index().unit(*unit);
            for chunk in self.index().unit_chunks(&unit) {
                bytes += u64::from(self.index().chunk(chunk).len);
                places += 1;
            }
        }
        (bytes, places)
    }

    /// Fetches units when nothing else is going on; blocks until they are local. The packed bytes.
    pub fn fetch_in_background(self: &Arc<Self>, units: Vec<u32>) -> Shared<u64> {
        let (sender, outcome) = mpsc::channel();
        let before = self.counts().fetched_for(Class::Background);
        let filler = Arc::clone(self);
        self.pool.run(Class::Background, move || {
            let (mine, mut landings) = filler.claim(units.into_iter());
            landings.extend(mine.iter().map(Claim::landing));
            filler.fetch(mine, Class::Background);
            let outcome = landings.iter().try_for_each(|landing| landing.wait());
            // Whoever asked waits for it.
            let _ = sender.send(outcome);
        });
        let ending = || Err(Arc::new(Error::Internal("the daemon is ending".to_owned())));
        outcome.recv().unwrap_or_else(|_| ending())?;
        Ok(self.counts().fetched_for(Class::Background) - before)
    }

    /// Makes everything local, beside what readers want; blocks until it is. The first failure ends
    /// it. Units are claimed only when their turn comes: no reader waits for the queue.
    pub fn fill(self: &Arc<Self>) -> Shared<()> {
        let (sender, outcomes) = mpsc::channel();
        for piece in pieces(self.index(), 0..self.index().units(), u64::MAX) {
            let (filler, sender) = (Arc::clone(self), sender.clone());
            self.pool.run(Class::Prefetch, move || {
                let (mine, mut landings) = filler.claim(piece.into_iter());
                landings.extend(mine.iter().map(Claim::landing));
                filler.fetch(mine, Class::Prefetch);
                let outcome = landings.iter().try_for_each(|landing| landing.wait());
                // Nobody listens any more after the first failure.
                let _ = sender.send(outcome);
            });
        }
        drop(sender);
        outcomes.iter().collect::<Shared<()>>()?;
        // A pool that was closed has dropped some.
        if (0..self.index().units()).all(|unit| self.is_unit_local(unit)) {
            return Ok(());
        }
        let error = Error::Internal("the daemon is ending".to_owned());
        Err(Arc::new(error))
    }

    fn queue(self: &Arc<Self>, class: Class, wanted: impl Iterator<Item = u32>, limit: u64) {
        for piece in pieces(self.index(), wanted, limit) {
            let filler = Arc::clone(self);
            self.pool.run(class, move || {
                let (mine, _) = filler.claim(piece.into_iter());
                filler.fetch(mine, class);
            });
        }
    }
}

/// The units of `wanted`, up to `limit` packed bytes, in pieces of about one request each.
fn pieces(index: &LayerIndex, wanted: impl Iterator<Item = u32>, limit: u64) -> Vec<Vec<u32>> {
    const { assert!(PIECE <= MAX_RUN) };
    let mut pieces: Vec<Vec<u32>> = Vec::new();
    let (mut total, mut in_piece) = (0, 0);
    for unit in wanted {
        let len = u64::from(index.unit(unit).len);
        total += len;
        if total > limit {
            break;
        }
        match pieces.last_mut() {
            Some(piece) if in_piece + len <= PIECE => piece.push(unit),
            _ => {
                in_piece = 0;
                pieces.push(vec![unit]);
            }
        }
        in_piece += len;
    }
    pieces
}
