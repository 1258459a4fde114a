//! What needs a whole machine: systemd, every cgroup controller, security modules.

mod boot;
mod cgroups;
mod checkpoint;
mod clients;
mod footprint;
mod kernel_mounts;
mod labels;
mod lacking;
mod memory;
mod namespaces;
mod outer;
mod pods;
mod tasks;
mod verity;
