//! containerd shim v2 that runs containers with the xebec runtime as a library.
//!
//! [`bootstrap`] finds or makes the shim of a container. A shim is a [`supervisor`], which holds
//! what must not be lost, launches processes and copies their streams, and a [`worker`], which may
//! be lost and serves the Task API ([`task`]) over [`ttrpc`] and publishes [`events`] through its
//! [`link`] to the supervisor. [`engine`] is who runs containers; [`io`] opens streams; [`mounts`]
//! makes the rootfs; [`delete`] cleans up after a shim that died; [`debug`] shows what a shim
//! knows, and [`spans`] tells a collector of calls.
//!
//! The shim never executes itself, but for a server of clones' [`pages`], has one event loop and no
//! thread per container, and writes nothing to the standard streams that containerd gave it but the
//! answer.

pub mod args;
mod blocking;
pub mod bootstrap;
pub mod debug;
pub mod delete;
pub mod engine;
pub mod error;
pub mod events;
pub mod info;
pub mod io;
pub mod link;
pub mod log;
pub mod mounts;
pub mod options;
pub mod pages;
pub mod spans;
pub mod supervisor;
pub mod sys;
pub mod task;
pub mod trace;
pub mod ttrpc;
pub mod worker;
