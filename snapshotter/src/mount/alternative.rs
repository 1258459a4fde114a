//! Ordinary images that are read from their Nydus form.
//!
//! The bootstrap of that form is the tree of the whole image, so it can only stand for the topmost
//! layer. The others are not needed then, and nothing of them is fetched; but another image may
//! have the same layers below its own. So they keep their names, and are pulled when a tree needs
//! them.

use std::sync::Arc;

use super::layers::Layers;
use super::stream::is_ordinary;
use super::{Alternative, LayerId, LayerSource, LazyConfig};
use crate::discover::{Image, Routes};
use crate::error::{Error, Result};
use crate::fill::{Filler, names_index};

impl LazyConfig {
    fn routes(&self) -> Routes {
        let unverified = self.allow_unverified_toc && self.nydus_alternative;
        let suffix = Some(&self.nydus_tag_suffix).filter(|suffix| !suffix.is_empty());
        Routes {
            index: self.nydus_alternative,
            referrers: unverified,
            tag_suffix: suffix.filter(|_| unverified).cloned(),
        }
    }
}

impl Layers {
    /// What the Nydus form of its image makes of a layer, with the open layer of the bootstrap.
    ///
    /// `None`: there is no such form, or it cannot be read (logged), or the layer is here already
    /// or in a lazy format itself.
    pub(super) fn alternative(
        self: &Arc<Self>,
        source: &LayerSource,
        config: &LazyConfig,
    ) -> Result<Option<(Alternative, Arc<Filler>)>> {
        let is_nydus = source.nydus_part().is_some();
        if !config.nydus_alternative || is_nydus || self.store.contains(&source.layer) {
            return Ok(None);
        }
        let (_, Some(image)) = self.describe(source)? else {
            return Ok(None);
        };
        let layers = &image.manifest().layers;
        let is_here = layers.get(source.below).map(|layer| layer.digest) == Some(source.layer);
        if !is_here || names_index(&image) || !layers.iter().all(is_ordinary) {
            return Ok(None);
        }
        let Some(nydus) = image.nydus(&config.routes()) else {
            return Ok(None);
        };
        let filler = match self.add_bootstrap(source, &nydus, config) {
            Ok(filler) => filler,
            Err(error) => {
                let image = &source.image;
                tracing::warn!(%image, layer = %source.layer, %error, "not by its Nydus form");
                return Ok(None);
            }
        };
        let id = LayerId::from(filler.blob().index().layer());
        if source.below + 1 < layers.len() {
            self.streams.expect(id);
            return Ok(Some((Alternative::Below, filler)));
        }
        self.streams.claim(id);
        Ok(Some((Alternative::Whole(id), filler)))
    }

    /// Opens the layer of the bootstrap; blobs are found where the image is.
    fn add_bootstrap(
        self: &Arc<Self>,
        source: &LayerSource,
        nydus: &Arc<Image>,
        config: &LazyConfig,
    ) -> Result<Arc<Filler>> {
        let last = nydus.manifest().layers.last();
        let last = last.ok_or_else(|| Error::NotFound("layer of a Nydus image".to_owned()))?;
        let mut bootstrap = LayerSource::new(source.image.clone(), last.digest);
        bootstrap.complete(last);
        self.in_turn(last.digest.into(), |id| {
            let filler = if self.store.contains(&last.digest) {
                Some(self.get(id)?)
            } else {
                self.add_described(id, &bootstrap, Some(nydus), config)?
            };
            let is_read = |filler: &Arc<Filler>| filler.blob().index().toc() != last.digest;
            filler.filter(is_read).ok_or_else(|| {
                Error::FailedPrecondition(format!("the bootstrap's layer {id} cannot be read"))
            })
        })
    }
}
