//! The archives of container engines: a tar file, plain or compressed, with CRIU's image files in
//! `checkpoint/`, the engine's and the container's configuration beside it, and what the container
//! had changed in its root file system.

mod compression;
mod members;
mod name;
mod pack;
#[cfg(test)]
mod tests;
mod unpack;

pub use compression::{Compression, decompressed};
pub use members::{Kind, Limits, Member, read_members};
pub use name::archive_name;
pub(crate) use name::relative;
pub use pack::Packer;
pub use unpack::unpack;

/// Directory of CRIU's image files.
pub const CHECKPOINT: &str = "checkpoint";
/// The engine's own configuration.
pub const CONFIG_DUMP: &str = "config.dump";
/// The container's `config.json`.
pub const SPEC_DUMP: &str = "spec.dump";
/// CRI's status of the container.
pub const STATUS_DUMP: &str = "status.dump";
/// The network that podman had set up.
pub const NETWORK_STATUS: &str = "network.status";
/// What the container has added or changed in its root file system.
pub const ROOTFS_DIFF: &str = "rootfs-diff.tar";
/// What the container has removed from it: a JSON list of paths.
pub const DELETED_FILES: &str = "deleted.files";
/// What was in `/dev/shm` when the engine had bound it there.
pub const DEVSHM: &str = "devshm-checkpoint.tar";
/// CRI-O's list of what the container had bound.
pub const BIND_MOUNTS: &str = "bind.mounts";
/// CRIU's log of the dump.
pub const DUMP_LOG: &str = "dump.log";
/// CRIU's statistics of the dump.
pub const STATS_DUMP: &str = "stats-dump";
