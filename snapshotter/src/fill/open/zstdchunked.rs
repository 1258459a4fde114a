//! zstd:chunked: known by its annotations, or by its footer when they did not come along.

use super::{LayerQuery, Opened, Tail};
use crate::digest::Digest;
use crate::error::Result;
use crate::formats::Flaw;
use crate::formats::estargz::toc::TOC_DIGEST_ANNOTATION;
use crate::formats::zstdchunked::{self, CONTAINERS, Dialect, Position, STARGZ};

/// What the manifest says about the digest of the packed TOC, in either dialect.
pub(super) const VOUCHED: [&str; 2] = [CONTAINERS.checksum, STARGZ.checksum];

/// Reads the index of a layer whose annotations say where its TOC is.
pub(super) fn open_annotated(query: &LayerQuery<'_>) -> Result<Option<Opened>> {
    let named = |dialect: &Dialect| query.annotations.get(dialect.position);
    let Some(text) = [CONTAINERS, STARGZ].iter().find_map(named) else {
        return Ok(None);
    };
    let position = Position::parse(text, query.blob.size()).map_err(|f| f.of(query.layer))?;
    if !is_wanted(query)? {
        return Ok(Some(Opened::Unverified));
    }
    let packed = query.blob.read_range(position.offset, position.packed)?;
    index(query, position, &packed).map(Some)
}

/// Reads the index of a layer that has a footer. stargz's tools state the digest of the JSON
/// besides, and that one containerd passes on.
pub(super) fn open_by_footer(query: &LayerQuery<'_>, tail: &mut Tail) -> Result<Option<Opened>> {
    let size = query.blob.size();
    let found = Position::of_footer(&tail.bytes, size).map_err(|flaw| flaw.of(query.layer))?;
    let Some(position) = found else {
        return Ok(None);
    };
    if !is_wanted(query)? {
        return Ok(Some(Opened::Unverified));
    }
    let packed = tail.get(query.blob, position.offset, position.packed)?;
    index(query, position, packed).map(Some)
}

fn is_wanted(query: &LayerQuery<'_>) -> Result<bool> {
    Ok(query.allow_unverified || super::vouched(query.annotations)?.is_some())
}

/// Checks the TOC by every digest that the annotations hold.
fn index(query: &LayerQuery<'_>, position: Position, packed: &[u8]) -> Result<Opened> {
    let flaw = |flaw: Flaw| flaw.of(query.layer);
    let what = format!("TOC of layer {}", query.layer);
    let of_packed = Digest::of(packed);
    for name in VOUCHED {
        if let Some(expected) = query.digest(name)? {
            expected.expect(of_packed, &what)?;
        }
    }
    let json = zstdchunked::unpack_toc(packed, position).map_err(flaw)?;
    if let Some(expected) = query.digest(TOC_DIGEST_ANNOTATION)? {
        expected.expect(Digest::of(&json), &what)?;
    }
    let toc = super::vouched(query.annotations)?.unwrap_or(of_packed);
    let size = query.blob.size();
    zstdchunked::index(&json, query.layer, toc, size, position)
        .map(|index| Opened::Lazy(Box::new(index)))
        .map_err(flaw)
}
