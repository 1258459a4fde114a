//! Mounts added to and removed from a running container: by a short-lived process that enters its
//! namespaces.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::umask;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::channel::{self, ChildEnd, Message, ParentEnd, Report};
use super::child::become_root;
use super::namespaces::ChildrenPointed;
use super::parent::{Birth, Enter, Main, clone_by_vanguard, died, hide_own_binary, reap};
use crate::error::{At as _, Error, Failure, Result, Step};
use crate::plan::MountPlan;
use crate::rootfs::{self, HostPart};
use crate::sys::{self, CloneRequest, clone3};

/// Everything the process needs, made before it exists.
#[derive(Debug)]
pub(crate) struct HotJob {
    /// The container's init.
    pub(crate) init: OwnedFd,
    /// `CLONE_NEW*` bits of the namespaces to enter.
    pub(crate) namespaces: u64,
    /// The caller has privileges outside of them.
    pub(crate) privileged: bool,
    pub(crate) change: HotChange,
}

/// What shall change.
#[derive(Debug)]
pub(crate) enum HotChange {
    /// Mounts to make, with what they take from the host.
    Add(Vec<MountPlan>, Vec<HostPart>),
    /// Targets to unmount, in this order.
    Remove(Vec<CString>),
}

/// Carries the change out; when it fails, no mount of it stays.
pub(crate) fn change_mounts(job: &mut HotJob) -> Result<()> {
    hide_own_binary()?;
    let (parent, child) = channel::pair()?;
    let pidfd = launch(job, (&parent, child)).map_err(of_mounts)?;
    let message = parent.receive();
    let result = match message {
        Ok(Message::Ready) => Ok(()),
        Ok(Message::Failed(failure)) => Err(of_mounts(Error::Init(failure))),
        Ok(_) => Err(died(Some(pidfd.as_fd()))),
        Err(error) => Err(error),
    };
    reap(pidfd.as_fd())?;
    result
}

fn launch(job: &mut HotJob, (parent, child): (&ParentEnd, ChildEnd)) -> Result<OwnedFd> {
    if job.needs_vanguard() {
        let birth = Birth {
            cgroup: None,
            mover: None,
            reparent: false,
        };
        let steps = (enter as Enter<HotJob>, hot_main as Main<HotJob>);
        return clone_by_vanguard(job, 0, birth, steps, (parent, child)).map(|it| it.pidfd);
    }
    let mut pointed = ChildrenPointed::default();
    if job.namespaces & libc::CLONE_NEWPID as u64 != 0 {
        pointed.pid(&job.init)?;
    }
    let request = CloneRequest {
        flags: 0,
        cgroup: None,
    };
    let (_, pidfd) = clone3(&request, || hot_main(job, &child)).map_err(Error::os("clone3"))?;
    Ok(pidfd)
}

impl HotJob {
    /// Whether the process has to be made from inside: who has no privileges outside cannot send
    /// a child into a pid namespace.
    fn needs_vanguard(&self) -> bool {
        !self.privileged && self.namespaces & libc::CLONE_NEWUSER as u64 != 0
    }
}

fn of_mounts(error: Error) -> Error {
    match error {
        Error::Init(failure) => Error::Mounts(failure),
        other => other,
    }
}

/// The part of a vanguard: into all namespaces, and its children into the pid namespace.
fn enter(job: &HotJob) -> std::result::Result<(), Failure<'_>> {
    let all = ThreadNameSpaceType::from_bits_retain(job.namespaces as u32);
    move_into_thread_name_spaces(job.init.as_fd(), all).at(Step::JoinNamespace, b"")
}

fn hot_main(job: &mut HotJob, channel: &ChildEnd) -> i32 {
    channel.settle_in();
    let (report, status) = match change(job) {
        Ok(()) => (Report::Ready, 0),
        Err(failure) => (Report::Failed(failure), 1),
    };
    // Without a parent there is nobody to tell.
    let _ = channel.send(report);
    status
}

fn change(job: &mut HotJob) -> std::result::Result<(), Failure<'_>> {
    sys::default_dispositions();
    sys::unblock_all();
    if !job.needs_vanguard() {
        // As for `exec`: the pid namespace is the parent's affair.
        let own = ThreadNameSpaceType::from_bits_retain(job.namespaces as u32)
            - ThreadNameSpaceType::PROCESS_ID;
        move_into_thread_name_spaces(job.init.as_fd(), own).at(Step::JoinNamespace, b"")?;
    }
    if job.namespaces & libc::CLONE_NEWUSER as u64 != 0 {
        become_root(false)?;
    }
    umask(Mode::empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut root = open(c"/", flags, Mode::empty()).at(Step::MountTarget, b"/")?;
    match &mut job.change {
        HotChange::Add(mounts, parts) => add(mounts, parts, &mut root),
        HotChange::Remove(targets) => {
            for target in targets {
                rootfs::unmount_at(root.as_fd(), target).at(Step::Unmount, target.to_bytes())?;
            }
            Ok(())
        }
    }
}

fn add<'p>(
    mounts: &'p [MountPlan],
    parts: &mut [HostPart],
    root: &mut OwnedFd,
) -> std::result::Result<(), Failure<'p>> {
    for index in 0..mounts.len() {
        let one = index..=index;
        let made = rootfs::mount_all(&mounts[one.clone()], root, &mut parts[one])
            .and_then(|_| rootfs::seal(&mounts[..=index], &parts[..=index]));
        if let Err(failure) = made {
            for made in mounts[..index].iter().rev() {
                // The first failure is what the caller has to hear of.
                let _ = rootfs::unmount_at(root.as_fd(), &made.target);
            }
            return Err(failure);
        }
    }
    Ok(())
}
