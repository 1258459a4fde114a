//! Reading what describes a layer: its last bytes, which tell the format, and its TOC.

use crate::digest::Digest;
use crate::error::Result;
use crate::fetch::BlobSource;
use crate::formats::{Flaw, estargz};
use crate::index::LayerIndex;

/// Bytes of the blob's end fetched at once, so that most layers cost one round trip: layers of
/// distributions have TOCs of 0.6 to 0.8 % of their size.
fn tail_len(blob_size: u64) -> u64 {
    (blob_size / 100).clamp(128 << 10, 1 << 20).min(blob_size)
}

/// What a blob turned out to be.
#[derive(Debug)]
pub enum Opened {
    /// A lazy format; its index, with the TOC's digest checked if one was given.
    Lazy(Box<LayerIndex>),
    /// None of the formats that this crate reads.
    Ordinary,
    /// A lazy format whose TOC nobody vouches for.
    Unverified,
}

/// Finds out the format of the blob `layer` and reads its index.
///
/// `toc` is what the manifest says about the TOC's digest. Without it the layer is
/// [`Opened::Unverified`], unless `allow_unverified`.
pub fn open_layer(
    source: &dyn BlobSource,
    layer: Digest,
    toc: Option<Digest>,
    allow_unverified: bool,
) -> Result<Opened> {
    let size = source.size();
    let tail_start = size - tail_len(size);
    let mut tail = source.read_range(tail_start, size - tail_start)?;
    let flaw = |flaw: Flaw| flaw.of(layer);
    let Some(footer) = estargz::footer::parse(&tail, size).map_err(flaw)? else {
        return Ok(Opened::Ordinary);
    };
    if toc.is_none() && !allow_unverified {
        return Ok(Opened::Unverified);
    }
    let toc_end = size - footer.len;
    let packed_len = toc_end - footer.toc_offset;
    if packed_len > estargz::MAX_PACKED_TOC {
        return Err(flaw(Flaw::new(format!("TOC: {packed_len} bytes packed"))));
    }
    if footer.toc_offset < tail_start {
        let missing = tail_start - footer.toc_offset;
        let mut head = source.read_range(footer.toc_offset, missing)?;
        head.append(&mut tail);
        tail = head;
    }
    let packed = &tail[tail.len() - (packed_len + footer.len) as usize..][..packed_len as usize];
    let json = estargz::unpack_toc(packed).map_err(flaw)?;
    let actual = Digest::of(&json);
    if let Some(expected) = toc {
        expected.expect(actual, &format!("TOC of layer {layer}"))?;
    }
    estargz::index(&json, layer, actual, size, footer.toc_offset)
        .map(|index| Opened::Lazy(Box::new(index)))
        .map_err(flaw)
}
