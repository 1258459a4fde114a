//! What needs a whole machine: systemd, every cgroup controller, security modules.

mod labels;
mod clients;
mod memory;
