//! The child's side of `exec`: into a running container, from `clone3` to the program.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{setsid, umask};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::channel::{ChildEnd, Report};
use super::child::{become_root, join_keyring};
use super::finish::{FinishJob, apply_early, finish, take_terminal};
use crate::error::{At as _, Failure, Step};
use crate::plan::ProcessPlan;
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
    pub(crate) keyring: Option<std::ffi::CString>,
    pub(crate) finish: FinishJob,
}

/// Runs as the new process; comes back, with its exit status, only when it has to end.
pub(super) fn exec_main(job: &mut ExecJob, channel: &ChildEnd) -> i32 {
    let ExecJob {
        process,
        init,
        namespaces,
        keyring,
        finish: rest,
    } = job;
    let end = match prepare(process, init, *namespaces, keyring.as_deref(), rest) {
        Ok(()) => finish(process, rest, channel, (&[], None)),
        Err(failure) => failure,
    };
    channel.send(Report::Failed(end));
    1
}

fn prepare<'p>(
    process: &'p ProcessPlan,
    init: &OwnedFd,
    namespaces: u64,
    keyring: Option<&'p std::ffi::CStr>,
    rest: &mut FinishJob,
) -> Result<(), Failure<'p>> {
    sys::default_dispositions();
    sys::unblock_all();
    apply_early(process, rest)?;
    // The pid namespace is the parent's affair; all others are entered in one call.
    let own =
        ThreadNameSpaceType::from_bits_retain(namespaces as u32) - ThreadNameSpaceType::PROCESS_ID;
    move_into_thread_name_spaces(init.as_fd(), own).at(Step::JoinNamespace, b"")?;
    if namespaces & libc::CLONE_NEWUSER as u64 != 0 {
        become_root()?;
    }
    umask(Mode::empty());
    setsid().at(Step::Terminal, b"setsid")?;
    join_keyring(keyring)?;
    if process.label.is_some() {
        rest.proc = Some(rootfs::new_proc().at(Step::Label, b"proc")?);
    }
    if process.terminal {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(c"/", flags, Mode::empty()).at(Step::Terminal, b"/")?;
        take_terminal(process, rest, root.as_fd(), false)?;
    }
    Ok(())
}
