//! The blobs that a bootstrap refers to, each a device of the EROFS image: those of the layers, then
//! those of the dictionary that some file needs.

use super::blob::{Chunk, Form, Layer, Stored, Style, ZSTD};
use super::dictionary::Dictionary;
use super::tree::Tree;
use crate::digest::Algorithm;
use crate::fetch::manifest::Descriptor;
use crate::formats::Flaw;
use crate::formats::nydus::layout::{BLOB_LEN, DEVICE_LEN};

/// The EROFS block.
pub(super) const BLOCK: u64 = 4096;
/// Alignment of a device in the space of all devices' blocks.
const DEVICE_ALIGN: u64 = 0x8_0000;
/// Most blobs: files name them by 8 bits, of which 0 is the bootstrap itself.
const MAX_BLOBS: usize = 254;

/// Bytes between the place of the contexts and the digest of the blob that holds them.
const BESIDE_GAP: usize = 32;

/// The blobs of an image.
pub(super) struct Devices<'a> {
    layers: Vec<&'a Layer>,
    /// The blob of each layer.
    blob_of: Vec<Option<usize>>,
    dictionary: Option<&'a Dictionary>,
    /// The blobs of the dictionary that are used, by their numbers there.
    used: Vec<usize>,
    form: Form,
    chunk_size: u64,
}

/// The tables that tell of blobs.
pub(super) struct Tables {
    /// Device slots.
    pub(super) slots: Vec<u8>,
    /// The blob table.
    pub(super) blobs: Vec<u8>,
    /// Blocks of all blobs.
    pub(super) blocks: u32,
}

impl<'a> Devices<'a> {
    /// The blobs of `layers` and what `tree` needs of the dictionary.
    pub(super) fn new(layers: &[&'a Layer], tree: &Tree, style: Style<'a>) -> Result<Self, Flaw> {
        let dictionary = style.dictionary;
        let digest = |layer: &Layer| layer.blob.as_ref().map(|blob| blob.digest);
        let mut own: Vec<&Layer> = Vec::new();
        // Two layers with the same contents share a blob.
        let blob_of = layers.iter().map(|layer| {
            let wanted = digest(layer)?;
            let known = own.iter().position(|known| digest(known) == Some(wanted));
            Some(known.unwrap_or_else(|| {
                own.push(*layer);
                own.len() - 1
            }))
        });
        let blob_of: Vec<Option<usize>> = blob_of.collect();
        let mut used: Vec<usize> = Vec::new();
        if let Some(dictionary) = dictionary {
            let inodes = tree.inodes.iter().filter(|inode| inode.links > 0);
            let known = inodes
                .flat_map(|inode| &inode.chunks)
                .filter_map(|stored| match stored {
                    Stored::Known(number) => Some(dictionary.entry(*number).blob),
                    Stored::Own(_) => None,
                });
            used.extend(known);
            used.sort_unstable();
            used.dedup();
        }
        let devices = Self {
            layers: own,
            blob_of,
            dictionary,
            used,
            form: style.form,
            chunk_size: style.chunk_size,
        };
        match devices.len() {
            ..=MAX_BLOBS => Ok(devices),
            len => Err(Flaw::new(format!("{len} blobs, more than {MAX_BLOBS}"))),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.layers.len() + self.used.len()
    }

    /// What the blobs are.
    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// The blobs of the dictionary that the image needs.
    pub(super) fn borrowed(&self) -> Vec<Descriptor> {
        let blobs = self.dictionary.map_or(&[][..], |known| &known.blobs);
        let used = self.used.iter();
        used.map(|&blob| blobs[blob].descriptor.clone()).collect()
    }

    /// The blob that holds a chunk of a file of `layer`, its number there, and the chunk.
    pub(super) fn locate(&self, layer: usize, stored: Stored) -> Option<(usize, u32, &'a Chunk)> {
        match stored {
            Stored::Own(number) => {
                let blob = self.blob_of[layer]?;
                let chunks = &self.layers[blob].chunks;
                Some((blob, number, &chunks[number as usize]))
            }
            Stored::Known(number) => {
                let entry = self.dictionary?.entry(number);
                let place = self.used.binary_search(&entry.blob).ok()?;
                Some((self.layers.len() + place, entry.number, &entry.chunk))
            }
        }
    }

    /// The tables; devices lie behind the bootstrap's `len` bytes.
    pub(super) fn tables(&self, len: u64) -> Tables {
        let mut tables = Tables {
            slots: Vec::new(),
            blobs: Vec::new(),
            blocks: 0,
        };
        let mut at = len;
        let mut device = |tables: &mut Tables, hex: &str, plain_len: u64| {
            let blocks = plain_len.div_ceil(BLOCK) as u32;
            let mapped = at.next_multiple_of(DEVICE_ALIGN) / BLOCK;
            at = (mapped + u64::from(blocks)) * BLOCK;
            tables.blocks += blocks;
            tables.slots.extend_from_slice(hex.as_bytes());
            for word in [blocks, mapped as u32] {
                tables.slots.extend_from_slice(&word.to_le_bytes());
            }
            let len = tables.slots.len().next_multiple_of(DEVICE_LEN as usize);
            tables.slots.resize(len, 0);
        };
        for (number, layer) in self.layers.iter().enumerate() {
            let Some(blob) = &layer.blob else { continue };
            device(&mut tables, &blob.digest.hex(), blob.plain_len);
            self.own(&mut tables.blobs, number, layer);
        }
        let blobs = self.dictionary.map_or(&[][..], |known| &known.blobs);
        for (place, &blob) in self.used.iter().enumerate() {
            let blob = &blobs[blob];
            device(&mut tables, &blob.descriptor.digest.hex(), blob.plain_len);
            let mut entry = blob.entry.clone();
            let number = (self.layers.len() + place) as u32;
            entry[64..68].copy_from_slice(&number.to_le_bytes());
            tables.blobs.extend_from_slice(&entry);
        }
        tables
    }

    /// The entry of the blob table for the blob of a layer.
    fn own(&self, table: &mut Vec<u8>, number: usize, layer: &Layer) {
        let Some(blob) = &layer.blob else { return };
        table.extend_from_slice(blob.digest.hex().as_bytes());
        let count = layer.chunks.len() as u32;
        let (form, chunk_size) = (self.form, self.chunk_size as u32);
        let digest = match form.algorithm {
            Algorithm::Blake3 => 0,
            Algorithm::Sha256 => 1,
        };
        for word in [
            number as u32,
            chunk_size,
            count,
            form.codec,
            digest,
            form.features,
        ] {
            table.extend_from_slice(&word.to_le_bytes());
        }
        // All of the blob: what follows the chunks counts too.
        for long in [blob.size, blob.plain_len] {
            table.extend_from_slice(&long.to_le_bytes());
        }
        let contexts = blob.contexts;
        let packed = contexts.packed_len != contexts.len;
        for word in [0, if packed { ZSTD } else { 0 }] {
            table.extend_from_slice(&word.to_le_bytes());
        }
        for long in [contexts.offset, contexts.packed_len, contexts.len] {
            table.extend_from_slice(&long.to_le_bytes());
        }
        if let Some((digest, size)) = blob.beside {
            table.resize(table.len() + BESIDE_GAP, 0);
            table.extend_from_slice(digest.as_bytes());
            table.extend_from_slice(&size.to_le_bytes());
        }
        table.resize(table.len().next_multiple_of(BLOB_LEN as usize), 0);
    }
}
