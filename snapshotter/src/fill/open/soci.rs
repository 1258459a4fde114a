//! An ordinary gzip layer with a ztoc of SOCI's beside it.

use std::sync::Arc;

use super::{LayerQuery, Opened};
use crate::digest::Digest;
use crate::discover::Image;
use crate::error::{Error, Result};
use crate::fetch::manifest::{Descriptor, Manifest};
use crate::formats::soci;

/// Opens a layer whose image's manifest names an index with its ztoc; an index that merely refers to
/// the image is taken if nobody need vouch for it.
pub(super) fn open(query: &LayerQuery<'_>) -> Result<Option<Opened>> {
    let Some(image) = query.image else {
        return Ok(None);
    };
    let ztoc = match named(image)? {
        Some(digest) => ztoc(&image.artifact(digest)?, query.layer),
        None if query.allow_unverified => referred(image, query.layer)?,
        None => None,
    };
    // Small layers have none.
    let Some(descriptor) = ztoc else {
        return Ok(None);
    };
    let what = format!("ztoc {} of layer {}", descriptor.digest, query.layer);
    if descriptor.size > soci::MAX_ZTOC {
        return Err(Error::Malformed {
            what,
            reason: format!("{} bytes", descriptor.size),
        });
    }
    let bytes = image.blob(&descriptor)?.read_range(0, descriptor.size)?;
    descriptor.digest.verify(&bytes, &what)?;
    let index = soci::index(&bytes, query.layer, query.blob.size());
    index
        .map(|index| Some(Opened::Lazy(Box::new(index))))
        .map_err(|flaw| flaw.of(query.layer))
}

/// The index that the manifest names.
pub(super) fn named(image: &Image) -> Result<Option<Digest>> {
    let annotations = image.manifest().other.get("annotations");
    let named = annotations.and_then(|all| all.get(soci::INDEX_ANNOTATION)?.as_str());
    named.map(str::parse).transpose()
}

/// The ztoc in an index that refers to the image.
fn referred(image: &Arc<Image>, layer: Digest) -> Result<Option<Descriptor>> {
    let indexes = image.referrers(soci::INDEX_V1).unwrap_or_else(|error| {
        tracing::debug!(%layer, %error, "no list of referrers");
        Vec::new()
    });
    for index in indexes {
        if let Some(found) = ztoc(&image.artifact(index.digest)?, layer) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn ztoc(index: &Manifest, layer: Digest) -> Option<Descriptor> {
    let layer = layer.to_string();
    let is_of = |ztoc: &&Descriptor| ztoc.annotations.get(soci::LAYER_ANNOTATION) == Some(&layer);
    index.layers.iter().find(is_of).cloned()
}
