//! The index of one layer: a byte image and typed access to it.

use std::ops::{Deref, Range};

use sha2::{Digest as _, Sha256};

use super::layout::{BlobEntry, Chunk, Dirent, Head, Inode, MAGIC, Record, Span, Unit, Xattr};
use crate::digest::{Algorithm, Digest};
use crate::formats::Flaw;

/// Length of the checksum before the head.
const SUM_LEN: usize = 32;

/// What the layer says about fetching before anyone asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefetch {
    /// Nothing is said.
    Unknown,
    /// This many units from the start of the blob are wanted; may be none.
    Units(u32),
    /// A list says which, see [`LayerIndex::prefetch_units`].
    Listed,
}

/// The bytes of an index.
pub trait Image: Deref<Target = [u8]> + Send + Sync {
    /// Lets go of memory that can be had again from where it came.
    fn let_go(&self) {}
}

impl Image for Vec<u8> {}

/// The files of one layer and where their bytes are.
pub struct LayerIndex {
    /// A `Vec` or a mapped file.
    bytes: Box<dyn Image>,
    head: Head,
    sections: Sections,
}

/// Where each section of the image begins.
struct Sections {
    blobs: usize,
    prefetch: usize,
    inodes: usize,
    dirents: usize,
    xattrs: usize,
    chunks: usize,
    units: usize,
    unit_chunks: usize,
    segments: usize,
    spans: usize,
    windows: usize,
    strings: usize,
    end: usize,
}

impl Sections {
    fn of(head: &Head) -> Self {
        let mut at = SUM_LEN + Head::LEN;
        let mut take = |count: u32, len: usize| {
            let start = at;
            at = at.saturating_add((count as usize).saturating_mul(len));
            start
        };
        Self {
            blobs: take(head.blobs, BlobEntry::LEN),
            prefetch: take(head.prefetch_list, 4),
            inodes: take(head.inodes, Inode::LEN),
            dirents: take(head.dirents, Dirent::LEN),
            xattrs: take(head.xattrs, Xattr::LEN),
            chunks: take(head.chunks, Chunk::LEN),
            units: take(head.units, Unit::LEN),
            unit_chunks: take(head.unit_chunks, 4),
            segments: take(head.segments, 8),
            spans: take(head.spans, Span::LEN),
            windows: take(head.windows, 1),
            strings: take(head.strings, 1),
            end: take(0, 0),
        }
    }
}

impl LayerIndex {
    /// Takes an image as [`LayerIndex::as_bytes`] gave it; a torn or changed one is refused.
    ///
    /// After the checksum every reference inside is what [`super::LayerBuilder`] wrote, so that
    /// accessors need no checks of their own.
    pub fn from_image(bytes: Box<dyn Image>) -> Result<Self, Flaw> {
        let torn = |reason: &str| Flaw::new(format!("index: {reason}"));
        if bytes.len() < SUM_LEN + Head::LEN {
            return Err(torn("shorter than its head"));
        }
        let sum: [u8; SUM_LEN] = Sha256::digest(&bytes[SUM_LEN..]).into();
        if bytes[..SUM_LEN] != sum {
            return Err(torn("checksum mismatch"));
        }
        let head = Head::get(&bytes[SUM_LEN..]);
        let sections = Sections::of(&head);
        if head.magic != MAGIC || sections.end != bytes.len() {
            return Err(torn("written by another version"));
        }
        Ok(Self {
            bytes,
            head,
            sections,
        })
    }

    /// Makes the image of `head` and the sections that `put` appends, in their order.
    pub(super) fn write(head: Head, put: impl FnOnce(&mut Vec<u8>)) -> Self {
        let sections = Sections::of(&head);
        let mut image = Vec::with_capacity(sections.end);
        image.resize(SUM_LEN, 0);
        head.put(&mut image);
        put(&mut image);
        assert_eq!(image.len(), sections.end, "the head counts all sections");
        let sum: [u8; SUM_LEN] = Sha256::digest(&image[SUM_LEN..]).into();
        image[..SUM_LEN].copy_from_slice(&sum);
        Self {
            bytes: Box::new(image),
            head,
            sections,
        }
    }

