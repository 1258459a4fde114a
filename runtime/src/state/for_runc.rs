//! What runc 1.3 looks for in a container's record, so that its `list`, `state`, `ps`, `kill` and
//! `delete` work on containers of ours: operators who have switched go on as they are used to.
//! Its other commands need more than is here, and fail.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::runtime::Hook;
use serde::Serialize;

use super::record::Record;

/// A record with what runc looks for beside it.
#[derive(Serialize)]
pub(super) struct ForRunc<'a> {
    #[serde(flatten)]
    record: &'a Record,
    init_process_pid: i32,
    init_process_start: u64,
    /// By controllers with version 1, under no name with version 2.
    cgroup_paths: BTreeMap<&'static str, &'a Path>,
    config: Config<'a>,
}

/// The part of runc's own form of a configuration that it uses on existing containers.
#[derive(Serialize)]
struct Config<'a> {
    rootfs: &'a Path,
    namespaces: Vec<Namespace>,
    labels: [String; 1],
    /// Absent for a container without a cgroup of its own: runc would take the caller's for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroups: Option<Cgroups<'a>>,
    seccomp: Seccomp,
    #[serde(rename = "Hooks", skip_serializing_if = "BTreeMap::is_empty")]
    hooks: BTreeMap<&'static str, Vec<Command<'a>>>,
}

#[derive(Serialize)]
struct Namespace {
    r#type: &'static str,
}

/// Without the limits, whose change would have runc write a record of its own over ours.
#[derive(Serialize)]
struct Cgroups<'a> {
    path: &'a Path,
}

/// The rest of the configuration is not here, so that what runc's `exec` started would be less
/// confined than init: with this action, which there is not, it starts nothing.
#[derive(Serialize)]
struct Seccomp {
    default_action: i32,
}

/// A hook.
#[derive(Serialize)]
struct Command<'a> {
    path: &'a Path,
    args: &'a Option<Vec<String>>,
    env: &'a Option<Vec<String>>,
    /// In nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<i64>,
}

impl<'a> Command<'a> {
    fn of(hook: &'a Hook) -> Self {
        Self {
            path: hook.path(),
            args: hook.args(),
            env: hook.env(),
            timeout: hook
                .timeout()
                .map(|seconds| seconds.saturating_mul(1_000_000_000)),
        }
    }
}

impl<'a> ForRunc<'a> {
    pub(super) fn of(record: &'a Record) -> Self {
        let poststop: Vec<_> = record.poststop.iter().map(Command::of).collect();
        let cgroup = Some(&*record.cgroup).filter(|path| !path.as_os_str().is_empty());
        let named = cgroup.map(|path| ("", path));
        Self {
            record,
            init_process_pid: record.pid,
            init_process_start: record.start_time,
            cgroup_paths: named.into_iter().collect(),
            config: Config {
                rootfs: &record.rootfs,
                namespaces: record
                    .private_pids
                    .then_some(Namespace { r#type: "NEWPID" })
                    .into_iter()
                    .collect(),
                labels: [format!("bundle={}", record.bundle.display())],
                cgroups: cgroup.map(|path| Cgroups { path }),
                seccomp: Seccomp { default_action: -1 },
                hooks: (!poststop.is_empty())
                    .then_some(("poststop", poststop))
                    .into_iter()
                    .collect(),
            },
        }
    }
}
