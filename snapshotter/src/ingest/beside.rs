//! The indexes of an image's ordinary layers, beside the image in its registry: an artifact that refers to
//! the manifest, which stays as it is.
//!
//! Nothing in the image vouches for such an index: a node believes it only if it is told to
//! (`index.trust_referrers`). A layer's bytes are verified by it all the same, so that what the
//! registry sends later is what whoever made the index has read.

use std::collections::{BTreeMap, BTreeSet};

use super::{download, portable};
use crate::digest::Digest;
use crate::discover::Image;
use crate::error::Result;
use crate::fetch::artifact::Artifact;
use crate::fetch::manifest::Descriptor;
use crate::mount::Blobs;

/// A layer's index and the layer.
#[derive(Debug)]
pub struct Described {
    /// Digest of the layer.
    pub layer: Digest,
    /// Its index, as it travels.
    pub index: Vec<u8>,
}

/// The descriptor by which an artifact holds the index `bytes` of `layer`.
pub fn descriptor(layer: &Digest, bytes: &[u8]) -> Descriptor {
    let layer = (portable::LAYER_ANNOTATION.to_owned(), layer.to_string());
    Descriptor {
        media_type: portable::MEDIA_TYPE.to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        annotations: BTreeMap::from([layer]),
        platform: None,
        other: BTreeMap::new(),
    }
}

/// Downloads a layer of the image, and describes it.
pub fn describe(image: &Image, layer: &Descriptor) -> Result<Described> {
    let blob = image.blob(layer)?;
    let feed = |sink: super::Sink<'_>| download::download(&*blob, sink);
    Ok(Described {
        layer: layer.digest,
        index: super::describe(layer.digest, layer.size, feed)?,
    })
}

/// What lies beside the image already, by layer.
pub fn known(image: &Image) -> Result<BTreeMap<String, Descriptor>> {
    let mut known = BTreeMap::new();
    for artifact in image.referrers(portable::ARTIFACT_TYPE)? {
        for blob in image.artifact(artifact.digest)?.layers {
            if let Some(layer) = blob.annotations.get(portable::LAYER_ANNOTATION) {
                known.insert(layer.clone(), blob);
            }
        }
    }
    Ok(known)
}

/// Puts indexes beside the image, together with those that are there of other layers; nothing if
/// all of these layers have one. The artifact's digest.
pub fn push(blobs: &dyn Blobs, image: &Image, described: &[Described]) -> Result<Option<Digest>> {
    let mut held = known(image)?;
    let new: Vec<&Described> = described
        .iter()
        .filter(|one| !held.contains_key(&one.layer.to_string()))
        .collect();
    if new.is_empty() {
        return Ok(None);
    }
    for one in &new {
        let blob = descriptor(&one.layer, &one.index);
        held.insert(one.layer.to_string(), blob);
    }
    let layers: BTreeSet<_> = image
        .manifest()
        .layers
        .iter()
        .map(|layer| layer.digest)
        .collect();
    let is_of_image = |layer: &str| layer.parse().is_ok_and(|layer| layers.contains(&layer));
    held.retain(|layer, _| is_of_image(layer));
    let held: Vec<_> = held.into_values().collect();
    let artifact = Artifact {
        artifact_type: portable::ARTIFACT_TYPE,
        subject: image.descriptor(),
        blobs: &held,
        annotations: BTreeMap::new(),
    };
    let contents: Vec<&[u8]> = new.iter().map(|one| one.index.as_slice()).collect();
    blobs
        .publish(image.reference(), &artifact, &contents)
        .map(Some)
}
