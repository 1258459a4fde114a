//! What may be set about output that nobody reads.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Bytes that may be kept in memory for each stream.
pub(crate) const BUFFER: RangeInclusive<u64> = 64 * 1024..=16 * 1024 * 1024;
/// Bytes that may be kept in a file for each stream.
pub(crate) const SPILL: RangeInclusive<u64> = 64 * 1024..=1024 * 1024 * 1024;
/// What is kept in memory if nothing else is set.
pub(crate) const DEFAULT_BUFFER: u64 = 1024 * 1024;
/// What is kept in a file if nothing else is set.
pub(crate) const DEFAULT_SPILL: u64 = 64 * 1024 * 1024;

/// What happens to unread output once its buffer is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The container waits.
    #[default]
    Block,
    /// The oldest of it is dropped, and the reader is told how much.
    Drop,
    /// It goes to a file; once that is full too, the container waits.
    Spill,
}

/// How much unread output is kept of each stream, and what happens to more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overflow {
    /// What happens to more.
    pub policy: Policy,
    /// Bytes in memory.
    pub buffer: usize,
    /// Bytes in a file, with [`Policy::Spill`].
    pub spill: u64,
}
