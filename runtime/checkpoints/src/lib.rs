//! Checkpoints that are kept: what becomes of CRIU's image files once they are written, and before
//! they are read again.
//!
//! [`archive`] reads and writes the tar files that containerd, CRI-O and podman exchange,
//! [`inspect`] tells what is in one, [`import`] makes a bundle of it, [`export`]
//! makes one, [`oci`] has them as images, as [`Tree`] has any directory. [`PrivateDir`] is the memory into which CRIU dumps what must
//! reach no disk in the open, [`sealed`] makes one encrypted file of it, and [`store`] keeps many
//! checkpoints, sealed or not, that share what they have in common.
//!
//! Whatever comes from an archive was written by somebody else: names, sizes and contents are
//! checked before anything is made of them, and a refusal says which member it is about. The crate
//! never starts a process, never talks to CRIU or to a registry, and knows no runtime.

pub mod archive;
mod beneath;
mod error;
pub mod export;
mod files;
mod flat;
mod images;
pub mod import;
pub mod inspect;
mod keys;
mod memory;
mod metadata;
pub mod oci;
pub mod sealed;
pub mod store;
mod tree;

pub use beneath::{Beneath, Room};
pub use error::{Error, Result};
pub use files::Files;
pub use keys::{Identities, Recipients};
pub use memory::PrivateDir;
pub use metadata::{ConfigDump, config_of};
pub use tree::Tree;
