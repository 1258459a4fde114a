//! The kernel back end: the kernel walks a chain's tree and reads its files by itself; whoever
//! reads a hole waits until it is filled.
//!
//! A mount is an EROFS image of the merged tree ([`crate::erofs`]) whose devices are the store's
//! segments. `gate` watches every segment that is not complete, before it is mounted, and fills
//! what is read; `keeper` ([`crate::keeper`]) lets the watch outlive this process; [`probe`] tells
//! whether all of it works here.
//!
//! Mounts stay when the daemon ends, and containers go on. A successor adopts them.

mod gate;
mod image;
mod probe;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) use self::gate::{Doorman, Gate};
pub use self::probe::probe;
use super::layers::Layers;
use super::{LayerId, session};
use crate::erofs;
use crate::error::{Error, Result};
use crate::fill::Filler;
use crate::index::Tree;

/// How the watch is kept; see [`crate::keeper`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keeping {
    /// Socket on which the keeper waits for a daemon.
    pub socket: PathBuf,
    /// How long reads wait for a daemon before they get EIO.
    pub deadline: std::time::Duration,
}

/// Mounts chains by EROFS.
pub(super) struct Kernel {
    gate: Arc<Gate>,
    layers: Arc<Layers>,
    images: image::Images,
}

/// A chain that the kernel serves. Dropping it leaves the mount alone.
pub(super) struct Mounted {
    path: PathBuf,
    /// Kept open; none of a mount that an earlier daemon made.
    _fillers: Vec<Arc<Filler>>,
}

impl Mounted {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the mount away; those who have it open keep what they have.
    pub(super) fn unmount(&self) -> Result<()> {
        session::clear(&self.path).map_err(Error::io("unmount", &self.path))
    }
}

impl Kernel {
    pub(super) fn new(gate: Arc<Gate>, layers: Arc<Layers>) -> Self {
        Self {
            gate,
            layers,
            images: image::Images::default(),
        }
    }

    /// Mounts `tree`, merged from the chain's layers, at `path`, which is made.
    pub(super) fn mount(
        &self,
        chain: &[LayerId],
        tree: &Tree,
        fillers: Vec<Arc<Filler>>,
        path: PathBuf,
    ) -> Result<Mounted> {
        self.images.with(&self.layers, chain, tree, |image| {
            // Watched before they are mounted: what is open already is never asked about.
            let devices = erofs::devices(tree.layers()).into_iter().map(|device| {
                let number = usize::from(device.layer);
                self.gate
                    .guard(chain[number], &fillers[number], device.segment)
            });
            image::mount(image, &devices.collect::<Result<Vec<_>>>()?, &path)
        })?;
        Ok(Mounted {
            path,
            _fillers: fillers,
        })
    }

    /// Takes over the mount that an earlier daemon has left at `path`, if it is alive and has been
    /// watched all the time. One that was not may hold zeros in its page cache: those who use it are
    /// guarded again, and nobody else gets it.
    pub(super) fn adopt(&self, chain: &[LayerId], path: PathBuf) -> Result<Option<Mounted>> {
        if !image::is_mounted(&path) {
            return Ok(None);
        }
        if self.gate.is_new() && self.guard_again(chain)? {
            Gate::report_gap(&path);
            return Ok(None);
        }
        self.gate.remember(chain);
        Ok(Some(Mounted {
            path,
            _fillers: Vec::new(),
        }))
    }

    /// Guards the segments of a chain; whether any of them has holes.
    fn guard_again(&self, chain: &[LayerId]) -> Result<bool> {
        let mut has_holes = false;
        for layer in chain {
            let filler = self.layers.get(*layer)?;
            for segment in 0..filler.blob().index().segments() {
                self.gate.guard(*layer, &filler, segment)?;
                has_holes |= !filler.blob().is_segment_complete(segment);
            }
        }
        Ok(has_holes)
    }

    /// Lets the kernel read complete segments without asking, and makes images durable.
    pub(super) fn tidy(&self) {
        self.gate.release_complete(&self.layers);
        self.images.sync();
    }
}
