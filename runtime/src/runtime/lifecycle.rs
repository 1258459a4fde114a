//! From a created container to none: start, signals, freezing, deletion.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxIntelRdt, LinuxResources};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Runtime;
use super::confinement::{forget_unit, update_unit};
use super::query::{cgroup_of, pids_of};
use crate::cgroup::{Cgroup, CgroupPath, ResourcePlan, Skipped};
use crate::error::{Error, Result};
use crate::launch::{run_all_hooks, run_hooks};
use crate::plan::ResctrlPlan;
use crate::request::Launched;
use crate::resctrl::Membership;
use crate::rootfs::unmount_root;
use crate::state::{ContainerId, Record, StateDir, Status, is_ending};
use crate::sys::pidfd_send_signal;

/// How long init may take to die of SIGKILL.
const DEATH_DEADLINE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// How long `delete` waits for a container of which it cannot see whether it has been killed: for a
/// moment, a process has taken the signal and does not exit yet.
const GRACE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

pub(super) fn start(runtime: &Runtime, id: &ContainerId) -> Result<()> {
    let dir = StateDir::open(&runtime.options.root, id)?;
    dir.lock()?;
    let record = dir.record()?;
    match dir.status(&record) {
        Status::Created => {}
        Status::Stopped => {
            return Err(Error::Status(
                "cannot start a container that has stopped: its init has exited".into(),
            ));
        }
        Status::Running => {
            return Err(Error::Status(
                "cannot start an already running container".into(),
            ));
        }
        status => {
            return Err(Error::Status(format!(
                "cannot start a container in the {status} state"
            )));
        }
    }
    dir.open_gate()?;
    run_poststart(&record)
}

/// Runs the hooks that follow the start; when one fails the container does not live on.
pub(super) fn run_poststart(record: &Record) -> Result<()> {
    let done = run_hooks(
        "poststart",
        Some(&record.poststart),
        &record.view(Status::Running),
        &record.bundle,
    );
    if done.is_err() {
        kill_all(record)?;
    }
    done
}

pub(super) fn kill(runtime: &Runtime, id: &ContainerId, signal: i32, all: bool) -> Result<()> {
    let record = StateDir::open(&runtime.options.root, id)?.record()?;
    // In a pid namespace that is shared, the others would outlive an init that is killed.
    let none_may_be_left = signal == libc::SIGKILL && !record.private_pids;
    if all || none_may_be_left && record.cgroup.exists() {
        return signal_all(&record, signal);
    }
    signal_init(&record, signal)
}

fn signal_init(record: &Record, signal: i32) -> Result<()> {
    let Some(init) = init_of(record)? else {
        return Err(Error::NotRunning);
    };
    match pidfd_send_signal(init.as_fd(), signal) {
        Ok(()) => Ok(()),
        Err(Errno::SRCH) => Err(Error::NotRunning),
        Err(errno) => {
            let id = &record.id;
            Err(Error::os(format!("send signal {signal} to container {id}"))(errno))
        }
    }
}

fn signal_all(record: &Record, signal: i32) -> Result<()> {
    if signal == libc::SIGKILL {
        return kill_all(record);
    }
    if record.cgroup.as_os_str().is_empty() {
        // In its pid namespace init is the one to speak to.
        return signal_init(record, signal);
    }
    for pid in pids_of(record)? {
        let Some(pid) = Pid::from_raw(pid) else {
            continue;
        };
        let sent = pidfd_open(pid, PidfdFlags::empty())
            .and_then(|pidfd| pidfd_send_signal(pidfd.as_fd(), signal));
        match sent {
            // It has exited since the list was read.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(Error::os(format!("send signal {signal}"))(errno)),
        }
    }
    Ok(())
}

fn kill_all(record: &Record) -> Result<()> {
    if record.cgroup.as_os_str().is_empty() {
        return match signal_init(record, libc::SIGKILL) {
            Err(Error::NotRunning) => Ok(()),
            result => result,
        };
    }
    match existing_cgroup(&record.cgroup)? {
        Some(cgroup) => Ok(cgroup.kill()?),
        None => Ok(()),
    }
}

