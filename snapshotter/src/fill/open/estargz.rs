//! eStargz: known by its footer, described by the TOC at its end.

use super::{LayerQuery, Opened, Tail};
use crate::digest::Digest;
use crate::error::Result;
use crate::formats::estargz::toc::TOC_DIGEST_ANNOTATION;
use crate::formats::{Flaw, estargz};

/// What the manifest says about the digest of the TOC's JSON.
pub(super) const VOUCHED: &str = TOC_DIGEST_ANNOTATION;

/// Reads the index, if the footer is there.
pub(super) fn open(query: &LayerQuery<'_>, tail: &mut Tail) -> Result<Option<Opened>> {
    let size = query.blob.size();
    let flaw = |flaw: Flaw| flaw.of(query.layer);
    let Some(footer) = estargz::footer::parse(&tail.bytes, size).map_err(flaw)? else {
        return Ok(None);
    };
    let vouched = query.digest(VOUCHED)?;
    if vouched.is_none() && !query.allow_unverified {
        return Ok(Some(Opened::Unverified));
    }
    let packed_len = size - footer.len - footer.toc_offset;
    if packed_len > estargz::MAX_PACKED_TOC {
        return Err(flaw(Flaw::new(format!("TOC: {packed_len} bytes packed"))));
    }
    let packed = tail.get(query.blob, footer.toc_offset, packed_len)?;
    let json = estargz::unpack_toc(packed).map_err(flaw)?;
    let actual = Digest::of(&json);
    if let Some(expected) = vouched {
        expected.expect(actual, &format!("TOC of layer {}", query.layer))?;
    }
    estargz::index(&json, query.layer, actual, size, footer.toc_offset)
        .map(|index| Some(Opened::Lazy(Box::new(index))))
        .map_err(flaw)
}
