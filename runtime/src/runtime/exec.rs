//! A further process in a running container.

use std::ffi::CString;

use super::create::write_pid_file;
use super::lifecycle::init_of;
use super::{Runtime, pidfd};
use crate::caller::Caller;
use crate::cgroup::{Cgroup, CgroupPath};
use crate::error::{Error, Result};
use crate::launch::{ChildStdio, ExecJob, FinishJob, connect_console, launch_exec};
use crate::plan::ProcessPlan;
use crate::request::{ExecRequest, Launched};
use crate::seccomp::Filter;
use crate::spec::check_process;
use crate::state::{Record, StateDir, Status};

pub(super) fn exec(runtime: &Runtime, request: ExecRequest) -> Result<Launched> {
    let dir = StateDir::open(&runtime.options.root, &request.id)?;
    let record = dir.record()?;
    match dir.status(&record) {
        Status::Running | Status::Created => {}
        Status::Paused if request.ignore_paused => {}
        Status::Paused => {
            return Err(Error::Status(
                "exec failed: cannot exec in a paused container (use --ignore-paused to override)"
                    .into(),
            ));
        }
        Status::Stopped | Status::Creating => {
            return Err(Error::Status(
                "exec failed: cannot exec in a stopped container".into(),
            ));
        }
    }
    let refuse = |field: &str, reason: String| Error::Spec {
        file: "process".to_owned(),
        field: field.to_owned(),
        reason,
    };
    check_process(&request.process).map_err(|(field, reason)| refuse(field, reason))?;
    let process =
        ProcessPlan::from_spec(&request.process).map_err(|e| refuse(&e.field, e.reason))?;
    let init = init_of(&record)?.ok_or(Error::NotRunning)?;
    let receiver = pidfd::connect(request.pidfd_socket.as_deref())?;
    let cgroup = cgroup_for(&record, request.cgroup.as_deref())?;
    let mut job = ExecJob {
        namespaces: record.namespaces,
        init,
        privileged: Caller::probe()?.privileged,
        keyring: record.keyring.then(|| keyring_name(&record)),
        finish: FinishJob {
            stdio: ChildStdio::new(request.stdio)?,
            console: connect_console(request.console, process.terminal)?,
            gate: None,
            filter: filter(&dir)?,
            notify: None,
            preserve_fds: request.preserve_fds,
            late_rlimits: record.namespaces & libc::CLONE_NEWUSER as u64 == 0,
            proc: None,
        },
        process,
    };
    let launched = match launch_exec(&mut job, cgroup.fd(), request.reparent) {
        // The container's processes have moved to cgroups of their own below, so that this one may
        // have none any more: the place is where init went.
        Err(Error::Os { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
            launch_exec(&mut job, cgroup_of_init(&record)?.fd(), request.reparent)?
        }
        result => result?,
    };
    pidfd::send(receiver, &launched)?;
    write_pid_file(request.pid_file.as_deref(), launched.pid)?;
    Ok(launched)
}

fn keyring_name(record: &Record) -> CString {
    // A container's id has no zero byte.
    CString::new(format!("_ses.{}", record.id)).unwrap_or_default()
}

fn filter(dir: &StateDir) -> Result<Option<Filter>> {
    let Some(program) = dir.read_seccomp()? else {
        return Ok(None);
    };
    Filter::from_bytes(&program)
        .map(Some)
        .ok_or_else(|| Error::DamagedState {
            path: dir.seccomp_path(),
            reason: "not a seccomp program".to_owned(),
        })
}

/// The cgroup that init is in now (`cgroups(7)`: the line of version 2 begins with `0::`).
fn cgroup_of_init(record: &Record) -> Result<Cgroup> {
    let file = format!("/proc/{}/cgroup", record.pid);
    let text = std::fs::read_to_string(&file).map_err(Error::file("read", &file))?;
    let inner = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .ok_or(Error::NotRunning)?;
    let mount = CgroupPath::from_full(&record.cgroup)?.mount().join(inner);
    Ok(Cgroup::open(&CgroupPath::from_full(&mount)?)?)
}

/// The container's cgroup, or one below it that exists already.
fn cgroup_for(record: &Record, below: Option<&str>) -> Result<Cgroup> {
    let mut full = record.cgroup.clone();
    if let Some(below) = below {
        full.push(below.trim_start_matches('/'));
        if !full.starts_with(&record.cgroup) || below.split('/').any(|part| part == "..") {
            return Err(Error::InvalidArgument(format!(
                "{below:?} is not a sub cgroup path of the container"
            )));
        }
    }
    Ok(Cgroup::open(&CgroupPath::from_full(&full)?)?)
}