/// The cgroup, unless it is gone.
fn existing_cgroup(full: &Path) -> Result<Option<Cgroup>> {
    if !full.exists() {
        return Ok(None);
    }
    Ok(Some(Cgroup::open(&CgroupPath::from_full(full)?)?))
}

pub(super) fn init(runtime: &Runtime, id: &ContainerId) -> Result<Launched> {
    let record = StateDir::open(&runtime.options.root, id)?.record()?;
    let pidfd = init_of(&record)?.ok_or(Error::NotRunning)?;
    Ok(Launched::new(record.pid, pidfd))
}

/// A pidfd of init that nobody else can have got the pid of; none when init is dead.
pub(super) fn init_of(record: &Record) -> Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(record.pid) else {
        return Ok(None);
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(None),
        Err(errno) => return Err(Error::os("pidfd_open")(errno)),
    };
    // Checked after opening: the pidfd cannot have changed hands since.
    Ok(record.init_is_alive().then_some(pidfd))
}

pub(super) fn delete(runtime: &Runtime, id: &ContainerId, force: bool) -> Result<()> {
    let dir = StateDir::open(&runtime.options.root, id)?;
    dir.lock()?;
    let record = match dir.read() {
        Ok(Some(record)) => record,
        // Creation was killed before it had made anything but the directory.
        Ok(None) => return dir.remove(),
        Err(_) if force => Record::of_damaged(id.clone(), dir.read_cgroup()?),
        Err(error) => return Err(error),
    };
    match dir.status(&record) {
        // Holding the lock, "creating" can only mean that the creator died.
        Status::Stopped | Status::Created | Status::Creating => {}
        _ if force || ends_soon(&record)? => {}
        status => {
            return Err(Error::Status(format!(
                "cannot delete container {id} that is not stopped: {status}"
            )));
        }
    }
    destroy(&dir, &record)
}

