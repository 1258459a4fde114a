//! Ordinary layers, streamed from the registry into the store.
//!
//! containerd asks for the layers of an image one after the other, but the first of them that is
//! ordinary tells which others will be: they are streamed at the same time, and found in the store
//! when they are asked for.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::layers::{Layers, lock};
use super::{LayerId, LayerSource};
use crate::discover::Image;
use crate::error::{Error, Result};
use crate::fetch::manifest::Descriptor;
use crate::fetch::{BlobSource, by_other_hosts};
use crate::fill::{Filler, vouched};
use crate::formats::nydus;
use crate::ingest::{self, Ingested, download};
use crate::store::Origin;
use crate::sys;

/// Layers that are streamed at the same time, of all images.
const MAX_STREAMS: usize = 4;
/// How long a layer that was streamed ahead waits to be asked for before it counts as unused.
const PATIENCE: Duration = Duration::from_mins(10);

/// What is streamed, and what was streamed before it was asked for.
#[derive(Default)]
pub(super) struct Streams {
    running: Mutex<usize>,
    free: Condvar,
    ahead: Mutex<HashMap<LayerId, Ahead>>,
}

/// The state of a layer that nobody has asked for yet.
pub(super) enum Ahead {
    Running,
    Done(Instant),
    /// It cannot be read; that was logged.
    Refused(Instant),
}

impl Ahead {
    fn is_over(&self) -> bool {
        match self {
            Self::Running => false,
            Self::Done(since) | Self::Refused(since) => since.elapsed() > PATIENCE,
        }
    }
}

/// The right to stream a layer.
struct Slot<'a>(&'a Streams);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *lock(&self.0.running) -= 1;
        self.0.free.notify_one();
    }
}

impl Streams {
    /// Waits until a layer may be streamed.
    fn slot(&self) -> Slot<'_> {
        let busy = |running: &mut usize| *running >= MAX_STREAMS;
        let running = self.free.wait_while(lock(&self.running), busy);
        *running.unwrap_or_else(PoisonError::into_inner) += 1;
        Slot(self)
    }

    /// Says that a layer has been asked for; whether it is known to be of no use.
    pub(super) fn claim(&self, id: LayerId) -> bool {
        matches!(lock(&self.ahead).remove(&id), Some(Ahead::Refused(_)))
    }

    /// Whether somebody is about to ask for a layer.
    pub(super) fn is_expected(&self, id: LayerId) -> bool {
        let mut ahead = lock(&self.ahead);
        ahead.retain(|_, layer| !layer.is_over());
        ahead.contains_key(&id)
    }

    /// Says that a layer of the store will be asked for.
    pub(super) fn expect(&self, id: LayerId) {
        lock(&self.ahead).insert(id, Ahead::Done(Instant::now()));
    }

    /// Whether the layer was not known yet; it is then.
    pub(super) fn begin(&self, id: LayerId) -> bool {
        let mut ahead = lock(&self.ahead);
        let new = !ahead.contains_key(&id);
        if new {
            ahead.insert(id, Ahead::Running);
        }
        new
    }

    /// Notes how it went, unless the layer has been asked for meanwhile.
    pub(super) fn end(&self, id: LayerId, outcome: Ahead) {
        if let Some(layer) = lock(&self.ahead).get_mut(&id) {
            *layer = outcome;
        }
    }

    pub(super) fn forget(&self, id: LayerId) {
        lock(&self.ahead).remove(&id);
    }
}

impl LayerSource {
    /// Whether the manifest calls the blob an archive that everyone may have.
    pub(super) fn is_tar(&self) -> bool {
        is_tar(&self.media_type)
    }
}

fn is_tar(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
    )
}

impl Layers {
    /// Streams a layer. `None`: it is not one that can be kept in the store, logged.
    pub(super) fn stream(
        &self,
        source: &LayerSource,
        blob: Arc<dyn BlobSource>,
    ) -> Result<Option<Arc<Filler>>> {
        let _slot = self.streams.slot();
        let begun = Instant::now();
        let ingested = by_other_hosts(&*blob, (0, blob.size()), || {
            let mut stage = self.store.stage(&source.layer)?;
            let feed = |sink: ingest::Sink<'_>| download::download(&*blob, sink);
            let (layer, size) = (source.layer, blob.size());
            if self.describes {
                let ingested = ingest::ingest_described(layer, size, feed, &mut stage);
                return ingested.map(|(ingested, portable)| (ingested, Some(portable), stage));
            }
            let ingested = ingest::ingest(layer, size, feed, &mut stage)?;
            Ok((ingested, None, stage))
        });
        let (Ingested { index, diff_id }, portable, stage) = match ingested {
            Ok(ingested) => ingested,
            Err(error @ (Error::Malformed { .. } | Error::DigestMismatch { .. })) => {
                tracing::warn!(image = %source.image, %error, "containerd is to pull this layer");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let origin = Origin {
            image: source.image.to_string(),
            size: blob.size(),
            diff_id: Some(diff_id),
        };
        let make = || stage.publish(&index, &origin);
        let filler = self.keep_new(source.layer.into(), make, vec![blob])?;
        if let Some(portable) = portable {
            self.keep_described(&source.layer, &portable);
        }
        sys::give_back();
        tracing::info!(
            layer = %source.layer, image = %source.image, packed = index.blob_size(),
            unpacked = index.data_size(), elapsed = ?begun.elapsed(), "streamed an ordinary layer"
        );
        Ok(Some(filler))
    }

    /// Begins to stream the ordinary layers above `source`, which is one.
    pub(super) fn stream_above(self: &Arc<Self>, source: &LayerSource, image: &Image) {
        let layers = image.manifest().layers.iter();
        let above = layers.skip_while(|layer| layer.digest != source.layer);
        for layer in above.skip(1).filter(|layer| is_ordinary(layer)) {
            let id = LayerId::from(layer.digest);
            let known =
                self.store.contains(&layer.digest) || self.store.has_kept_index(&layer.digest);
            if known || !self.streams.begin(id) {
                continue;
            }
            let mut next = LayerSource::new(source.image.clone(), layer.digest);
            next.complete(layer);
            let layers = Arc::clone(self);
            let thread = std::thread::Builder::new().name("xebec-ahead".to_owned());
            if let Err(error) = thread.spawn(move || layers.stream_ahead(id, &next)) {
                tracing::warn!(%error, "no thread for a layer; it is streamed when it is asked for");
                self.streams.forget(id);
            }
        }
    }

    fn stream_ahead(&self, id: LayerId, source: &LayerSource) {
        self.in_turn(id, |_| {
            let added = if self.store.contains(&source.layer) {
                Ok(true)
            } else {
                let streamed = self.blob_of(source).and_then(|blob| self.stream(source, blob));
                streamed.map(|filler| filler.is_some())
            };
            match added {
                Ok(true) => self.streams.end(id, Ahead::Done(Instant::now())),
                Ok(false) => self.streams.end(id, Ahead::Refused(Instant::now())),
                Err(error) => {
                    tracing::debug!(layer = %id, %error, "not streamed ahead; tried again when needed");
                    self.streams.forget(id);
                }
            }
        });
    }
}

/// Whether a layer is in no lazy format, as far as the manifest tells.
pub fn is_ordinary(layer: &Descriptor) -> bool {
    let plain = nydus::part(&layer.annotations).is_none();
    plain && is_tar(&layer.media_type) && matches!(vouched(&layer.annotations), Ok(None))
}
