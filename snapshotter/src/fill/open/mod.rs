//! Finding out what a layer is and reading what describes it, one module a format.
//!
//! What the manifest says of a layer decides first, because it is vouched for and costs no request;
//! then the blob's last bytes, where some formats leave a footer.

mod estargz;
mod nydus;
mod portable;
mod soci;
mod zstdchunked;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use estargz::open_external;

use crate::digest::Digest;
use crate::discover::Image;
use crate::error::{Error, Result};
use crate::fetch::BlobSource;
use crate::index::LayerIndex;

/// Annotations that state the digest of what describes a layer, in the order in which they count.
const VOUCHED: [&str; 4] = [
    portable::VOUCHED,
    estargz::VOUCHED,
    zstdchunked::VOUCHED[0],
    zstdchunked::VOUCHED[1],
];

/// What a blob turned out to be.
#[derive(Debug)]
pub enum Opened {
    /// A lazy format; its index, with the TOC's digest checked if one was given.
    Lazy(Box<LayerIndex>),
    /// None of the formats that this crate reads.
    Ordinary,
    /// A lazy format whose TOC nobody vouches for.
    Unverified,
    /// eStargz whose TOC lies in an image of its own; see [`open_external`].
    TocElsewhere,
}

/// A layer to be opened and all that is known of it.
pub struct LayerQuery<'a> {
    /// Its bytes.
    pub blob: &'a dyn BlobSource,
    /// Its digest.
    pub layer: Digest,
    /// Its media type; empty when unknown.
    pub media_type: &'a str,
    /// The annotations of its descriptor.
    pub annotations: &'a BTreeMap<String, String>,
    /// The image that holds it; none when the annotations sufficed without asking for it.
    pub image: Option<&'a Arc<Image>>,
    /// A layer that nobody vouches for can be had in another way: the blob's last bytes are not worth
    /// a request.
    pub skip_footer: bool,
    /// An index that only refers to the image is believed.
    pub trust_referrers: bool,
    /// Lazy formats are read even when the manifest does not vouch for what describes them.
    pub allow_unverified: bool,
}

impl LayerQuery<'_> {
    /// The digest that an annotation holds, if it is there.
    fn digest(&self, annotation: &str) -> Result<Option<Digest>> {
        digest(self.annotations, annotation)
    }
}

/// The digest of what describes a layer, as its annotations state it; see [`LayerIndex::toc`].
/// None means that the manifest must be looked at, or that nobody vouches for anything.
pub fn vouched(annotations: &BTreeMap<String, String>) -> Result<Option<Digest>> {
    for name in VOUCHED {
        if let Some(digest) = digest(annotations, name)? {
            return Ok(Some(digest));
        }
    }
    Ok(None)
}

/// Whether the manifest names an index of layers that need none of their own annotations.
pub fn names_index(image: &Image) -> bool {
    !matches!(soci::named(image), Ok(None))
}

/// Whether what describes the layer lies beside it in the image's repository.
pub fn needs_image(annotations: &BTreeMap<String, String>) -> bool {
    annotations.contains_key(portable::VOUCHED)
}

fn digest(annotations: &BTreeMap<String, String>, name: &str) -> Result<Option<Digest>> {
    let parse = |value: &String| {
        value.parse().map_err(|error| {
            Error::InvalidArgument(format!("annotation {name}={value:?}: {error}"))
        })
    };
    annotations.get(name).map(parse).transpose()
}

/// Finds out the format of a layer and reads its index.
///
/// A layer that needs to be vouched for and is not is [`Opened::Unverified`], unless the query
/// allows it.
pub fn open_layer(query: &LayerQuery<'_>) -> Result<Opened> {
    if let Some(opened) = nydus::open(query)? {
        return Ok(opened);
    }
    if let Some(opened) = zstdchunked::open_annotated(query)? {
        return Ok(opened);
    }
    if let Some(opened) = portable::open(query)? {
        return Ok(opened);
    }
    if let Some(opened) = soci::open(query)? {
        return Ok(opened);
    }
    if query.skip_footer && !query.allow_unverified && vouched(query.annotations)?.is_none() {
        return Ok(Opened::Ordinary);
    }
    let mut tail = Tail::read(query.blob)?;
    if let Some(opened) = estargz::open(query, &mut tail)? {
        return Ok(opened);
    }
    if let Some(opened) = zstdchunked::open_by_footer(query, &mut tail)? {
        return Ok(opened);
    }
    Ok(Opened::Ordinary)
}

/// The last bytes of a blob, fetched at once so that most layers cost one round trip: layers of
/// distributions have TOCs of 0.6 to 0.8 % of their size.
struct Tail {
    bytes: Vec<u8>,
    start: u64,
}

impl Tail {
    fn read(blob: &dyn BlobSource) -> Result<Self> {
        let size = blob.size();
        let len = (size / 100).clamp(128 << 10, 1 << 20).min(size);
        let start = size - len;
        let bytes = blob.read_range(start, len)?;
        Ok(Self { bytes, start })
    }

    /// `len` bytes at `offset` of the blob; fetches what is missing before the bytes at hand.
    fn get(&mut self, blob: &dyn BlobSource, offset: u64, len: u64) -> Result<&[u8]> {
        if offset < self.start {
            let mut bytes = blob.read_range(offset, self.start - offset)?;
            bytes.append(&mut self.bytes);
            *self = Self {
                bytes,
                start: offset,
            };
        }
        let at = (offset - self.start) as usize;
        Ok(&self.bytes[at..][..len as usize])
    }
}

#[cfg(test)]
mod tests;
