//! Lazy layers, opened before they are asked for.
//!
//! containerd asks for the layers of an image one after the other, and waits for each. What describes
//! a lazy layer is one or two requests away: for all of them together no longer than for one, when
//! the first one that is asked for opens those above it at the same time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::layers::{Layers, lock};
use super::stream::Ahead;
use super::{LayerId, LayerSource, LazyConfig};
use crate::discover::Image;
use crate::fetch::manifest::Descriptor;
use crate::fill::vouched;
use crate::formats::nydus;

/// Layers of one image that are opened at the same time.
const MAX_OPENING: usize = 8;

impl Layers {
    /// Begins to open the lazy layers of `image` above `source`.
    pub(super) fn open_above(
        self: &Arc<Self>,
        source: &LayerSource,
        image: &Image,
        config: &LazyConfig,
    ) {
        let layers = image.manifest().layers.iter();
        let above = layers.skip_while(|layer| layer.digest != source.layer);
        let wanted: VecDeque<_> = above
            .skip(1)
            .filter(|layer| is_lazy(layer) && self.is_new(layer))
            .map(|layer| source.sibling(layer))
            .collect();
        let threads = wanted.len().min(MAX_OPENING);
        let queue = Arc::new(Mutex::new(wanted));
        for _ in 0..threads {
            let (layers, queue, config) = (Arc::clone(self), Arc::clone(&queue), config.clone());
            let work = move || {
                while let Some(next) = { lock(&queue).pop_front() } {
                    layers.open_ahead(&next, &config);
                }
            };
            let thread = std::thread::Builder::new().name("xebec-ahead".to_owned());
            if let Err(error) = thread.spawn(work) {
                tracing::warn!(%error, "no thread for layers; they are opened when asked for");
                break;
            }
        }
        // Without any thread nobody else will.
        if Arc::strong_count(&queue) == 1 {
            for left in lock(&queue).drain(..) {
                self.streams.forget(left.layer.into());
            }
        }
    }

    /// Whether a layer is neither here nor on its way; from now on it is.
    fn is_new(&self, layer: &Descriptor) -> bool {
        !self.store.contains(&layer.digest) && self.streams.begin(layer.digest.into())
    }

    fn open_ahead(self: &Arc<Self>, source: &LayerSource, config: &LazyConfig) {
        self.in_turn(source.layer.into(), |id: LayerId| {
            if !self.streams.is_expected(id) {
                // It was asked for in the meantime.
                return;
            }
            if self.store.contains(&source.layer) {
                return self.streams.end(id, Ahead::Done(Instant::now()));
            }
            match self.add_new(id, source, config) {
                Ok(Some(filler)) => {
                    self.streams.end(id, Ahead::Done(Instant::now()));
                    if let Some(tell) = self.opened_ahead.get() {
                        tell(source, &filler);
                    }
                }
                Ok(None) => self.streams.end(id, Ahead::Refused(Instant::now())),
                Err(error) => {
                    tracing::debug!(layer = %id, %error, "not opened ahead; tried again when needed");
                    self.streams.forget(id);
                }
            }
        });
    }
}

impl LayerSource {
    /// Another layer of the same image, of which the manifest has told.
    fn sibling(&self, layer: &Descriptor) -> Self {
        let mut sibling = Self {
            manifest: self.manifest,
            chain: self.chain.clone(),
            timeline: self.timeline.clone(),
            ..Self::new(self.image.clone(), layer.digest)
        };
        sibling.complete(layer);
        sibling
    }
}

/// Whether a layer is in a lazy format that the manifest vouches for. What is part of a Nydus image
/// is none: its blobs are no layers of the store.
fn is_lazy(layer: &Descriptor) -> bool {
    let alone = nydus::part(&layer.annotations).is_none();
    alone && matches!(vouched(&layer.annotations), Ok(Some(_)))
}
