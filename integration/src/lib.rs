//! Test hosts, image corpus, demo and benchmarks of xebec.
//!
//! What a test or a benchmark needs is here and is real: a container host with containerd, our
//! snapshotter and a registry ([`hosts::NativeHost`]: namespaces of this machine, full speed;
//! [`hosts::VmHost`]: an emulated machine with systemd and every cgroup controller), images made
//! of Debian's packages ([`corpus`]), and a network that is slow on purpose ([`proxy`]).
//!
//! Each host belongs to a *keeper* process that reads a pipe from whoever started the host. When
//! that pipe closes, for whatever reason, the keeper ends every process of the host and removes
//! its cgroups and files; should the keeper die as well, the kernel ends the host and the next
//! start sweeps up the files. This crate never mounts, configures or installs anything on the
//! machine itself, except packages by `integration setup`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bench;
pub mod bundle;
pub mod cli;
pub mod collector;
pub mod command;
pub mod corpus;
pub mod cri;
pub mod ctr;
pub mod demo;
pub mod error;
pub mod events;
mod grpc;
mod hash;
pub mod hosts;
pub mod leftovers;
pub mod listing;
pub mod lock;
pub mod order;
pub mod paths;
pub mod progress;
pub mod proxy;
pub mod random;
pub mod seccomp;
pub mod setup;
pub mod shim;
mod sys;

pub use error::{Error, Result};
