//! What the image says of its layers: the annotations, media types and neighbours that containerd
//! does not pass on.
//!
//! containerd hands a snapshotter the image's name, the layer's digest and those annotations of the
//! layer that begin with `containerd.io/snapshot/`. Whatever else a format needs (zstd:chunked's
//! positions, a SOCI index, a Nydus bootstrap) is in the manifest, in the index around it, or
//! refers to it. [`Images::get`] fetches the manifest once for all layers of a pull and remembers
//! it for a moment; index and referrers are asked for only by the formats that look there.

mod alternative;
mod image;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use alternative::Routes;
pub use image::Image;

use crate::digest::Digest;
use crate::error::Result;
use crate::fetch::manifest::Descriptor;
use crate::fetch::{FetchedManifest, ImageRef};
use crate::mount::Blobs;

/// How long a manifest is remembered: all layers of a pull are asked for within moments, and a tag
/// that was moved must soon be seen.
const REMEMBER: Duration = Duration::from_mins(1);
/// Most images remembered at a time.
const MAX_IMAGES: usize = 32;

/// What the discovery asks of registries, within a limit of time fit for a pull that waits.
pub trait Manifests: Send + Sync {
    /// The manifest or index that `image` names; by a digest its bytes are checked.
    fn manifest(&self, image: &ImageRef) -> Result<FetchedManifest>;

    /// Descriptors of the manifests of `artifact_type` in `image`'s repository whose subject is
    /// `subject` (OCI distribution specification 1.1, "Listing Referrers", with the fallback to the
    /// referrers tag). None when there are none.
    fn referrers(
        &self,
        image: &ImageRef,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>>;
}

/// The images that were asked for lately.
pub struct Images {
    blobs: Arc<dyn Blobs>,
    known: Mutex<HashMap<Key, Arc<Slot>>>,
}

/// The image's reference, and the digest of the manifest within it if containerd told.
type Key = (ImageRef, Option<Digest>);

/// One image; locked while it is fetched, so that it is fetched once.
struct Slot {
    since: Instant,
    image: Mutex<Option<Arc<Image>>>,
}

impl Images {
    /// Nothing is asked yet.
    pub fn new(blobs: Arc<dyn Blobs>) -> Self {
        Self {
            blobs,
            known: Mutex::default(),
        }
    }

    /// The image that `reference` names on this platform. With `manifest`, the digest of its
    /// manifest, it takes one request, else one more when the reference leads to an index.
    /// A failure is not remembered.
    pub fn get(&self, reference: &ImageRef, manifest: Option<Digest>) -> Result<Arc<Image>> {
        let slot = self.slot((reference.clone(), manifest));
        let mut image = lock(&slot.image);
        if let Some(known) = &*image {
            return Ok(Arc::clone(known));
        }
        let blobs = Arc::clone(&self.blobs);
        let fetched = Arc::new(Image::fetch(blobs, reference, manifest)?);
        *image = Some(Arc::clone(&fetched));
        Ok(fetched)
    }

    fn slot(&self, key: Key) -> Arc<Slot> {
        let mut known = lock(&self.known);
        known.retain(|_, slot| slot.since.elapsed() < REMEMBER);
        if known.len() >= MAX_IMAGES
            && !known.contains_key(&key)
            && let Some(oldest) = known.iter().min_by_key(|(_, slot)| slot.since)
        {
            let oldest = oldest.0.clone();
            known.remove(&oldest);
        }
        let slot = known.entry(key).or_insert_with(|| {
            Arc::new(Slot {
                since: Instant::now(),
                image: Mutex::default(),
            })
        });
        Arc::clone(slot)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
