//! An ordinary layer with an index beside it.

use std::collections::BTreeMap;

use super::{LayerQuery, Opened};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::manifest::Descriptor;
use crate::ingest::portable;

/// States the digest of the index.
pub(super) const VOUCHED: &str = portable::ANNOTATION;

/// Opens a layer whose annotations name its index; one whose image is merely referred to by an
/// artifact with an index is taken if nobody need vouch for it.
pub(super) fn open(query: &LayerQuery<'_>) -> Result<Option<Opened>> {
    let Some(image) = query.image else {
        return Ok(None);
    };
    let descriptor = match query.digest(VOUCHED)? {
        Some(digest) => index_blob(digest),
        None if query.allow_unverified || query.trust_referrers => match referred(query)? {
            Some(descriptor) => descriptor,
            None => return Ok(None),
        },
        None => return Ok(None),
    };
    let what = format!("index {} of layer {}", descriptor.digest, query.layer);
    let blob = image.blob(&descriptor)?;
    if blob.size() > portable::MAX_LEN {
        return Err(Error::Malformed {
            what,
            reason: format!("{} bytes", blob.size()),
        });
    }
    let bytes = blob.read_range(0, blob.size())?;
    descriptor.digest.verify(&bytes, &what)?;
    let index = portable::unpack(&bytes, query.layer, query.blob.size());
    index
        .map(|index| Some(Opened::Lazy(Box::new(index))))
        .map_err(|flaw| flaw.of(query.layer))
}

/// The index in an artifact that refers to the image; a registry that cannot list those has none.
fn referred(query: &LayerQuery<'_>) -> Result<Option<Descriptor>> {
    let Some(image) = query.image else {
        return Ok(None);
    };
    let layer = query.layer.to_string();
    let artifacts = image
        .referrers(portable::ARTIFACT_TYPE)
        .unwrap_or_else(|error| {
            tracing::debug!(layer = %query.layer, %error, "no list of referrers");
            Vec::new()
        });
    for artifact in artifacts {
        let manifest = image.artifact(artifact.digest)?;
        let mut layers = manifest.layers.into_iter();
        let is_of =
            |blob: &Descriptor| blob.annotations.get(portable::LAYER_ANNOTATION) == Some(&layer);
        if let Some(found) = layers.find(is_of) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What is known of a blob by its digest alone; the registry knows its length.
fn index_blob(digest: Digest) -> Descriptor {
    Descriptor {
        media_type: portable::MEDIA_TYPE.to_owned(),
        digest,
        size: 0,
        annotations: BTreeMap::new(),
        platform: None,
        other: BTreeMap::new(),
    }
}
