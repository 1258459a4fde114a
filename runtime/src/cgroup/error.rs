//! What can go wrong with a container's cgroup, each with the file or field it happened on.

use std::io;
use std::path::PathBuf;

use super::Controllers;
use crate::error::words;

/// Result of every operation in [`crate::cgroup`].
pub type Result<T> = std::result::Result<T, CgroupError>;

/// An error on a container's cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup2 file system is mounted where the runtime could find it.
    #[error(
        "no cgroup2 file system is mounted (looked at /sys/fs/cgroup, /sys/fs/cgroup/unified and /proc/self/mountinfo)"
    )]
    NoHierarchy,
    /// `linux.cgroupsPath` cannot be used.
    #[error("linux.cgroupsPath {path:?}: {reason}")]
    Path {
        /// The path as the spec has it.
        path: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// A system call on a cgroup file or directory failed.
    #[error("{action} {path}: {reason}", path = path.display(), reason = words(source))]
    Io {
        /// What was attempted, as a verb ("read", "write \"1\" to").
        action: String,
        /// The file or directory it was attempted on.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The cgroup of a new container exists and has processes (runc's wording).
    #[error("container's cgroup is not empty: {count} process(es) found")]
    NotEmpty {
        /// Number of processes found below the cgroup.
        count: usize,
    },
    /// The cgroup of a new container exists and is frozen (runc's wording).
    #[error("container's cgroup unexpectedly frozen")]
    UnexpectedlyFrozen,
    /// Controllers cannot be enabled because a cgroup on the way has processes of its own.
    #[error("cannot enable {controllers} below {path}: it has processes of its own (cgroup v2 allows no processes beside child cgroups with controllers)", path = path.display())]
    InternalProcesses {
        /// The controllers that were asked for.
        controllers: Controllers,
        /// The cgroup that has processes.
        path: PathBuf,
    },
    /// A threaded cgroup cannot hold the container.
    #[error("cannot enter cgroup {path}: it is {mode:?}", path = path.display())]
    Threaded {
        /// The cgroup.
        path: PathBuf,
        /// Content of `cgroup.type`.
        mode: String,
    },
    /// A limit was asked for whose controller this host does not offer.
    #[error(
        "{field}: cgroup controller {controller:?} is not available (limits that cannot be applied are an error; --ignore-missing-controllers makes them a warning)"
    )]
    ControllerMissing {
        /// The spec field that asks for the limit.
        field: String,
        /// The controller that would enforce it.
        controller: String,
    },
    /// A value of `linux.resources` is invalid.
    #[error("{field}: {reason}")]
    Invalid {
        /// The spec field.
        field: String,
        /// Why the value is refused.
        reason: String,
    },
    /// The kernel refused a value.
    #[error("{field}: write {value:?} to {path}: {reason}", path = path.display(), reason = words(source))]
    Apply {
        /// The spec field the value came from.
        field: String,
        /// What was written.
        value: String,
        /// The cgroup file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A new memory limit is below what the container uses now.
    #[error("linux.resources.memory.{field}: rejecting {what} limit {limit} <= usage {usage}",
        what = if *field == "swap" { "memory+swap" } else { "memory" })]
    LimitBelowUsage {
        /// `limit` or `swap`.
        field: &'static str,
        /// The limit asked for, in bytes.
        limit: u64,
        /// `memory.current`, in bytes.
        usage: u64,
    },
    /// A container needs a cgroup that its caller may not make (runc's wording).
    #[error(
        "rootless needs no limits + no cgrouppath when no permission is granted for cgroups: {0}"
    )]
    NoPermission(Box<CgroupError>),
    /// Scopes were asked for and systemd does not run this system (runc's wording).
    #[error("systemd not running on this host, cannot use systemd cgroups manager")]
    NoSystemd,
    /// systemd refused something, or could not be asked.
    #[error("systemd: {action}: {reason}")]
    Systemd {
        /// What was attempted on which unit.
        action: String,
        /// systemd's answer, with the name of its error.
        reason: String,
    },
    /// A cgroup file does not have the format the kernel documents.
    #[error("parse {path}: {reason}", path = path.display())]
    Parse {
        /// The cgroup file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A state was not reached in time.
    #[error("cgroup {path}: not {state} after {seconds} s", path = path.display())]
    Timeout {
        /// The cgroup.
        path: PathBuf,
        /// The state waited for ("frozen", "empty").
        state: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// The device program was refused by the kernel.
    #[error("linux.resources.devices: {action} on {path}: {reason}", path = path.display(), reason = words(source))]
    DeviceProgram {
        /// `load`, `attach`, `query` or `detach`.
        action: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl CgroupError {
    /// systemd has a unit of that name already.
    pub(crate) fn is_unit_exists(&self) -> bool {
        self.is_answer("org.freedesktop.systemd1.UnitExists")
    }

    /// systemd has no unit of that name (any more).
    pub(super) fn is_no_such_unit(&self) -> bool {
        self.is_answer("org.freedesktop.systemd1.NoSuchUnit")
    }

    fn is_answer(&self, name: &str) -> bool {
        matches!(self, Self::Systemd { reason, .. } if reason.ends_with(&format!("({name})")))
    }
}
