//! The parent's side of a launch: the clone, and the talk with the child until it is on its own.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, set_dumpable_behavior,
    waitid,
};

use super::agent::{Agent, Witness, take_listener};
use super::channel::{self, ChildEnd, Message, ParentEnd, Report};
use super::child::{InitJob, go_ahead, init_main};
use super::enter::{ExecJob, enter_ahead, exec_main};
use super::finish::apply_rlimits;
use super::namespaces::ChildrenPointed;
use super::processors::Confined;
use super::userns::write_maps;
use crate::error::{ChildFailure, Error, Failure, Result, Step};
use crate::plan::{IdMaps, LaunchPlan};
use crate::request::Launched;
use crate::state::ContainerState;
use crate::sys::{CloneRequest, clone3, pidfd_send_signal};

const NEWPID: u64 = libc::CLONE_NEWPID as u64;

/// Where and to whom a process is born.
#[derive(Clone, Copy)]
pub(crate) struct Birth<'a> {
    /// The cgroup, if it is not the caller's own.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Has somebody else move a process there, for callers whom the kernel does not let do it.
    pub(crate) mover: Option<&'a dyn Fn(i32) -> Result<()>>,
    /// Make the caller's parent its parent.
    pub(crate) reparent: bool,
}

/// Circumstances of a launch that are the parent's.
pub(crate) struct InitLaunch<'a> {
    pub(crate) birth: Birth<'a>,
    /// Called with the pid as soon as there is one.
    pub(crate) on_pid: &'a mut dyn FnMut(i32) -> Result<()>,
    /// Called when all is mounted, before the root changes: the place of the runtime's hooks.
    pub(crate) on_mounted: &'a mut dyn FnMut(i32) -> Result<()>,
    /// Gets the listener of init's filter.
    pub(crate) agent: Option<&'a Agent>,
    /// The container as the agent is to be told of it, once its pid is known.
    pub(crate) view: &'a dyn Fn() -> ContainerState,
}

/// Circumstances of a further process that are the parent's.
pub(crate) struct ExecLaunch<'a> {
    pub(crate) birth: Birth<'a>,
    /// Called with the pid as soon as there is one.
    pub(crate) on_pid: &'a mut dyn FnMut(i32) -> Result<()>,
    /// Gets the listener of its filter.
    pub(crate) agent: Option<&'a Agent>,
    /// The container as the agent is to be told of it.
    pub(crate) view: &'a dyn Fn() -> ContainerState,
}

/// Makes init and sees it off: to the gate of `start`, or into its program.
pub(crate) fn launch_init(mut job: InitJob, launch: &mut InitLaunch<'_>) -> Result<Launched> {
    hide_own_binary()?;
    let (parent, child) = channel::pair()?;
    let launched = {
        let _pointed = job.joined.point_children()?;
        let flags = job.joined.clone_flags();
        if job.joined.needs_vanguard() {
            clone_by_vanguard(
                &mut job,
                flags,
                launch.birth,
                (go_ahead, init_main),
                (&parent, child),
            )?
        } else {
            let request = launch.birth.request(flags);
            let (pid, pidfd) =
                clone3(&request, || init_main(&mut job, &child)).map_err(Error::os("clone3"))?;
            drop(child);
            Launched::new(pid, pidfd)
        }
    };
    let plan = job.plan;
    let seen_off = see_init_off(&plan, &launched, &parent, launch);
    settle(launched, seen_off, launch.birth.reparent)
}

