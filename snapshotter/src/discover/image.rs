//! One image: its manifest, the index around it, and what refers to it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock};

use super::alternative::{self, Routes};
use super::lock;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::manifest::{Descriptor, Document, Index, Manifest};
use crate::fetch::{BlobSource, FetchedManifest, ImageRef, Platform};
use crate::formats::nydus;
use crate::mount::{Blobs, LayerId};

/// An image as its registry describes it.
pub struct Image {
    blobs: Arc<dyn Blobs>,
    reference: ImageRef,
    descriptor: Descriptor,
    manifest: Manifest,
    /// What the reference itself leads to, once it was asked for; none when that is the manifest.
    index: OnceLock<Option<Arc<Index>>>,
    asking: Mutex<()>,
    /// What refers to it, by type, once it was asked for.
    referrers: Mutex<HashMap<String, Vec<Descriptor>>>,
    /// Its Nydus form, once that was looked for.
    nydus: OnceLock<Option<Arc<Image>>>,
}

impl Image {
    /// The image that `reference` names on this platform, or the one in `manifest` of the same
    /// repository.
    pub fn fetch(
        blobs: Arc<dyn Blobs>,
        reference: &ImageRef,
        manifest: Option<Digest>,
    ) -> Result<Self> {
        let index = OnceLock::new();
        let digest = match manifest {
            Some(digest) => digest,
            None => match first(&*blobs, reference)? {
                (descriptor, Document::Manifest(manifest)) => {
                    let index = OnceLock::from(None);
                    return Ok(Self::new(blobs, reference, descriptor, manifest, index));
                }
                (_, Document::Index(found)) => {
                    let digest = found
                        .select(&Platform::host(), &format!("image {reference}"))?
                        .digest;
                    // It was empty.
                    let _ = index.set(Some(Arc::new(found)));
                    digest
                }
            },
        };
        let (descriptor, manifest) = manifest_at(&*blobs, reference, digest)?;
        Ok(Self::new(blobs, reference, descriptor, manifest, index))
    }

    fn new(
        blobs: Arc<dyn Blobs>,
        reference: &ImageRef,
        descriptor: Descriptor,
        manifest: Manifest,
        index: OnceLock<Option<Arc<Index>>>,
    ) -> Self {
        Self {
            blobs,
            reference: reference.clone(),
            descriptor,
            manifest,
            index,
            asking: Mutex::new(()),
            referrers: Mutex::default(),
            nydus: OnceLock::new(),
        }
    }

    /// The image in another manifest of the same repository.
    pub(super) fn other(&self, descriptor: Descriptor, manifest: Manifest) -> Self {
        let (blobs, index) = (Arc::clone(&self.blobs), OnceLock::from(None));
        Self::new(blobs, &self.reference, descriptor, manifest, index)
    }

    /// The image whose manifest has this digest, in the same repository.
    pub(super) fn fetch_other(&self, digest: Digest) -> Result<Self> {
        let (descriptor, manifest) = manifest_at(&*self.blobs, &self.reference, digest)?;
        Ok(self.other(descriptor, manifest))
    }

    pub(super) fn blobs(&self) -> &dyn Blobs {
        &*self.blobs
    }

    /// The Nydus form of this image, if there is one on the `routes`. Looked for once.
    pub fn nydus(&self, routes: &Routes) -> Option<Arc<Self>> {
        let look = || {
            let (place, found) = alternative::find(self, routes)?;
            let image = &self.reference;
            tracing::info!(%image, place, manifest = %found.digest(), "has a Nydus form");
            Some(found)
        };
        self.nydus.get_or_init(look).clone()
    }

    /// The reference it was asked for by.
    pub fn reference(&self) -> &ImageRef {
        &self.reference
    }

    /// The digest of its manifest.
    pub fn digest(&self) -> Digest {
        self.descriptor.digest
    }

