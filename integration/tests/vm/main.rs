//! What needs a whole machine: systemd, every cgroup controller, security modules.

mod memory;
