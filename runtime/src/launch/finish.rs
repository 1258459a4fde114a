//! What init and every later process have in common: from a ready tree to `execve`.

use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{DumpableBehavior, Pid, prlimit, set_dumpable_behavior, umask};
use rustix::thread::set_no_new_privs;

use super::channel::{ChildEnd, Report};
use super::hooks::{ChildHookIo, ChildHooks, run_child_hooks};
use super::stdio::{ChildStdio, TerminalReceiver, place_streams};
use super::{identity, labels, program};
use crate::error::{At as _, Failure, Step};
use crate::plan::{CommonPlan, HookPlan, ProcessPlan};
use crate::rootfs::{keep_line_ends, open_terminal, send_terminal};
use crate::seccomp::Filter;
use crate::sys;

/// What the last stretch needs besides the plan of the process.
#[derive(Debug)]
pub(crate) struct FinishJob {
    pub(crate) stdio: ChildStdio,
    /// Where the terminal's master goes.
    pub(crate) console: Option<TerminalReceiver>,
    /// Read end of the start fifo; without it the program is executed at once.
    pub(crate) gate: Option<OwnedFd>,
    pub(crate) filter: Option<Filter>,
    pub(crate) preserve_fds: u32,
    pub(crate) common: CommonPlan,
    /// Resource limits are set last, so that they cannot hinder the launch itself; not so with a
    /// user namespace, where the privilege to raise them is gone by then.
    pub(crate) late_rlimits: bool,
    /// The parent has no privilege to take a descriptor from an undumpable process.
    pub(crate) lend_descriptors: bool,
    /// A proc file system that can be trusted, once there is one.
    pub(crate) proc: Option<OwnedFd>,
    /// For a process that asks for no umask: init gets the usual one, a later one keeps the
    /// caller's, as in runc.
    pub(crate) default_umask: Mode,
}

impl FinishJob {
    /// The filter has a listener, which is given away while the parent is there.
    fn is_watched(&self) -> bool {
        self.filter.as_ref().is_some_and(|filter| filter.notify)
    }
}

/// Becomes the program; comes back only with the failure. Once the gate has opened nobody reads
/// the channel, so failures are told on standard error from there on.
pub(super) fn finish<'p>(
    plan: &'p ProcessPlan,
    job: &mut FinishJob,
    channel: &ChildEnd,
    hooks: (&'p [HookPlan], Option<&ChildHookIo>),
) -> Failure<'p> {
    let settled = settle(plan, job, channel, hooks.1).and_then(|path| {
        if job.is_watched() {
            install_watched(plan, job, channel)?;
        }
        Ok(path)
    });
    let path = match settled {
        Ok(path) => path,
        Err(failure) => return failure,
    };
    let gated = job.gate.is_some();
    if let Some(gate) = job.gate.take() {
        sys::end_on_request();
        let waited = channel.send(Report::Ready).at(Step::Sync, b"");
        if let Err(failure) = waited.and_then(|()| wait_at(&gate)) {
            return failure;
        }
    }
    let ready = lock_down(plan, job, hooks).and_then(|()| {
        if gated {
            return Ok(());
        }
        channel.send(Report::Executing).at(Step::Sync, b"")
    });
    let failure = match ready {
        Ok(()) => {
            let errno = sys::execve(path, &plan.argv, &plan.env);
            Failure {
                step: Step::Execute,
                errno,
                detail: path.to_bytes(),
            }
        }
        Err(failure) => failure,
    };
    if gated {
        program::complain(&failure);
    }
    failure
}

