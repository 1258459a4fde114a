//! The library behind `xebec-snapshotter`, a containerd proxy snapshotter that lets containers
//! start before their image is on the node.
//!
//! It serves containerd's snapshots API, keeps ordinary layers as containerd's own overlayfs
//! snapshotter does, and mounts lazy layers whose bytes are fetched, verified and stored when they
//! are first read. It also converts images into the formats that can be read that way.
//!
//! It never runs a container, never talks to containerd's content store on the read path, and
//! never hands out a byte whose digest was not checked.

mod channel;
pub mod cli;
pub mod config;
pub mod convert;
pub mod daemon;
pub mod digest;
pub mod direct;
pub mod discover;
pub mod erofs;
pub mod error;
pub mod fetch;
pub mod fill;
pub mod formats;
pub mod index;
pub mod ingest;
pub mod keeper;
pub mod mount;
pub mod profile;
mod rootless;
pub mod service;
pub mod snapshots;
pub mod store;
mod sys;
pub mod timeline;

pub use error::{Error, Result};
