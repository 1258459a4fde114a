//! containerd shim v2 that runs containers with the xebec runtime as a library.
//!
//! [`bootstrap`] finds or makes the shim of a container; [`daemon`] serves the Task API
//! ([`task`]) over [`ttrpc`] and publishes [`events`]; [`engine`] is who runs containers, with
//! the [`spawner`] process for what must fork; [`io`] copies streams; [`mounts`] makes the
//! rootfs; [`delete`] cleans up after a shim that died.
//!
//! The shim never executes itself, has one event loop and no thread per container, and writes
//! nothing to the standard streams that containerd gave it but the answer.

pub mod args;
pub mod bootstrap;
pub mod daemon;
pub mod delete;
pub mod engine;
pub mod error;
pub mod events;
pub mod info;
pub mod io;
pub mod log;
pub mod mounts;
pub mod options;
pub mod spawner;
pub mod sys;
pub mod task;
pub mod ttrpc;