/// Makes a further process of a container and sees it off into its program.
pub(crate) fn launch_exec(job: &mut ExecJob, launch: &mut ExecLaunch<'_>) -> Result<Launched> {
    hide_own_binary()?;
    let (parent, child) = channel::pair()?;
    let of_exec = |e| match e {
        Error::Init(failure) => Error::Exec(failure),
        other => other,
    };
    let confined = Confined::to(job.process.affinity.initial.as_ref())?;
    let launched = if job.needs_vanguard() {
        let steps = (enter_ahead as Enter<ExecJob>, exec_main as Main<ExecJob>);
        clone_by_vanguard(job, 0, launch.birth, steps, (&parent, child)).map_err(of_exec)?
    } else {
        let mut pointed = ChildrenPointed::default();
        if job.namespaces & NEWPID != 0 {
            pointed.pid(&job.init)?;
        }
        let request = launch.birth.request(0);
        let (pid, pidfd) =
            clone3(&request, || exec_main(job, &child)).map_err(Error::os("clone3"))?;
        drop(child);
        Launched::new(pid, pidfd)
    };
    drop(confined);
    let witness = Witness {
        agent: launch.agent,
        view: launch.view,
    };
    let seen_off = (launch.on_pid)(launched.pid)
        .and_then(|()| see_off(&launched, &parent, &mut |_| Ok(()), &witness))
        .map_err(of_exec);
    settle(launched, seen_off, launch.birth.reparent)
}

/// Until they execute their program, this process and its children cannot be opened through
/// `/proc`, so nothing inside a container reaches the runtime's binary (CVE-2019-5736).
pub(super) fn hide_own_binary() -> Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(Error::os("prctl"))
}

impl<'a> Birth<'a> {
    pub(super) fn request(&self, flags: u64) -> CloneRequest<'a> {
        request(flags, self.reparent, self.cgroup)
    }
}

