//! What a container reads in its first seconds, so that the next start need not wait for it.
//!
//! A [`Recording`] notes, for a mounted chain of layers, which packed bytes were needed first and
//! when; whoever serves reads feeds it through [`crate::fill::Filler::touch`]. At the end it becomes
//! a [`Profile`], which is merged with what earlier runs left in the [`Profiles`] of this node. When
//! layers of that chain are asked for again, here or on a node that was given the profile,
//! [`crate::fill::Plan`] fetches exactly those bytes, in their order, before anyone asks.
//!
//! A profile names byte ranges of blobs, not files or chunks: it holds for every way of indexing
//! the same blobs. It is a hint and nothing more; what it makes us fetch is verified like all else.

mod directory;
mod record;
mod recorder;
pub mod remote;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use directory::Profiles;
pub use record::Recording;
pub use recorder::Recorder;

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};

/// Most ranges of one profile: more than any start reads, and bounds what a foreign one costs.
pub const MAX_READS: usize = 200_000;
/// Longest JSON document that is read as a profile.
pub const MAX_LEN: usize = 16 << 20;
/// The version of the format that is written and read.
const VERSION: u32 = 1;

/// One range that was needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(usize, u64, u64, u32)", into = "(usize, u64, u64, u32)")]
pub struct Read {
    /// Number of the layer, the bottom one being 0.
    pub layer: usize,
    /// First byte, counted over all blobs of the layer one after the other.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// Milliseconds from the first read of the container.
    pub at: u32,
}

impl From<(usize, u64, u64, u32)> for Read {
    fn from((layer, offset, len, at): (usize, u64, u64, u32)) -> Self {
        Self {
            layer,
            offset,
            len,
            at,
        }
    }
}

impl From<Read> for (usize, u64, u64, u32) {
    fn from(read: Read) -> Self {
        (read.layer, read.offset, read.len, read.at)
    }
}

/// The reads of the first seconds of an image's containers, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    version: u32,
    /// Digests of the layers' blobs, bottom first.
    layers: Vec<Digest>,
    /// How many runs it was merged from.
    runs: u32,
    reads: Vec<Read>,
}

impl Profile {
    /// The profile of one run; `reads` need not be in order.
    pub fn new(layers: Vec<Digest>, mut reads: Vec<Read>) -> Self {
        reads.sort_by_key(|read| read.at);
        reads.truncate(MAX_READS);
        Self {
            version: VERSION,
            layers,
            runs: 1,
            reads,
        }
    }

    /// Reads a JSON document; `what` names it in errors.
    pub fn parse(json: &[u8], what: &str) -> Result<Self> {
        let malformed = |reason: String| Error::Malformed {
            what: what.to_owned(),
            reason,
        };
        if json.len() > MAX_LEN {
            return Err(malformed(format!("longer than {MAX_LEN} bytes")));
        }
        let profile: Self =
            serde_json::from_slice(json).map_err(|error| malformed(error.to_string()))?;
        if profile.version != VERSION {
            return Err(malformed(format!("version {}", profile.version)));
        }
        if profile.layers.is_empty() || profile.reads.len() > MAX_READS {
            let (layers, reads) = (profile.layers.len(), profile.reads.len());
            return Err(malformed(format!("{layers} layers, {reads} reads")));
        }
        let wrong = |read: &&Read| {
            read.layer >= profile.layers.len() || read.offset.checked_add(read.len).is_none()
        };
        if let Some(read) = profile.reads.iter().find(wrong) {
            return Err(malformed(format!("{read:?} is outside of its layers")));
        }
        Ok(profile)
    }

