//! The snapshots of this node: records, layer directories and their state transitions.

pub mod catalog;
mod database;
pub mod dirs;
pub mod filter;
pub mod mounts;
pub mod record;
pub mod usage;