    /// What names its manifest, as artifacts that refer to it do.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Its layers as the store knows them, bottom first: those of a Nydus image that are only data
    /// stand for nothing.
    pub fn chain(&self) -> Vec<Digest> {
        let stored = |layer: &Descriptor| match nydus::part(&layer.annotations) {
            Some(nydus::Part::Blob) => *LayerId::empty().digest(),
            _ => layer.digest,
        };
        self.manifest.layers.iter().map(stored).collect()
    }

    /// Its manifest: configuration and all layers, bottom first.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The descriptor of one of its layers.
    pub fn layer(&self, digest: &Digest) -> Result<&Descriptor> {
        let mut layers = self.manifest.layers.iter();
        layers
            .find(|layer| layer.digest == *digest)
            .ok_or_else(|| Error::NotFound(format!("layer {digest} in image {}", self.reference)))
    }

    /// The index that the reference leads to, if it leads to one that lists this image. It may hold
    /// other forms of the image, such as a Nydus manifest or a SOCI index. Asked for once.
    pub fn enclosing_index(&self) -> Result<Option<Arc<Index>>> {
        let _turn = lock(&self.asking);
        if let Some(known) = self.index.get() {
            return Ok(known.clone());
        }
        let index = match first(&*self.blobs, &self.reference)?.1 {
            Document::Index(index)
                if index
                    .manifests
                    .iter()
                    .any(|one| one.digest == self.digest()) =>
            {
                Some(Arc::new(index))
            }
            // A tag that was moved since the pull began says nothing about this image.
            Document::Index(_) | Document::Manifest(_) => None,
        };
        Ok(self.index.get_or_init(|| index).clone())
    }

    /// The artifacts of `artifact_type` that refer to this image's manifest. Asked for once.
    pub fn referrers(&self, artifact_type: &str) -> Result<Vec<Descriptor>> {
        if let Some(known) = lock(&self.referrers).get(artifact_type) {
            return Ok(known.clone());
        }
        let found = self
            .blobs
            .referrers(&self.reference, &self.digest(), artifact_type)?;
        lock(&self.referrers).insert(artifact_type.to_owned(), found.clone());
        Ok(found)
    }

    /// The manifest of an artifact or of another form of the image, in the same repository.
    pub fn artifact(&self, digest: Digest) -> Result<Manifest> {
        let (_, manifest) = manifest_at(&*self.blobs, &self.reference, digest)?;
        Ok(manifest)
    }

    /// The bytes of a manifest in the same repository that is none of an image, with their media
    /// type; they have the digest.
    pub fn artifact_bytes(&self, digest: Digest) -> Result<FetchedManifest> {
        self.blobs.manifest(&self.reference.at_digest(digest))
    }

    /// A blob of the same repository.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Arc<dyn BlobSource>> {
        self.blobs
            .blob(&self.reference, &descriptor.digest, descriptor.size)
    }
}

/// What a reference itself leads to.
pub(super) fn first(blobs: &dyn Blobs, reference: &ImageRef) -> Result<(Descriptor, Document)> {
    let fetched = blobs.manifest(reference)?;
    let document = fetched.document(&format!("image {reference}"))?;
    Ok((describe(&fetched), document))
}

fn manifest_at(
    blobs: &dyn Blobs,
    reference: &ImageRef,
    digest: Digest,
) -> Result<(Descriptor, Manifest)> {
    let what = format!("manifest {digest} of {}", reference.name());
    let fetched = blobs.manifest(&reference.at_digest(digest))?;
    match fetched.document(&what)? {
        Document::Manifest(manifest) => Ok((describe(&fetched), manifest)),
        Document::Index(_) => Err(Error::Malformed {
            what,
            reason: "is an index".to_owned(),
        }),
    }
}

fn describe(fetched: &FetchedManifest) -> Descriptor {
    Descriptor {
        media_type: fetched.media_type.clone(),
        digest: fetched.digest,
        size: fetched.bytes.len() as u64,
        annotations: BTreeMap::new(),
        platform: None,
        other: BTreeMap::new(),
    }
}