    /// Lets go of the pages of a mapped file that were looked at. The file is there, and mostly in
    /// the page cache: whoever looks again finds them.
    pub fn let_go(&self) {
        self.bytes.let_go();
    }

    /// The image, to be written to a file.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Checksum of everything that the image says: two indexes with the same one are the same.
    pub fn checksum(&self) -> &[u8] {
        &self.bytes[..SUM_LEN]
    }

    /// Digest of the layer that the index describes.
    pub fn layer(&self) -> Digest {
        Digest::from_bytes(self.head.layer)
    }

    /// Digest of the TOC that the index was made from.
    pub fn toc(&self) -> Digest {
        Digest::from_bytes(self.head.toc)
    }

    /// Length in bytes of the blobs that hold the chunks, together.
    pub fn blob_size(&self) -> u64 {
        self.head.blob_size
    }

    /// Digests and lengths of the blobs that hold the chunks. Mostly that is the layer itself; a
    /// format that describes a whole image in one layer refers to several.
    pub fn blobs(&self) -> impl Iterator<Item = (Digest, u64)> + '_ {
        (0..self.head.blobs).map(|id| {
            let entry: BlobEntry = self.record(self.sections.blobs, id);
            (Digest::from_bytes(entry.digest), entry.size)
        })
    }

    /// Where a unit begins if all blobs lay one after the other.
    pub fn place_among_blobs(&self, unit: &Unit) -> u64 {
        let entry: BlobEntry = self.record(self.sections.blobs, u32::from(unit.blob));
        entry.before + unit.offset
    }

    /// The units that hold any of the `len` packed bytes at `offset` of all blobs one after the
    /// other.
    pub fn units_among_blobs(&self, offset: u64, len: u64) -> Range<u32> {
        let end = offset.saturating_add(len);
        let first = partition(0..self.units(), |id| {
            let unit = self.unit(id);
            self.place_among_blobs(&unit) + u64::from(unit.len) <= offset
        });
        let last = partition(first..self.units(), |id| {
            self.place_among_blobs(&self.unit(id)) < end
        });
        first..last
    }

    /// How chunks are digested.
    pub fn algorithm(&self) -> Algorithm {
        Algorithm::from_byte(self.head.algorithm)
    }

    /// Bytes of all files together, unpacked.
    pub fn data_size(&self) -> u64 {
        self.head.data_size
    }

    /// What to fetch first.
    pub fn prefetch(&self) -> Prefetch {
        if self.head.prefetch_list > 0 {
            Prefetch::Listed
        } else if self.head.prefetch_known == 0 {
            Prefetch::Unknown
        } else {
            Prefetch::Units(self.head.prefetch_units)
        }
    }

    /// The units that are wanted first, in their order.
    pub fn prefetch_units(&self) -> impl Iterator<Item = u32> + '_ {
        let first = match self.prefetch() {
            Prefetch::Units(count) => count,
            Prefetch::Unknown | Prefetch::Listed => 0,
        };
        let start = self.sections.prefetch;
        let list = (0..self.head.prefetch_list as usize)
            .map(move |i| super::layout::Field::get(&self.bytes[start + i * 4..]));
        (0..first).chain(list)
    }

    /// Number of inodes; inode 0 is the root directory.
    pub fn inodes(&self) -> u32 {
        self.head.inodes
    }

    /// Number of chunks.
    pub fn chunks(&self) -> u32 {
        self.head.chunks
    }

    /// Number of units.
    pub fn units(&self) -> u32 {
        self.head.units
    }

    /// Number of files of the store that hold the layer's data; 0 is the shared one.
    pub fn segments(&self) -> u32 {
        self.head.segments
    }

    /// Inode `id`, which must be below [`LayerIndex::inodes`].
    // Who looks at one field decodes no other.
    #[inline]
    pub fn inode(&self, id: u32) -> Inode {
        self.record(self.sections.inodes, id)
    }

    /// Chunk `id`, which must be below [`LayerIndex::chunks`].
    pub fn chunk(&self, id: u32) -> Chunk {
        self.record(self.sections.chunks, id)
    }

    /// Unit `id`, in the blobs' order, which must be below [`LayerIndex::units`].
    pub fn unit(&self, id: u32) -> Unit {
        self.record(self.sections.units, id)
    }

    /// What verifies unit `id` and tells how to begin it; `None` means that its chunks have digests.
    pub fn span(&self, id: u32) -> Option<Span> {
        (id < self.head.spans).then(|| self.record(self.sections.spans, id))
    }

    /// What was unpacked last before a span, as [`super::SpanSpec::window`] holds it.
    pub fn window(&self, span: &Span) -> &[u8] {
        let start = self.sections.windows + span.window as usize;
        &self.bytes[start..start + span.window_len as usize]
    }

    /// Length in bytes of a file of the store.
    pub fn segment_len(&self, id: u32) -> u64 {
        super::layout::Field::get(&self.bytes[self.sections.segments + id as usize * 8..])
    }

    /// The chunks that come out of a unit.
    pub fn unit_chunks(&self, unit: &Unit) -> impl Iterator<Item = u32> + '_ {
        let start = self.sections.unit_chunks;
        (unit.first..unit.first + unit.count)
            .map(move |i| super::layout::Field::get(&self.bytes[start + i as usize * 4..]))
    }

    /// The chunks of a regular file, in its order.
    pub fn file_chunks(&self, file: &Inode) -> Range<u32> {
        file.data_first..file.data_first + file.data_count
    }

    /// The chunks of a regular file that hold any of the `len` bytes at `offset`.
    pub fn chunks_at(&self, file: &Inode, offset: u64, len: u64) -> Range<u32> {
        let all = self.file_chunks(file);
        let end = offset.saturating_add(len);
        let first = partition(all.clone(), |id| {
            let chunk = self.chunk(id);
            chunk.file_offset + u64::from(chunk.len) <= offset
        });
        let last = partition(first..all.end, |id| self.chunk(id).file_offset < end);
        first..last
    }

    /// Where in its segment a chunk begins.
    pub fn position(&self, chunk: &Chunk) -> (u32, u64) {
        let file = self.inode(chunk.inode);
        (file.segment, file.base + chunk.file_offset)
    }

    /// The entries of a directory, sorted by name.
    pub(super) fn dirents(directory: &Inode) -> Range<u32> {
        directory.data_first..directory.data_first + directory.data_count
    }

    pub(super) fn dirent(&self, id: u32) -> Dirent {
        self.record(self.sections.dirents, id)
    }

    pub(super) fn dirent_name(&self, dirent: &Dirent) -> &[u8] {
        self.string(dirent.name, u32::from(dirent.name_len))
    }

    /// The target of a symbolic link.
    pub fn link_target(&self, link: &Inode) -> &[u8] {
        self.string(link.data_first, link.data_count)
    }

    /// Names and values of the extended attributes of an inode, without those that are the host's
    /// to give: an image's `trusted.overlay.redirect` would be obeyed by the overlayfs on top. What
    /// containerd unpacks has none either.
    pub fn xattrs(&self, inode: &Inode) -> impl Iterator<Item = (&[u8], &[u8])> + '_ {
        let all = (inode.xattr_first..inode.xattr_first + inode.xattr_count).map(|id| {
            let xattr: Xattr = self.record(self.sections.xattrs, id);
            (
                self.string(xattr.name, u32::from(xattr.name_len)),
                self.string(xattr.value, xattr.value_len),
            )
        });
        all.filter(|(name, _)| !name.starts_with(b"trusted."))
    }

    pub(super) fn string(&self, offset: u32, len: u32) -> &[u8] {
        let start = self.sections.strings + offset as usize;
        &self.bytes[start..start + len as usize]
    }

    #[inline]
    fn record<R: Record>(&self, section: usize, id: u32) -> R {
        R::get(&self.bytes[section + id as usize * R::LEN..])
    }
}

impl std::fmt::Debug for LayerIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerIndex")
            .field("layer", &self.layer())
            .field("inodes", &self.inodes())
            .field("chunks", &self.chunks())
            .finish_non_exhaustive()
    }
}

/// The first of a range for which `before` is false; it is true for all that come earlier.
fn partition(range: Range<u32>, before: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_found_wherever_it_lies() {
        for wanted in 0..=9 {
            assert_eq!(partition(0..9, |unit| unit < wanted), wanted);
        }
    }
}
