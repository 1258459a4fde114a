//! A further process in a running container.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open};

use super::confinement::mover;
use super::create::{announce, check_labels, receive_terminal};
use super::lifecycle::init_of;
use super::{Runtime, pidfd};
use crate::caller::Caller;
use crate::cgroup::{Cgroup, CgroupPath};
use crate::error::{Error, Result};
use crate::launch::{
    Agent, Birth, ChildStdio, ExecJob, ExecLaunch, FinishJob, connect_console, launch_exec,
};
use crate::plan::{CapabilityPlan, KEEP_GROUPS, KeyringPlan, ProcessPlan};
use crate::request::{ExecRequest, Launched};
use crate::seccomp::Filter;
use crate::spec::check_process;
use crate::state::{Record, StateDir, Status};

pub(super) fn exec(runtime: &Runtime, mut request: ExecRequest) -> Result<Launched> {
    let dir = StateDir::open(&runtime.options.root, &request.id)?;
    let record = dir.record()?;
    check_status(dir.status(&record), request.ignore_paused)?;
    let process = plan_process(&request, &record)?;
    let receiver = pidfd::connect(request.pidfd_socket.as_deref())?;
    let agent = record
        .seccomp_agent
        .as_ref()
        .map(Agent::connect)
        .transpose()?;
    let cgroup = cgroup_for(&record, request.cgroup.as_deref())?;
    let console = std::mem::take(&mut request.console);
    let (console, terminal) = connect_console(console, process.terminal)?;
    let mut job = exec_job(&mut request, (&dir, &record), process)?;
    job.finish.console = console;
    let below = request.cgroup.as_deref().unwrap_or_default();
    let mover = mover(record.unit.as_ref(), below);
    let mut launch = ExecLaunch {
        birth: Birth {
            cgroup: cgroup.as_ref().map(Cgroup::fd),
            mover: mover.as_deref(),
            reparent: request.reparent,
        },
        on_pid: &mut |pid| match &record.resctrl {
            Some(groups) => groups.add(pid),
            None => Ok(()),
        },
        agent: agent.as_ref(),
        view: &|| record.view(dir.status(&record)),
    };
    let mut launched = match launch_exec(&mut job, &mut launch) {
        // The container's processes have moved to cgroups of their own below, so that this one may
        // have none any more: the place is where init went.
        Err(Error::Os { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
            let place = cgroup_of_init(&record)?;
            launch.birth.cgroup = Some(place.fd());
            launch_exec(&mut job, &mut launch)?
        }
        Err(_) if !record.init_is_alive() => return Err(stopped()),
        result => result?,
    };
    let pid_file = request.pid_file.as_deref();
    launched = announce(launched, receiver, pid_file, request.reparent)?;
    launched.terminal = receive_terminal(terminal);
    note(&mut launched, &job);
    launched
        .warnings
        .extend(CapabilityPlan::warnings(&request.process));
    Ok(launched)
}

/// An error in the document of the process.
fn refuse(field: &str, reason: String) -> Error {
    Error::Spec {
        file: "process".to_owned(),
        field: field.to_owned(),
        reason,
    }
}

fn plan_process(request: &ExecRequest, record: &Record) -> Result<ProcessPlan> {
    check_process(&request.process).map_err(|(field, reason)| refuse(field, reason))?;
    let mut process =
        ProcessPlan::from_spec(&request.process).map_err(|e| refuse(&e.field, e.reason))?;
    process.resize(request.console_size);
    process.keep_groups = record.annotations.contains_key(KEEP_GROUPS);
    check_labels(&process.labels)?;
    Ok(process)
}

/// What the process needs but its terminal, made before it exists.
fn exec_job(
    request: &mut ExecRequest,
    (dir, record): (&StateDir, &Record),
    process: ProcessPlan,
) -> Result<ExecJob> {
    let caller = Caller::probe()?;
    Ok(ExecJob {
        namespaces: record.namespaces,
        init: init_of(record)?.ok_or(Error::NotRunning)?,
        privileged: caller.privileged,
        keyring: record
            .keyring
            .then(|| KeyringPlan::existing(&record.id))
            .transpose()
            .map_err(|e| refuse(&e.field, e.reason))?,
        finish: FinishJob {
            stdio: ChildStdio::new(std::mem::take(&mut request.stdio))?,
            console: None,
            gate: None,
            filter: filter(dir)?,
            preserve_fds: request.preserve_fds,
            common: record.common.clone(),
            lend_descriptors: !caller.privileged,
            late_rlimits: record.namespaces & libc::CLONE_NEWUSER as u64 == 0,
            proc: None,
            default_umask: Mode::empty(),
        },
        root: root_of_init(record)?,
        process,
    })
}

/// What runc and its helper write for whoever looks for a fault.
fn note(launched: &mut Launched, job: &ExecJob) {
    launched.note_filter(job.finish.filter.as_ref().map(|filter| filter.flags));
    if let Some(cpus) = &job.process.affinity.initial {
        let note = format!("nsexec[{}]: affinity: {:#x}", launched.pid, cpus.lowest());
        launched.notes.push(note);
    }
}

/// A process can be added to a container that lives, and to a frozen one only if that is meant.
fn check_status(status: Status, ignore_paused: bool) -> Result<()> {
    let refusal = match status {
        Status::Running | Status::Created => return Ok(()),
        Status::Paused if ignore_paused => return Ok(()),
        Status::Paused => "cannot exec in a paused container (use --ignore-paused to override)",
        Status::Stopped | Status::Creating => return Err(stopped()),
    };
    Err(Error::Status(format!("exec failed: {refusal}")))
}

fn stopped() -> Error {
    Error::Status("exec failed: cannot exec in a stopped container".into())
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

/// The root of a container that has no mount namespace to enter it by.
fn root_of_init(record: &Record) -> Result<Option<OwnedFd>> {
    if record.namespaces & libc::CLONE_NEWNS as u64 != 0 {
        return Ok(None);
    }
    let path = format!("/proc/{}/root", record.pid);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(&path, flags, Mode::empty()).map_err(Error::file("open", &path))?;
    // Checked after opening: nobody else can have got the pid before.
    if record.init_is_alive() {
        Ok(Some(root))
    } else {
        Err(Error::NotRunning)
    }
}

/// The cgroup that init is in now.
fn cgroup_of_init(record: &Record) -> Result<Cgroup> {
    Ok(Cgroup::open(&CgroupPath::of_process(record.pid)?)?)
}

/// The container's cgroup, or one below it that exists already; none if the container has none.
fn cgroup_for(record: &Record, below: Option<&str>) -> Result<Option<Cgroup>> {
    if record.cgroup.as_os_str().is_empty() {
        return Ok(None);
    }
    let path = CgroupPath::from_full(&record.cgroup)?;
    let Some(below) = below.filter(|below| !below.is_empty()) else {
        return Ok(Some(Cgroup::open(&path)?));
    };
    let refuse = |_| {
        let reason = format!("bad sub cgroup path: {below} is not a sub cgroup path");
        Error::Status(format!(
            "exec failed: unable to create new parent process: {reason}"
        ))
    };
    let place = path.below(below).map_err(refuse)?;
    let cgroup = Cgroup::open(&place).map_err(|error| {
        Error::Status(format!("exec failed: error adding pid to cgroup: {error}"))
    })?;
    Ok(Some(cgroup))
}
