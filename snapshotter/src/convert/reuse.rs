//! Layers that are in the format already: eStargz is found by its footer, not by what a manifest
//! claims, zstd:chunked by a TOC that is where the manifest says and has the digest that it says.

use std::io::Read;

use flate2::read::GzDecoder;

use crate::digest::Digest;
use crate::error::Result;
use crate::fetch::BlobSource;
use crate::fetch::manifest::Descriptor;
use crate::formats::Flaw;
use crate::formats::estargz::footer::{self, FOOTER_LEN};
use crate::formats::estargz::toc::TOC_NAME;
use crate::formats::zstdchunked::{CONTAINERS, Position};

use super::tar::{ReadError, Reader};

/// Largest compressed TOC that is fetched to look at it.
const MAX_COMPRESSED: u64 = 256 << 20;
/// Largest TOC that is accepted.
const MAX_TOC: u64 = 1 << 30;

/// Digest of the TOC's JSON, or none when `blob` is no eStargz layer.
pub(super) fn toc_digest(blob: &dyn BlobSource, what: &str) -> Result<Option<Digest>> {
    let size = blob.size();
    if size <= FOOTER_LEN as u64 {
        return Ok(None);
    }
    let tail = blob.read_range(size - FOOTER_LEN as u64, FOOTER_LEN as u64)?;
    let Ok(Some(footer)) = footer::parse(&tail, size) else {
        return Ok(None);
    };
    let length = size - footer.len - footer.toc_offset;
    if length > MAX_COMPRESSED {
        return Ok(None);
    }
    let member = blob.read_range(footer.toc_offset, length)?;
    match json_digest(&member) {
        Ok(digest) => Ok(Some(digest)),
        Err(reason) => {
            tracing::debug!(layer = what, %reason, "has a footer but no TOC");
            Ok(None)
        }
    }
}

/// Digest of the packed TOC, or none when `layer` is not zstd:chunked in today's dialect.
pub(super) fn zstd_chunked(blob: &dyn BlobSource, layer: &Descriptor) -> Result<Option<Digest>> {
    let annotation = |name| layer.annotations.get(name);
    let (Some(position), Some(checksum)) = (
        annotation(CONTAINERS.position),
        annotation(CONTAINERS.checksum),
    ) else {
        return Ok(None);
    };
    let Ok(position) = Position::parse(position, blob.size()) else {
        return Ok(None);
    };
    let actual = Digest::of(&blob.read_range(position.offset, position.packed)?);
    Ok((actual.to_string() == *checksum).then_some(actual))
}

fn json_digest(member: &[u8]) -> std::result::Result<Digest, ReadError> {
    let mut reader = Reader::new(GzDecoder::new(member));
    let entry = reader.next_entry()?.filter(|entry| entry.name == TOC_NAME);
    let entry = entry.ok_or_else(|| Flaw::new("no TOC where the footer points"))?;
    if entry.size > MAX_TOC {
        return Err(Flaw::new("TOC too large").into());
    }
    let mut json = Vec::new();
    reader
        .into_inner()
        .take(entry.size)
        .read_to_end(&mut json)?;
    if json.len() as u64 != entry.size {
        return Err(Flaw::new("TOC cut short").into());
    }
    Ok(Digest::of(&json))
}