/// Attributes, user and place; afterwards the program is known to be there.
fn settle<'p>(
    plan: &'p ProcessPlan,
    job: &mut FinishJob,
    channel: &ChildEnd,
    hook_io: Option<&ChildHookIo>,
) -> Result<&'p std::ffi::CStr, Failure<'p>> {
    place_streams(&job.stdio, plan.uid)?;
    umask(plan.umask.unwrap_or(job.default_umask));
    schedule(plan, &job.common)?;
    if let (false, Some(proc)) = (plan.labels.is_empty(), &job.proc) {
        labels::label_next_program(&plan.labels, proc.as_fd())?;
    }
    // From here on paths of the configuration and of the image are followed, and a path may lead
    // through /proc/self/fd: nothing of the host's may be open then (CVE-2024-21626).
    let_go(job, channel, hook_io)?;
    if plan.needs_home {
        program::set_home(plan);
    }
    if job.late_rlimits {
        apply_rlimits(None, plan)?;
    }
    let entered = program::enter_cwd(&plan.cwd);
    identity::take(plan)?;
    if plan.no_new_privileges {
        identity::drop_capabilities(plan)?;
    }
    if entered.is_err() {
        // The user may go where root may not: a home on a network file system.
        program::enter_cwd(&plan.cwd).at(Step::Chdir, plan.cwd.to_bytes())?;
    }
    program::check_cwd()?;
    program::find(plan)
}

/// Where and when the process runs, and how the kernel presents itself to it.
fn schedule(plan: &ProcessPlan, common: &CommonPlan) -> Result<(), Failure<'static>> {
    if let Some(scheduler) = &plan.scheduler {
        sys::set_scheduler(scheduler).at(Step::Scheduling, b"scheduler")?;
    }
    if let Some(priority) = plan.io_priority {
        sys::set_io_priority(priority).at(Step::Scheduling, b"io priority")?;
    }
    if let Some(policy) = &common.memory_policy {
        sys::set_memory_policy(policy.mode, policy.nodes.words())
            .at(Step::Scheduling, b"memory policy")?;
    }
    if let Some(persona) = common.personality {
        sys::set_personality(persona).at(Step::Scheduling, b"personality")?;
    }
    Ok(())
}

/// The last privileges go: filter and capabilities, in the order that the kernel demands; then the
/// last hooks run.
fn lock_down<'p>(
    plan: &'p ProcessPlan,
    job: &mut FinishJob,
    (hooks, hook_io): (&'p [HookPlan], Option<&ChildHookIo>),
) -> Result<(), Failure<'p>> {
    if plan.no_new_privileges {
        set_no_new_privs(true).at(Step::NoNewPrivileges, b"")?;
    }
    if !job.is_watched() {
        install_filter(job)?;
    }
    if !plan.no_new_privileges {
        // Without no_new_privs only CAP_SYS_ADMIN may install a filter, so this comes after it.
        identity::drop_capabilities(plan)?;
    }
    // As runc has it, these hooks may do what the program may, and no more.
    let hooks = ChildHooks {
        step: Step::StartContainerHook,
        list: hooks,
        directory: &plan.cwd,
        env: Some(&plan.env),
    };
    run_child_hooks(hooks, hook_io)
}

fn install_filter(job: &FinishJob) -> Result<Option<OwnedFd>, Failure<'static>> {
    match &job.filter {
        Some(filter) => {
            sys::install_seccomp(&filter.insns, filter.flags.into()).at(Step::Seccomp, b"")
        }
        None => Ok(None),
    }
}

/// Installs a filter with a listener, before the wait for `start`: later there is no parent to
/// pass the listener on. The parent takes it by itself, so that the profile need not allow more
/// than write(2) and read(2).
fn install_watched(
    plan: &ProcessPlan,
    job: &FinishJob,
    channel: &ChildEnd,
) -> Result<(), Failure<'static>> {
    if plan.no_new_privileges {
        set_no_new_privs(true).at(Step::NoNewPrivileges, b"")?;
    }
    if let Some(listener) = install_filter(job)? {
        return in_sight(!job.lend_descriptors, || {
            let report = Report::Listener(listener.as_raw_fd());
            channel.send(report).at(Step::Sync, b"listener")?;
            channel.wait_for_word().at(Step::Sync, b"listener")
        });
    }
    Ok(())
}

