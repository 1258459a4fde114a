//! One image: its manifest, the index around it, and what refers to it.

use std::sync::{Arc, Mutex, OnceLock};

use super::lock;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::manifest::{Descriptor, Document, Index, Manifest};
use crate::fetch::{BlobSource, FetchedManifest, ImageRef, Platform};
use crate::mount::Blobs;

/// An image as its registry describes it.
pub struct Image {
    blobs: Arc<dyn Blobs>,
    reference: ImageRef,
    digest: Digest,
    manifest: Manifest,
    /// What the reference itself leads to, once it was asked for; none when that is the manifest.
    index: OnceLock<Option<Arc<Index>>>,
    asking: Mutex<()>,
}

impl Image {
    pub(super) fn fetch(
        blobs: Arc<dyn Blobs>,
        reference: &ImageRef,
        manifest: Option<Digest>,
    ) -> Result<Self> {
        let index = OnceLock::new();
        let digest = match manifest {
            Some(digest) => digest,
            None => match first(&*blobs, reference)? {
                (digest, Document::Manifest(manifest)) => {
                    let index = OnceLock::from(None);
                    return Ok(Self::new(blobs, reference, digest, manifest, index));
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
        let manifest = manifest_at(&*blobs, reference, digest)?;
        Ok(Self::new(blobs, reference, digest, manifest, index))
    }

    fn new(
        blobs: Arc<dyn Blobs>,
        reference: &ImageRef,
        digest: Digest,
        manifest: Manifest,
        index: OnceLock<Option<Arc<Index>>>,
    ) -> Self {
        Self {
            blobs,
            reference: reference.clone(),
            digest,
            manifest,
            index,
            asking: Mutex::new(()),
        }
    }

    /// The reference it was asked for by.
    pub fn reference(&self) -> &ImageRef {
        &self.reference
    }

    /// The digest of its manifest.
    pub fn digest(&self) -> Digest {
        self.digest
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
                if index.manifests.iter().any(|one| one.digest == self.digest) =>
            {
                Some(Arc::new(index))
            }
            // A tag that was moved since the pull began says nothing about this image.
            Document::Index(_) | Document::Manifest(_) => None,
        };
        Ok(self.index.get_or_init(|| index).clone())
    }

    /// The artifacts of `artifact_type` that refer to this image's manifest.
    pub fn referrers(&self, artifact_type: &str) -> Result<Vec<Descriptor>> {
        self.blobs
            .referrers(&self.reference, &self.digest, artifact_type)
    }

    /// The manifest of an artifact or of another form of the image, in the same repository.
    pub fn artifact(&self, digest: Digest) -> Result<Manifest> {
        manifest_at(&*self.blobs, &self.reference, digest)
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
fn first(blobs: &dyn Blobs, reference: &ImageRef) -> Result<(Digest, Document)> {
    let fetched = blobs.manifest(reference)?;
    let document = fetched.document(&format!("image {reference}"))?;
    Ok((fetched.digest, document))
}

fn manifest_at(blobs: &dyn Blobs, reference: &ImageRef, digest: Digest) -> Result<Manifest> {
    let what = format!("manifest {digest} of {}", reference.name());
    match blobs
        .manifest(&reference.at_digest(digest))?
        .document(&what)?
    {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(_) => Err(Error::Malformed {
            what,
            reason: "is an index".to_owned(),
        }),
    }
}
