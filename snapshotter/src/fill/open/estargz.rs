//! eStargz: known by its footer, described by the TOC at its end or in an image beside it.

use super::{LayerQuery, Opened, Tail};
use crate::digest::Digest;
use crate::discover::Image;
use crate::error::{Error, Result};
use crate::formats::estargz::footer::EXTERNAL_FOOTER_LEN;
use crate::formats::estargz::toc::{TOC_DIGEST_ANNOTATION, TOC_OF_LAYER_ANNOTATION};
use crate::formats::{Flaw, estargz};

/// What the manifest says about the digest of the TOC's JSON.
pub(super) const VOUCHED: &str = TOC_DIGEST_ANNOTATION;

/// Reads the index, if the footer is there.
pub(super) fn open(query: &LayerQuery<'_>, tail: &mut Tail) -> Result<Option<Opened>> {
    let size = query.blob.size();
    let flaw = |flaw: Flaw| flaw.of(query.layer);
    let footer = estargz::footer::parse(&tail.bytes, size).map_err(flaw)?;
    let external = footer.is_none() && estargz::footer::is_external(&tail.bytes);
    if footer.is_none() && !external {
        return Ok(None);
    }
    if query.digest(VOUCHED)?.is_none() && !query.allow_unverified {
        return Ok(Some(Opened::Unverified));
    }
    let Some(footer) = footer else {
        return Ok(Some(Opened::TocElsewhere));
    };
    let packed_len = size - footer.len - footer.toc_offset;
    check_len(packed_len).map_err(flaw)?;
    let packed = tail.get(query.blob, footer.toc_offset, packed_len)?;
    index(query, packed, footer.toc_offset).map(Some)
}

/// Reads the index of a layer that is [`Opened::TocElsewhere`] out of `toc_image`.
pub fn open_external(query: &LayerQuery<'_>, toc_image: &Image) -> Result<Opened> {
    let layer = query.layer.to_string();
    let mut tocs = toc_image.manifest().layers.iter();
    let toc = tocs
        .find(|toc| toc.annotations.get(TOC_OF_LAYER_ANNOTATION) == Some(&layer))
        .ok_or_else(|| {
            let image = toc_image.reference();
            Error::NotFound(format!("TOC of layer {layer} in image {image}"))
        })?;
    check_len(toc.size).map_err(|flaw| flaw.of(query.layer))?;
    let packed = toc_image.blob(toc)?.read_range(0, toc.size)?;
    let end = query.blob.size() - EXTERNAL_FOOTER_LEN as u64;
    index(query, &packed, end)
}

fn check_len(packed: u64) -> Result<(), Flaw> {
    if packed > estargz::MAX_PACKED_TOC {
        return Err(Flaw::new(format!("TOC: {packed} bytes packed")));
    }
    Ok(())
}

/// Unpacks and checks the TOC; chunks end before `end` in the blob.
fn index(query: &LayerQuery<'_>, packed: &[u8], end: u64) -> Result<Opened> {
    let flaw = |flaw: Flaw| flaw.of(query.layer);
    let json = estargz::unpack_toc(packed).map_err(flaw)?;
    let actual = Digest::of(&json);
    if let Some(expected) = query.digest(VOUCHED)? {
        expected.expect(actual, &format!("TOC of layer {}", query.layer))?;
    }
    estargz::index(&json, query.layer, actual, query.blob.size(), end)
        .map(|index| Opened::Lazy(Box::new(index)))
        .map_err(flaw)
}
