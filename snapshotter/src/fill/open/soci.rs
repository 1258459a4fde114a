//! An ordinary gzip layer with a ztoc of SOCI's beside it.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::{LayerQuery, Opened};
use crate::digest::Digest;
use crate::discover::Image;
use crate::error::{Error, Result};
use crate::fetch::manifest::{Descriptor, Manifest};
use crate::formats::soci::{self, prefetch};

/// Opens a layer whose image's manifest names an index with its ztoc; an index that merely refers to
/// the image is taken if nobody need vouch for it.
pub(super) fn open(query: &LayerQuery<'_>) -> Result<Option<Opened>> {
    let Some(image) = query.image else {
        return Ok(None);
    };
    let found = match named(image)? {
        Some(digest) => found_in(&image.artifact(digest)?, query.layer),
        None if query.allow_unverified || query.trust_referrers => referred(image, query.layer)?,
        None => None,
    };
    // Small layers have none.
    let Some(Found {
        ztoc: descriptor,
        prefetch,
    }) = found
    else {
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
    let wanted = prefetch.map_or_else(Vec::new, |document| {
        wanted(image, &document).unwrap_or_else(|error| {
            // It only says what to fetch first.
            tracing::warn!(layer = %query.layer, %error, "nothing is fetched first");
            Vec::new()
        })
    });
    let index = soci::index_prefetched(&bytes, query.layer, query.blob.size(), &wanted);
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

/// What an index holds of a layer.
struct Found {
    ztoc: Descriptor,
    prefetch: Option<Descriptor>,
}

/// What an index that refers to the image holds of a layer.
fn referred(image: &Arc<Image>, layer: Digest) -> Result<Option<Found>> {
    let indexes = image.referrers(soci::INDEX_V1).unwrap_or_else(|error| {
        tracing::debug!(%layer, %error, "no list of referrers");
        Vec::new()
    });
    for index in indexes {
        if let Some(found) = found_in(&image.artifact(index.digest)?, layer) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn found_in(index: &Manifest, layer: Digest) -> Option<Found> {
    let layer = layer.to_string();
    let is_of = |blob: &&Descriptor| blob.annotations.get(soci::LAYER_ANNOTATION) == Some(&layer);
    let (prefetch, ztocs): (Vec<_>, Vec<_>) = index
        .layers
        .iter()
        .filter(is_of)
        .partition(|blob| blob.media_type == prefetch::MEDIA_TYPE);
    Some(Found {
        ztoc: (*ztocs.first()?).clone(),
        prefetch: prefetch.first().map(|blob| (*blob).clone()),
    })
}

/// The spans that a prefetch artifact lists.
fn wanted(image: &Image, document: &Descriptor) -> Result<Vec<RangeInclusive<u32>>> {
    let what = format!("prefetch artifact {}", document.digest);
    if document.size > prefetch::MAX_LEN {
        let reason = format!("{} bytes", document.size);
        return Err(Error::Malformed { what, reason });
    }
    let json = image.blob(document)?.read_range(0, document.size)?;
    document.digest.verify(&json, &what)?;
    prefetch::parse(&json).map_err(|flaw| Error::Malformed {
        what,
        reason: flaw.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_ztoc_is_told_from_the_prefetch_artifact_of_its_layer() {
        let layer = Digest::of(b"layer");
        let blob = |media_type: &str, name: &[u8]| Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(name),
            size: 9,
            annotations: [(soci::LAYER_ANNOTATION.to_owned(), layer.to_string())].into(),
            platform: None,
            other: BTreeMap::new(),
        };
        let index = Manifest {
            schema_version: 2,
            media_type: None,
            config: blob("c", b"config"),
            layers: vec![
                blob(prefetch::MEDIA_TYPE, b"wanted"),
                blob("application/octet-stream", b"ztoc"),
            ],
            other: BTreeMap::new(),
        };
        let found = found_in(&index, layer).unwrap();
        assert_eq!(found.ztoc.digest, Digest::of(b"ztoc"));
        assert_eq!(found.prefetch.unwrap().digest, Digest::of(b"wanted"));
        assert!(found_in(&index, Digest::of(b"another")).is_none());
    }
}
