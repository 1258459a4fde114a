//! Layer formats: bytes to [`LayerIndex`](crate::index::LayerIndex), one module a format.
//!
//! Parsers are pure: they get bytes and give an index or a [`Flaw`]; they never read a file, a
//! registry or the clock, and their memory and time are bounded by limits stated beside them.

use bstr::ByteSlice;

use crate::error::Error;

pub mod estargz;
pub mod nydus;
pub mod soci;
pub mod timestamp;
pub mod zstdchunked;

/// What is wrong with the bytes of a layer, naming the entry or field; the caller knows the layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Flaw(String);

impl Flaw {
    /// States the rule that is broken and by what.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// States a broken rule about the entry `name`, which may be hostile and is quoted.
    pub fn entry(name: impl AsRef<[u8]>, reason: impl std::fmt::Display) -> Self {
        const SHOWN: usize = 120;
        let name = name.as_ref();
        let end = name.char_indices().nth(SHOWN);
        let shown = name[..end.map_or(name.len(), |(start, ..)| start)].as_bstr();
        let dots = if shown.len() < name.len() { "…" } else { "" };
        Self(format!("entry {shown:?}{dots}: {reason}"))
    }

    /// The same as the crate's error about `layer`.
    pub fn of(self, layer: impl std::fmt::Display) -> Error {
        Error::Malformed {
            what: format!("layer {layer}"),
            reason: self.0,
        }
    }
}
