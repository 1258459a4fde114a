//! Fetching before anyone asks: what a landmark marks, and the rest of a layer.

use std::sync::Arc;

use super::pool::Class;
use super::{Filler, MAX_RUN};
use crate::index::{LayerIndex, Prefetch};

/// Packed bytes of one request: large enough to use the line, small enough that a reader who
/// comes in between waits for little.
const PIECE: u64 = 1 << 20;

impl Filler {
    /// Queues what the layer's landmark marks, in its order, up to `limit` packed bytes.
    pub fn prefetch(self: &Arc<Self>, limit: u64) {
        let Prefetch::Units(wanted) = self.index().prefetch() else {
            return;
        };
        self.queue(Class::Prefetch, wanted, limit);
    }

    /// Queues everything that is absent, to be fetched when nothing else is going on.
    pub fn fill_in_background(self: &Arc<Self>) {
        self.queue(Class::Background, self.index().units(), u64::MAX);
    }

    fn queue(self: &Arc<Self>, class: Class, wanted: u32, limit: u64) {
        for piece in pieces(self.index(), wanted, limit) {
            let filler = Arc::clone(self);
            self.pool.run(class, move || {
                let (mine, _) = filler.claim(piece);
                filler.fetch(mine);
            });
        }
    }
}

/// The first `wanted` units, up to `limit` packed bytes, in pieces of one request each.
fn pieces(index: &LayerIndex, wanted: u32, limit: u64) -> Vec<std::ops::Range<u32>> {
    const { assert!(PIECE <= MAX_RUN) };
    let mut pieces: Vec<std::ops::Range<u32>> = Vec::new();
    let (mut total, mut in_piece) = (0, 0);
    for unit in 0..wanted {
        let len = u64::from(index.unit(unit).len);
        total += len;
        if total > limit {
            break;
        }
        match pieces.last_mut() {
            Some(piece) if in_piece + len <= PIECE => piece.end = unit + 1,
            _ => {
                in_piece = 0;
                pieces.push(unit..unit + 1);
            }
        }
        in_piece += len;
    }
    pieces
}
