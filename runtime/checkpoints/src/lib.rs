//! Checkpoints that are kept: what becomes of CRIU's image files once they are written, and before
//! they are read again.
//!
//! [`archive`] reads and writes the tar files that containerd, CRI-O and podman exchange,
//! [`inspect`] tells what is in one, [`import`] makes a bundle of it, [`export`]
//! makes one, [`oci`] has them as images.
//!
//! Whatever comes from an archive was written by somebody else: names, sizes and contents are
//! checked before anything is made of them, and a refusal says which member it is about. The crate
//! never starts a process, never talks to CRIU or to a registry, and knows no runtime.

pub mod archive;
mod beneath;
mod error;
pub mod export;
mod files;
mod images;
pub mod import;
pub mod inspect;
mod metadata;
pub mod oci;

pub use beneath::{Beneath, Room};
pub use error::{Error, Result};
pub use files::Files;
pub use metadata::ConfigDump;
