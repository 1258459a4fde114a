//! A dictionary of chunks: those of another Nydus image are not stored again. The new image's
//! bootstrap names the blobs that hold them, and its manifest lists those blobs.

use std::collections::HashMap;

use super::blob::{Chunk, Form};
use super::{CHUNK_SIZE, blob_descriptor};
use crate::convert::image::Options;
use crate::convert::store::Store;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::Platform;
use crate::fetch::manifest::{Descriptor, Document, Manifest};
use crate::formats::nydus::{self, KnownChunks, MAX_PACKED_LAYER, Part, unpack_bootstrap};

/// A chunk of the dictionary.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Number of its blob in the dictionary.
    pub(super) blob: usize,
    /// Its number in the blob.
    pub(super) number: u32,
    pub(super) chunk: Chunk,
}

/// A blob of the dictionary.
#[derive(Debug)]
pub(super) struct DictionaryBlob {
    pub(super) descriptor: Descriptor,
    /// Its entry in the blob table.
    pub(super) entry: Vec<u8>,
    /// Bytes when it is unpacked.
    pub(super) plain_len: u64,
}

/// The chunks of an image.
#[derive(Debug)]
pub(super) struct Dictionary {
    pub(super) blobs: Vec<DictionaryBlob>,
    entries: Vec<Entry>,
    by_digest: HashMap<[u8; 32], u32>,
}

impl Dictionary {
    /// Reads the dictionary that is the image at `store`.
    pub(super) fn read(store: &Store<'_>, options: &Options) -> Result<Self> {
        let manifest = manifest(store, options)?;
        let what = format!("chunk dictionary {}", store.place);
        let bootstrap = manifest.layers.last();
        let bootstrap = bootstrap
            .filter(|layer| nydus::part(&layer.annotations) == Some(Part::Bootstrap))
            .ok_or_else(|| Error::Malformed {
                what: what.clone(),
                reason: "is no Nydus image".to_owned(),
            })?;
        let packed = store.read_small(bootstrap, MAX_PACKED_LAYER)?;
        let bytes = unpack_bootstrap(&packed).map_err(|flaw| flaw.of(&what))?;
        let known = nydus::known_chunks(&bytes).map_err(|flaw| flaw.of(&what))?;
        let chunk_size = options.chunk_size.unwrap_or(CHUNK_SIZE);
        let algorithm = Form::PACKED.algorithm;
        if known.algorithm != algorithm || known.chunk_size != chunk_size {
            let reason = format!(
                "has chunks of {} bytes by {:?}; {chunk_size} by {algorithm:?} are wanted",
                known.chunk_size, known.algorithm
            );
            return Err(Error::Malformed { what, reason });
        }
        Ok(Self::new(known, &manifest.layers))
    }

    fn new(known: KnownChunks, layers: &[Descriptor]) -> Self {
        let size = |digest: &Digest| {
            let layer = layers.iter().find(|layer| layer.digest == *digest);
            layer.map_or(0, |layer| layer.size)
        };
        let blobs = known.blobs.into_iter().map(|blob| DictionaryBlob {
            descriptor: blob_descriptor(blob.digest, size(&blob.digest)),
            entry: blob.entry,
            plain_len: blob.plain_len,
        });
        let blobs: Vec<_> = blobs.collect();
        let entries = known.chunks.into_iter().map(|known| Entry {
            blob: known.blob,
            number: known.number,
            chunk: Chunk {
                digest: known.digest,
                packed: known.packed,
                plain: known.plain,
                is_packed: known.packed.1 != known.plain.1,
            },
        });
        // A blob that the image does not list may be anywhere, or gone.
        let entries: Vec<_> = entries
            .filter(|entry| blobs[entry.blob].descriptor.size > 0)
            .collect();
        let numbers = entries.iter().zip(0..);
        let by_digest = numbers.map(|(entry, number)| (entry.chunk.digest, number));
        Self {
            by_digest: by_digest.collect(),
            blobs,
            entries,
        }
    }

    /// The number of the chunk with this digest and length.
    pub(super) fn find(&self, digest: &[u8; 32], len: u32) -> Option<u32> {
        let number = *self.by_digest.get(digest)?;
        (self.entry(number).chunk.plain.1 == len).then_some(number)
    }

    pub(super) fn entry(&self, number: u32) -> &Entry {
        &self.entries[number as usize]
    }
}

/// The dictionary's manifest: for the platform that is converted, if it has several.
fn manifest(store: &Store<'_>, options: &Options) -> Result<Manifest> {
    let what = format!("chunk dictionary {}", store.place);
    let index = match store.manifest()?.document(&what)? {
        Document::Manifest(manifest) => return Ok(manifest),
        Document::Index(index) => index,
    };
    let platform = options.platforms.first().cloned();
    let platform = platform.unwrap_or_else(Platform::host);
    let chosen = index.select_nydus(&platform, &what)?;
    match store.manifest_of(chosen)?.document(&what)? {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(_) => Err(Error::Malformed {
            what,
            reason: "is an index within an index".to_owned(),
        }),
    }
}
