//! The child's side of `exec`: into a running container, from `clone3` to the program.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{chroot, fchdir, setsid, umask};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::channel::{ChildEnd, Report};
use super::child::become_root;
use super::finish::{FinishJob, apply_early, finish, in_sight, take_terminal};
use super::labels::join_keyring;
use super::processors::choose_processors;
use crate::error::{At as _, Failure, Step};
use crate::plan::{KeyringPlan, ProcessPlan};
use crate::rootfs;
use crate::sys;

/// Everything a further process needs, made before it exists.
#[derive(Debug)]
pub(crate) struct ExecJob {
    pub(crate) process: ProcessPlan,
    /// The container's init.
    pub(crate) init: OwnedFd,
    /// `CLONE_NEW*` bits of the namespaces to enter.
    pub(crate) namespaces: u64,
    /// The caller has privileges outside of them.
    pub(crate) privileged: bool,
    pub(crate) keyring: Option<KeyringPlan>,
    /// The container's root, when no mount namespace leads there.
    pub(crate) root: Option<OwnedFd>,
    pub(crate) finish: FinishJob,
}

impl ExecJob {
    /// Whether the process has to be made from inside: who has no privileges outside cannot send
    /// a child into a pid namespace.
    pub(super) fn needs_vanguard(&self) -> bool {
        !self.privileged && self.namespaces & libc::CLONE_NEWUSER as u64 != 0
    }
}

/// Runs as the new process; comes back, with its exit status, only when it has to end.
pub(super) fn exec_main(job: &mut ExecJob, channel: &ChildEnd) -> i32 {
    channel.settle_in();
    let inside = job.needs_vanguard();
    let ExecJob {
        process,
        init,
        namespaces,
        keyring,
        root,
        finish: rest,
        ..
    } = job;
    let process = &*process;
    let entered = if inside {
        Ok(())
    } else {
        // The pid namespace is the parent's affair; all others are entered in one call.
        apply_early(process, rest)
            .and_then(|()| enter(init, *namespaces & !(libc::CLONE_NEWPID as u64)))
    };
    let entered = entered.and_then(|()| match root {
        Some(root) => fchdir(root)
            .and_then(|()| chroot(c"."))
            .at(Step::JoinNamespace, b"root"),
        None => Ok(()),
    });
    let prepared = entered.and_then(|()| prepare(process, *namespaces, keyring.as_ref(), rest));
    let end = match prepared {
        Ok(()) => finish(process, rest, channel, (&[], None)),
        Err(failure) => failure,
    };
    // Without a parent there is nobody to tell.
    let _ = channel.send(Report::Failed(end));
    1
}

/// The part of a vanguard: everything that needs the host's proc, then inside.
pub(super) fn enter_ahead(job: &ExecJob) -> Result<(), Failure<'_>> {
    in_sight(job.privileged, || apply_early(&job.process, &job.finish))?;
    enter(&job.init, job.namespaces)
}

fn enter(init: &OwnedFd, namespaces: u64) -> Result<(), Failure<'static>> {
    // A container may have none of its own.
    if namespaces == 0 {
        return Ok(());
    }
    let namespaces = ThreadNameSpaceType::from_bits_retain(namespaces as u32);
    move_into_thread_name_spaces(init.as_fd(), namespaces).at(Step::JoinNamespace, b"")
}

fn prepare<'p>(
    process: &'p ProcessPlan,
    namespaces: u64,
    keyring: Option<&'p KeyringPlan>,
    rest: &mut FinishJob,
) -> Result<(), Failure<'p>> {
    sys::default_dispositions();
    sys::unblock_all();
    choose_processors(&process.affinity)?;
    if namespaces & libc::CLONE_NEWUSER as u64 != 0 {
        become_root(process.keep_groups)?;
    }
    rest.default_umask = umask(Mode::empty());
    setsid().at(Step::Terminal, b"setsid")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(c"/", flags, Mode::empty()).at(Step::Terminal, b"/")?;
    if !process.labels.is_empty() {
        rest.proc = Some(rootfs::trusted_proc(root.as_fd()).at(Step::Filesystem, b"proc")?);
    }
    let proc = rest.proc.as_ref().map(|proc| proc.as_fd());
    join_keyring(keyring, &process.labels, proc)?;
    take_terminal(process, rest, root.as_fd(), false)
}