    /// The JSON document.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| Error::Internal(error.to_string()))
    }

    /// Digests of the layers' blobs, bottom first.
    pub fn layers(&self) -> &[Digest] {
        &self.layers
    }

    /// How many runs it was merged from.
    pub fn runs(&self) -> u32 {
        self.runs
    }

    /// Every range, the one that was needed first at the beginning.
    pub fn reads(&self) -> &[Read] {
        &self.reads
    }

    /// Whether all that `other` holds is known.
    pub fn covers(&self, other: &Self) -> bool {
        let key = |read: &Read| (read.layer, read.offset, read.len);
        let known: BTreeSet<_> = self.reads.iter().map(key).collect();
        other.reads.iter().all(|read| known.contains(&key(read)))
    }

    /// Adds what another run of the same image has read. Nothing is ever dropped for not having
    /// been read again: what is local may be read without anyone seeing it.
    pub fn merge(&mut self, other: &Self) {
        debug_assert_eq!(self.layers, other.layers, "profiles of one image");
        let mut known: BTreeMap<(usize, u64, u64), u32> = BTreeMap::new();
        for read in self.reads.iter().chain(&other.reads) {
            let at = known
                .entry((read.layer, read.offset, read.len))
                .or_insert(read.at);
            *at = read.at.min(*at);
        }
        let reads = known
            .into_iter()
            .map(|((layer, offset, len), at)| (layer, offset, len, at).into());
        let runs = self.runs.saturating_add(other.runs);
        *self = Self {
            runs,
            ..Self::new(std::mem::take(&mut self.layers), reads.collect())
        };
    }
}

/// The name of a chain of layers, bottom first.
pub fn chain_name(layers: &[Digest]) -> String {
    let mut hasher = Hasher::new();
    for layer in layers {
        hasher.update(layer.as_bytes());
    }
    hasher.finish().hex()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers() -> Vec<Digest> {
        vec![Digest::of(b"base"), Digest::of(b"top")]
    }

    fn profile(reads: &[(usize, u64, u64, u32)]) -> Profile {
        Profile::new(layers(), reads.iter().map(|&read| read.into()).collect())
    }

    #[test]
    fn a_profile_comes_back_from_its_json_in_the_order_of_need() {
        let profile = profile(&[(1, 100, 50, 7), (0, 0, 10, 3)]);
        assert_eq!(profile.reads()[0].at, 3);
        let json = profile.to_json().unwrap();
        assert_eq!(Profile::parse(&json, "x").unwrap(), profile);
    }

    #[test]
    fn runs_add_up_and_the_first_need_counts() {
        let mut one = profile(&[(0, 0, 10, 3), (0, 10, 10, 9)]);
        one.merge(&profile(&[(0, 10, 10, 1), (1, 0, 5, 2)]));
        let reads: Vec<_> = one
            .reads()
            .iter()
            .copied()
            .map(<(_, _, _, _)>::from)
            .collect();
        assert_eq!(reads, [(0, 10, 10, 1), (1, 0, 5, 2), (0, 0, 10, 3)]);
        assert_eq!(one.runs(), 2);
        assert!(one.covers(&profile(&[(1, 0, 5, 70)])));
        assert!(!one.covers(&profile(&[(1, 0, 6, 2)])));
    }

    #[test]
    fn forged_profiles_are_refused() {
        let digest = Digest::of(b"x");
        let document = |version: u32, layers: &str, reads: &str| {
            format!(r#"{{"version":{version},"layers":[{layers}],"runs":1,"reads":[{reads}]}}"#)
        };
        let layer = format!("\"{digest}\"");
        assert!(Profile::parse(document(1, &layer, "[0,1,2,3]").as_bytes(), "x").is_ok());
        for (text, reason) in [
            (document(2, &layer, ""), "version 2"),
            (document(1, "", ""), "0 layers"),
            (document(1, &layer, "[1,0,1,0]"), "outside"),
            (
                document(1, &layer, "[0,18446744073709551615,1,0]"),
                "outside",
            ),
            (document(1, &layer, "[0,-1,1,0]"), "-1"),
            ("{".to_owned(), "EOF"),
            (" ".repeat(MAX_LEN + 1), "longer"),
        ] {
            let error = Profile::parse(text.as_bytes(), "of h/x").unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains(reason) && error.contains("of h/x"),
                "{error}"
            );
        }
    }
}