fn request(flags: u64, reparent: bool, cgroup: Option<BorrowedFd<'_>>) -> CloneRequest<'_> {
    let parentage = if reparent {
        libc::CLONE_PARENT as u64
    } else {
        0
    };
    CloneRequest {
        flags: flags | parentage,
        cgroup,
    }
}

/// What a vanguard does in the place of the process that it makes.
pub(super) type Enter<J> = fn(&J) -> std::result::Result<(), Failure<'_>>;
/// What the process does then.
pub(super) type Main<J> = fn(&mut J, &ChildEnd) -> i32;

/// A process that goes ahead into namespaces which it can only enter, or only leave, for its
/// children, and there makes the wanted process as its sibling.
pub(super) fn clone_by_vanguard<J>(
    job: &mut J,
    flags: u64,
    birth: Birth<'_>,
    (enter, main): (Enter<J>, Main<J>),
    (parent, child): (&ParentEnd, ChildEnd),
) -> Result<Launched> {
    let mut go_ahead = |waits: bool| {
        child.settle_in();
        if waits && child.wait_for_word().is_err() {
            return 1;
        }
        if let Err(failure) = enter(job) {
            // Without a parent there is nobody to tell.
            let _ = child.send(Report::Failed(failure));
            return 1;
        }
        let sibling = request(flags, true, None);
        // It waits until the parent knows of it: whatever it says must come after that.
        let begin = || match child.wait_for_word() {
            Ok(()) => main(job, &child),
            Err(_) => 1,
        };
        let report = match clone3(&sibling, begin) {
            Ok((pid, _)) => Report::Forked(pid),
            Err(errno) => Report::Failed(Failure {
                step: Step::Unshare,
                errno,
                detail: b"",
            }),
        };
        i32::from(child.send(report).is_err())
    };
    let first = match (clone3(&birth.request(0), || go_ahead(false)), birth.mover) {
        (Ok((_, first)), _) => first,
        (Err(Errno::ACCESS), Some(mover)) => {
            let elsewhere = request(0, birth.reparent, None);
            let (pid, pidfd) =
                clone3(&elsewhere, || go_ahead(true)).map_err(Error::os("clone3"))?;
            let moved = mover(pid).and_then(|()| parent.give_word());
            settle(Launched::new(pid, pidfd), moved, birth.reparent)?.pidfd
        }
        (Err(errno), _) => return Err(Error::os("clone3")(errno)),
    };
    drop(child);
    let message = parent.receive();
    if !birth.reparent {
        reap(first.as_fd())?;
    }
    match message? {
        Message::Forked(pid) => {
            let raw = Pid::from_raw(pid).ok_or_else(|| died(None))?;
            let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(Error::os("pidfd_open"))?;
            parent.give_word()?;
            Ok(Launched::new(pid, pidfd))
        }
        Message::Failed(failure) => Err(Error::Init(failure)),
        _ => Err(died(None)),
    }
}

fn see_init_off(
    plan: &LaunchPlan,
    launched: &Launched,
    parent: &ParentEnd,
    launch: &mut InitLaunch<'_>,
) -> Result<()> {
    if let Some(maps) = &plan.id_maps {
        prepare_mapped(plan, maps, launched.pid)?;
        parent.give_word()?;
    }
    (launch.on_pid)(launched.pid)?;
    let witness = Witness {
        agent: launch.agent,
        view: launch.view,
    };
    see_off(launched, parent, launch.on_mounted, &witness)
}

/// What needs the host's privileges once the child is in a user namespace of its own.
fn prepare_mapped(plan: &LaunchPlan, maps: &IdMaps, pid: i32) -> Result<()> {
    write_maps(pid, maps)?;
    apply_rlimits(Pid::from_raw(pid), &plan.process).map_err(|failure| {
        Error::Init(ChildFailure {
            step: failure.step,
            errno: failure.errno.raw_os_error(),
            detail: String::from_utf8_lossy(failure.detail).into_owned(),
        })
    })?;
    if let Some(score) = &plan.process.oom_score_adj {
        let file = format!("/proc/{pid}/oom_score_adj");
        std::fs::write(&file, score).map_err(Error::file("write", file))?;
    }
    Ok(())
}

/// Listens until the child waits for `start`, or has become its program.
fn see_off(
    launched: &Launched,
    parent: &ParentEnd,
    on_mounted: &mut dyn FnMut(i32) -> Result<()>,
    witness: &Witness<'_>,
) -> Result<()> {
    let mut executing = false;
    loop {
        match parent.receive()? {
            Message::Mounted => {
                on_mounted(launched.pid)?;
                parent.give_word()?;
            }
            Message::Listener(number) => {
                let listener = take_listener(launched, number)?;
                // The child is free to go on: whoever waits for the agent is not us.
                parent.give_word()?;
                witness.tell(launched.pid, &listener)?;
            }
            Message::Ready => return Ok(()),
            Message::Executing => executing = true,
            Message::Closed if executing => return Ok(()),
            Message::Closed => return Err(died(Some(launched.pidfd.as_fd()))),
            Message::Failed(failure) => return Err(Error::Init(failure)),
            Message::Forked(_) => {}
        }
    }
}

/// Nothing is left of a process that was not seen off, or that nobody could be told of.
pub(crate) fn settle(
    launched: Launched,
    seen_off: Result<()>,
    reparented: bool,
) -> Result<Launched> {
    match seen_off {
        Ok(()) => Ok(launched),
        Err(error) => {
            // It may have ended by itself, and somebody else may have reaped it.
            let _ = pidfd_send_signal(launched.pidfd.as_fd(), libc::SIGKILL);
            if !reparented {
                let _ = reap(launched.pidfd.as_fd());
            }
            Err(error)
        }
    }
}

pub(super) fn reap(pidfd: BorrowedFd<'_>) -> Result<()> {
    let wait = || waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED);
    rustix::io::retry_on_intr(wait)
        .map(drop)
        .map_err(Error::os("wait for the new process"))
}

pub(super) fn died(pidfd: Option<BorrowedFd<'_>>) -> Error {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let status = pidfd.and_then(|fd| waitid(WaitId::PidFd(fd), options).ok().flatten());
    Error::InitDied(match status {
        Some(status) => match (status.exit_status(), status.terminating_signal()) {
            (_, Some(signal)) => format!("killed by signal {signal}"),
            (Some(code), None) => format!("exit status {code}"),
            (None, None) => "unknown status".to_owned(),
        },
        None => "it is not a child of this process".to_owned(),
    })
}
