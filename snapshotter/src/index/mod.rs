//! `LayerIndex`, the one form that every lazy format is parsed into, and the merge of a chain.
//!
//! A [`LayerIndex`] is a flat byte image of fixed-size little-endian records behind accessors. The
//! same bytes lie in memory after parsing and in the store's file afterwards, so opening a layer
//! again is mapping a file; what is never looked at (chunk digests of complete files) never
//! becomes resident. [`LayerBuilder`] makes one and refuses whatever a hostile layer can hold;
//! [`Tree`] merges a chain of them, whiteouts resolved, for one mount. Nothing here does I/O
//! besides looking at a mapped file.

mod builder;
mod content;
mod file_map;
mod layer;
mod layout;
mod name;
mod place;
mod span;
mod tree;
mod walk;

pub use builder::{ChunkSpec, FileId, LayerBuilder, Meta};
pub use file_map::{FileMap, Piece};
pub use layer::{Image, LayerIndex, Prefetch};
pub use layout::{Chunk, Codec, Dirent, Inode, Kind, Span, Unit};
pub use span::SpanSpec;
pub use tree::{Child, Node, Tree};
pub use walk::Listed;

/// Most entries of one layer; more are refused rather than held in memory.
pub const MAX_ENTRIES: usize = 10_000_000;
/// Longest chunk in bytes, unpacked: a chunk is verified in memory before it is written.
pub const MAX_CHUNK: u64 = 64 << 20;
/// Most bytes a unit may unpack to before the end of its last chunk, and most it may have packed:
/// bounds the memory that one read can cost.
pub const MAX_UNIT: u64 = 128 << 20;
/// Most bytes of a layer's files together, unpacked.
pub const MAX_DATA: u64 = 16 << 40;
/// Files of at least this size become objects of their own in the store; see [`crate::store`].
pub const OBJECT_MIN: u64 = 128 << 10;
/// Most objects of one layer; the fewer are left, the larger a file must be to become one.
pub const MAX_OBJECTS: usize = 4096;
/// Alignment of each file in the store's files: the page and EROFS block size.
pub const ALIGN: u64 = 4096;

#[cfg(test)]
mod tests;
