//! A container's cgroup: version 2 only, by file descriptor.
//!
//! [`CgroupPath`] says where it is, [`Cgroup`] is the directory, held open from its creation so
//! that the container can be cloned into it, [`ResourcePlan`] is what `linux.resources` asks for,
//! `systemd` has the directory made as a scope.
//! Controllers of version 1 hierarchies are never touched.

mod apply;
mod controllers;
pub mod devices;
mod dir;
mod error;
mod files;
mod path;
mod plan;
mod state;
mod stats;
pub(crate) mod systemd;
mod watch;

pub use apply::Skipped;
pub use controllers::Controllers;
pub use dir::Cgroup;
pub use error::{CgroupError, Result};
pub use path::CgroupPath;
pub use plan::{Entry, OnRefusal, Present, ResourcePlan, UsageCheck};
pub use stats::{
    CpuStats, HugetlbStats, IoDevice, IoStats, MemoryEvents, MemoryStats, PidsStats, Pressure, Psi,
    RdmaDevice, RdmaStats, Stats,
};
pub use watch::{Event, Watch};

/// Who makes the cgroups of containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupManager {
    /// This runtime, in the file system.
    #[default]
    Cgroupfs,
    /// systemd: each container is a scope.
    Systemd,
    /// Nobody: containers stay in their caller's cgroup, without limits.
    Disabled,
}

/// What to do with a limit whose controller the host does not offer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ControllersPolicy {
    /// The limit is an error.
    #[default]
    Require,
    /// The limit is left out and reported, for development machines.
    IgnoreMissing,
}
