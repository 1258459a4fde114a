//! The container's file system tree, built by descriptor below one root.
//!
//! [`HostTrees`] is the parent's part: it clones what comes from the host. Everything else runs in
//! the child, allocates nothing, and opens every path with `openat2` inside the root, so that no
//! symlink of an image can lead a mount, a node or a mask astray.

mod by_mount;
mod carry;
mod console;
mod copyup;
mod devices;
mod host;
mod masks;
mod mounts;
mod namespace;
mod pivot;
mod refusals;
mod resolve;
mod shared;

pub(crate) use carry::{receive_trees, send_trees};
pub(crate) use console::{keep_line_ends, open_terminal, send_descriptor, send_terminal};
pub(crate) use copyup::copy_filesystem;
pub(crate) use devices::fill_dev;
pub(crate) use host::mapped_clone;
pub(crate) use host::{HostPart, HostTrees, RootTree, open_parts};
pub(crate) use masks::{hide_paths, host_null, protect_paths};
pub(crate) use mounts::{mount_all, seal, unmount_at, write_sysctls};
pub(crate) use namespace::HostPaths;
pub(crate) use pivot::{attach, enter, make_private};
pub(crate) use refusals::{open_in_proc, trusted_proc};
pub(crate) use resolve::{Want, open_inside, open_target};
pub(crate) use shared::{mount_id, unmount_root};
