//! Nydus: the layer that holds the bootstrap, known by its annotation. It is read whole and has the
//! digest that the manifest states; the blobs it refers to are asked for only where it does not say
//! enough of them.

use std::sync::Arc;

use super::{LayerQuery, Opened};
use crate::digest::Digest;
use crate::discover::Image;
use crate::error::{Error, Result};
use crate::fetch::manifest::Descriptor;
use crate::formats::Flaw;
use crate::formats::nydus::{self, BlobInfo, Bootstrap, Contexts, MAX_PACKED_LAYER, Part};

/// Reads the index, if the annotations say that this is the bootstrap's layer.
pub(super) fn open(query: &LayerQuery<'_>) -> Result<Option<Opened>> {
    if nydus::part(query.annotations) != Some(Part::Bootstrap) {
        return Ok(None);
    }
    let flaw = |flaw: Flaw| flaw.of(query.layer);
    let size = query.blob.size();
    if size > MAX_PACKED_LAYER {
        return Err(flaw(Flaw::new(format!("bootstrap layer: {size} bytes"))));
    }
    let packed = query.blob.read_range(0, size)?;
    query
        .layer
        .verify(&packed, &format!("bootstrap layer {}", query.layer))?;
    let bytes = nydus::unpack_bootstrap(&packed).map_err(flaw)?;
    drop(packed);
    let bootstrap = Bootstrap::read(&bytes).map_err(flaw)?;
    let image = query
        .image
        .ok_or_else(|| Error::Internal("a bootstrap is opened without its image".to_owned()))?;
    let blobs = bootstrap.blobs().iter().map(|blob| blob_of(image, blob));
    let blobs = blobs.collect::<Result<Vec<_>>>()?;
    let sizes: Vec<u64> = blobs.iter().map(|blob| blob.size).collect();
    let pairs = bootstrap.blobs().iter().zip(&blobs);
    let contexts = pairs
        .map(|(info, blob)| read_contexts(image, info, blob))
        .collect::<Result<Vec<_>>>()?;
    let index = bootstrap.index(query.layer, &sizes, &contexts);
    Ok(Some(Opened::Lazy(Box::new(index.map_err(flaw)?))))
}

/// The descriptor of a blob. Most are layers of the image; others, such as those of a dictionary of
/// chunks, may be in the repository all the same.
fn blob_of(image: &Arc<Image>, blob: &BlobInfo) -> Result<Descriptor> {
    if let Ok(layer) = image.layer(&blob.digest) {
        return Ok(layer.clone());
    }
    let mut descriptor = describe(blob.digest, 0);
    descriptor.size = image.blob(&descriptor)?.size();
    Ok(descriptor)
}

/// A blob of which no manifest at hand tells more.
fn describe(digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: String::new(),
        digest,
        size,
        annotations: [].into(),
        platform: None,
        other: [].into(),
    }
}

fn read_contexts(
    image: &Arc<Image>,
    info: &BlobInfo,
    blob: &Descriptor,
) -> Result<Option<Contexts>> {
    let flaw = |flaw: Flaw| flaw.of(blob.digest);
    let Some(range) = info.contexts().map_err(flaw)? else {
        return Ok(None);
    };
    let size = range.size.unwrap_or(blob.size);
    let end = range.offset.checked_add(range.len);
    if end.is_none_or(|end| end > size) {
        return Err(flaw(Flaw::new("compression contexts outside of the blob")));
    }
    let holder = image.blob(&describe(range.blob, size))?;
    let packed = holder.read_range(range.offset, range.len)?;
    info.read_contexts(&packed).map(Some).map_err(flaw)
}
