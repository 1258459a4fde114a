//! Indexes of layers that were streamed here, put beside their image for other nodes.

use std::fs;
use std::sync::Arc;

use super::LayerSource;
use super::layers::Layers;
use super::stream::is_ordinary;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::manifest::Descriptor;
use crate::ingest::beside::{self, Described};
use crate::ingest::portable;

/// Beside the layer's other files; removed with them.
const NAME: &str = "portable";

impl Layers {
    /// Keeps what other nodes need to read a layer that was streamed. Without it they stream it too.
    pub(super) fn keep_described(&self, layer: &Digest, bytes: &[u8]) {
        let path = self.store.beside(layer, NAME);
        let fresh = path.with_extension("new");
        let kept = fs::write(&fresh, bytes)
            .map_err(Error::io("write", &fresh))
            .and_then(|()| fs::rename(&fresh, &path).map_err(Error::io("rename", &fresh)));
        if let Err(error) = kept {
            tracing::warn!(%layer, %error, "its index cannot be given to others");
        }
    }

    /// Puts the indexes of an image's layers beside it when the last of its ordinary ones was streamed;
    /// nobody waits for it. Layers that were here before may have none to give.
    pub(super) fn publish_indexes(self: &Arc<Self>, source: &LayerSource) {
        if !self.describes || !self.store.beside(&source.layer, NAME).exists() {
            return;
        }
        let (layers, source) = (Arc::clone(self), source.clone());
        let thread = std::thread::Builder::new().name("xebec-publish".to_owned());
        let spawned = thread.spawn(move || match layers.push_indexes(&source) {
            Ok(Some(digest)) => {
                tracing::info!(image = %source.image, %digest, "pushed indexes of layers");
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(image = %source.image, %error, "indexes of layers are not pushed");
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to push indexes");
        }
    }

    fn push_indexes(&self, source: &LayerSource) -> Result<Option<Digest>> {
        let image = self.image(&source.image, source.manifest)?;
        let ordinary = image.manifest().layers.iter();
        let ordinary: Vec<_> = ordinary.filter(|layer| is_ordinary(layer)).collect();
        // The last layer that is asked for sees to all.
        if ordinary.last().map(|layer| layer.digest) != Some(source.layer) {
            return Ok(None);
        }
        let has_index = |layer: &&Descriptor| self.store.beside(&layer.digest, NAME).exists();
        let described = ordinary.into_iter().filter(has_index);
        let described = described.map(|layer| self.described(layer));
        let described: Vec<Described> = described.collect::<Result<_>>()?;
        beside::push(self.registry(), &image, &described)
    }

    /// What was kept of a layer, if it is whole.
    fn described(&self, layer: &Descriptor) -> Result<Described> {
        let path = self.store.beside(&layer.digest, NAME);
        let index = fs::read(&path).map_err(Error::io("read", &path))?;
        portable::unpack(&index, layer.digest, layer.size).map_err(|flaw| flaw.of(layer.digest))?;
        Ok(Described {
            layer: layer.digest,
            index,
        })
    }
}