/// Closes everything but what is still needed and what was asked for. The few that stay lead
/// nowhere (sockets, the start fifo, files in memory) and close on exec.
fn let_go(
    job: &FinishJob,
    channel: &ChildEnd,
    hook_io: Option<&ChildHookIo>,
) -> Result<(), Failure<'static>> {
    let mut keep = [0; 7];
    let hook_fds = hook_io.map_or([None; 5], |io| io.raw_fds().map(Some));
    let own = [
        job.gate.as_ref().map(AsRawFd::as_raw_fd),
        Some(channel.raw_fd()),
    ];
    for (place, fd) in keep.iter_mut().zip(own.into_iter().chain(hook_fds)) {
        *place = fd.map_or(0, |fd| fd as u32);
    }
    sys::close_all_but(3 + job.preserve_fds, &mut keep).at(Step::Stdio, b"close_range")
}

/// Waits until `start` writes to the fifo.
fn wait_at(gate: &OwnedFd) -> Result<(), Failure<'static>> {
    let mut polled = [PollFd::new(gate, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut polled, None)).at(Step::Sync, b"start fifo")?;
    let mut word = [0];
    rustix::io::read(gate, &mut word).at(Step::Sync, b"start fifo")?;
    Ok(())
}

/// Does something for which this process has to find its own files in `/proc` writable: without
/// privileges it cannot while it is hidden from its user's other processes.
pub(super) fn in_sight<'p>(
    privileged: bool,
    work: impl FnOnce() -> Result<(), Failure<'p>>,
) -> Result<(), Failure<'p>> {
    if privileged {
        return work();
    }
    set_dumpable_behavior(DumpableBehavior::Dumpable).at(Step::Sync, b"prctl")?;
    let done = work();
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at(Step::Sync, b"prctl")?;
    done
}

/// What needs the host's privileges or its proc, while they are at hand: the OOM score, and the
/// resource limits of a process that is about to enter a user namespace.
pub(super) fn apply_early<'p>(plan: &'p ProcessPlan, job: &FinishJob) -> Result<(), Failure<'p>> {
    if !job.late_rlimits {
        apply_rlimits(None, plan)?;
    }
    let Some(score) = &plan.oom_score_adj else {
        return Ok(());
    };
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(CWD, c"/proc/self/oom_score_adj", flags, Mode::empty())
        .at(Step::OomScore, score.as_bytes())?;
    rustix::io::write(&file, score.as_bytes())
        .at(Step::OomScore, score.as_bytes())
        .map(drop)
}

/// Resource limits of a process, or of the caller itself.
pub(super) fn apply_rlimits(pid: Option<Pid>, plan: &ProcessPlan) -> Result<(), Failure<'_>> {
    for wanted in &plan.rlimits {
        prlimit(pid, wanted.resource, wanted.limit).at(Step::Rlimit, wanted.name.as_bytes())?;
    }
    Ok(())
}

/// Opens the terminal that the process asks for, and hands the master over.
pub(super) fn take_terminal(
    plan: &ProcessPlan,
    job: &mut FinishJob,
    root: BorrowedFd<'_>,
    console: bool,
) -> Result<(), Failure<'static>> {
    let (true, Some(receiver)) = (plan.terminal, job.console.take()) else {
        return Ok(());
    };
    let terminal = open_terminal(root, plan.console_size, console).at(Step::Terminal, b"")?;
    rustix::process::ioctl_tiocsctty(&terminal.slave).at(Step::Terminal, b"TIOCSCTTY")?;
    if receiver.prints {
        keep_line_ends(terminal.slave.as_fd()).at(Step::Terminal, b"TCSETS")?;
    }
    send_terminal(receiver.socket.as_fd(), terminal.master.as_fd()).at(Step::ConsoleSocket, b"")?;
    job.stdio = ChildStdio::Terminal(terminal.slave);
    Ok(())
}