/// Kills and removes whatever there is, in an order that can be repeated from the start.
pub(super) fn destroy(dir: &StateDir, record: &Record) -> Result<()> {
    let init = init_of(record)?;
    if let Some(init) = &init {
        match pidfd_send_signal(init.as_fd(), libc::SIGKILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(Error::os("kill init")(errno)),
        }
    }
    // Most often nothing is left in it when init is dead.
    let cgroup = if init.is_none() && Cgroup::remove_unused(&record.cgroup) {
        None
    } else {
        existing_cgroup(&record.cgroup)?
            .filter(|cgroup| init.is_some() || !has_successor(record, cgroup))
    };
    if let Some(cgroup) = &cgroup {
        cgroup.kill()?;
    }
    if let Some(init) = &init {
        wait_for_death(init)?;
    }
    if let Some(mount) = record.root_mount {
        unmount_root(&record.rootfs, mount)?;
    }
    if let Some(unit) = &record.unit {
        forget_unit(unit);
    }
    if let Some(cgroup) = &cgroup
        && cgroup.remove().is_err()
    {
        // An `exec` that had looked before the end came in after the signal.
        cgroup.kill()?;
        cgroup.remove()?;
    }
    if let Some(groups) = &record.resctrl {
        groups.remove()?;
    }
    // All of them run, whichever fail (runtime-spec, "Lifecycle"); the first failure is told.
    let failures = run_all_hooks(
        "poststop",
        Some(&record.poststop),
        &record.view(Status::Stopped),
        &record.bundle,
    )?;
    dir.remove()?;
    match failures.into_iter().next() {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// With init all processes of its pid namespace have ended: what is in the cgroup of a container
/// whose init is dead belongs to one that was created after it, with the same cgroup.
fn has_successor(record: &Record, cgroup: &Cgroup) -> bool {
    let has_ended = record.pid != 0 && record.private_pids;
    has_ended && cgroup.pids(true).is_ok_and(|pids| !pids.is_empty())
}

fn wait_for_death(init: &OwnedFd) -> Result<()> {
    if exits_within(init, DEATH_DEADLINE)? {
        return Ok(());
    }
    Err(Error::Status(
        "container's init does not die of SIGKILL".into(),
    ))
}

/// Whether a container that has been killed comes to its end; one that has not gets [`GRACE`].
fn ends_soon(record: &Record) -> Result<bool> {
    let Some(init) = init_of(record)? else {
        return Ok(true);
    };
    let limit = if is_ending(record.pid) {
        DEATH_DEADLINE
    } else {
        GRACE
    };
    exits_within(&init, limit)
}

fn exits_within(init: &OwnedFd, limit: Timespec) -> Result<bool> {
    let mut polled = [PollFd::new(init, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut polled, Some(&limit)))
        .map(|ready| ready > 0)
        .map_err(Error::os("wait for init"))
}

pub(super) fn pause(runtime: &Runtime, id: &ContainerId) -> Result<()> {
    let dir = StateDir::open(&runtime.options.root, id)?;
    let record = dir.record()?;
    match dir.status(&record) {
        Status::Running | Status::Created => Ok(cgroup_of(&record)?.freeze()?),
        _ => Err(Error::NotRunning),
    }
}

pub(super) fn resume(runtime: &Runtime, id: &ContainerId) -> Result<()> {
    let dir = StateDir::open(&runtime.options.root, id)?;
    let record = dir.record()?;
    match dir.status(&record) {
        Status::Paused => Ok(cgroup_of(&record)?.thaw()?),
        _ => Err(Error::Status("container not paused".into())),
    }
}

pub(super) fn update(
    runtime: &Runtime,
    id: &ContainerId,
    resources: &LinuxResources,
) -> Result<Vec<String>> {
    let dir = StateDir::open(&runtime.options.root, id)?;
    dir.lock()?;
    let record = dir.record()?;
    if !record.init_is_alive() {
        return Err(Error::NotRunning);
    }
    let cgroup = cgroup_of(&record)?;
    let resources = &cgroup.present()?.complete(resources);
    let plan = ResourcePlan::from_spec(resources)?;
    cgroup.check_usage(&plan)?;
    if let Some(unit) = &record.unit {
        update_unit(unit, resources)?;
    }
    let skipped = cgroup.apply(&plan, runtime.controllers_policy())?;
    if let Some(rules) = resources
        .devices()
        .as_ref()
        .filter(|rules| !rules.is_empty())
    {
        cgroup.attach_devices(&crate::cgroup::devices::compile(rules)?)?;
    }
    let warnings = plan.warnings().iter().map(ToString::to_string);
    Ok(warnings.chain(skipped.iter().map(left_out)).collect())
}

pub(super) fn update_intel_rdt(
    runtime: &Runtime,
    id: &ContainerId,
    wanted: &LinuxIntelRdt,
) -> Result<()> {
    let dir = StateDir::open(&runtime.options.root, id)?;
    dir.lock()?;
    let mut record = dir.record()?;
    let plan = ResctrlPlan::from_spec(wanted).map_err(|e| Error::Spec {
        file: "options".to_owned(),
        field: e.field,
        reason: e.reason,
    })?;
    if let (Some(groups), Some(schemata)) = (&record.resctrl, &plan.schemata) {
        return groups.set(schemata);
    }
    // Without the section in its configuration the container has had no group so far.
    if let Some(groups) = Membership::of(&plan, id)? {
        record.resctrl = Some(groups.clone());
        dir.write(&record)?;
        groups.enter(&plan, record.pid)?;
    }
    Ok(())
}

/// Words for a limit that this host cannot apply.
pub(super) fn left_out(skipped: &Skipped) -> String {
    let Skipped { field, controller } = skipped;
    format!("{field} is ignored: cgroup controller {controller} is not available")
}
