//! The child's side of a creation: from `clone3` to the program.
//!
//! Nothing here allocates, parses or looks anything up on the host; every step names itself when
//! it fails.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{setsid, umask};
use rustix::system::{setdomainname, sethostname};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::channel::{ChildEnd, Report};
use super::finish::{FinishJob, apply_early, finish, in_sight, take_terminal};
use super::hooks::{ChildHookIo, ChildHooks, run_child_hooks};
use super::labels::{host_proc, join_keyring};
use super::namespaces::Joined;
use super::processors::run_anywhere;
use crate::error::{At as _, Failure, Step};
use crate::plan::{LaunchPlan, RootChange};
use crate::rootfs::{self, HostPart, HostPaths, HostTrees, RootTree, Want};
use crate::sys;

/// Everything init needs, made before it exists.
#[derive(Debug)]
pub(crate) struct InitJob {
    pub(crate) plan: LaunchPlan,
    pub(crate) trees: HostTrees,
    pub(crate) joined: Joined,
    pub(crate) hook_io: Option<ChildHookIo>,
    pub(crate) finish: FinishJob,
    /// The locked state directory: the lock is to end with the parent.
    pub(crate) lock: RawFd,
}

/// Runs as init; comes back, with its exit status, only when it has to end.
pub(super) fn init_main(job: &mut InitJob, channel: &ChildEnd) -> i32 {
    let InitJob {
        plan,
        trees,
        joined,
        hook_io,
        finish: rest,
        lock,
    } = job;
    channel.settle_in();
    // Fails only on a bad descriptor.
    let _ = sys::close_one(*lock);
    let end = match prepare(plan, trees, joined, hook_io.as_ref(), rest, channel) {
        Ok(()) => {
            let hooks = (plan.start_container.as_slice(), hook_io.as_ref());
            finish(&plan.process, rest, channel, hooks)
        }
        Err(failure) => failure,
    };
    // Without a parent there is nobody to tell.
    let _ = channel.send(Report::Failed(end));
    1
}

/// The part of a vanguard of init: what needs the host's privileges or its proc, then inside.
pub(super) fn go_ahead(job: &InitJob) -> Result<(), Failure<'_>> {
    in_sight(job.joined.privileged(), || {
        apply_early(&job.plan.process, &job.finish)
    })?;
    job.joined.go_ahead()
}

/// Namespaces and the file system tree: everything that init does and a later process does not.
fn prepare<'p>(
    plan: &'p LaunchPlan,
    trees: &mut HostTrees,
    joined: &Joined,
    hook_io: Option<&ChildHookIo>,
    rest: &mut FinishJob,
    channel: &ChildEnd,
) -> Result<(), Failure<'p>> {
    sys::default_dispositions();
    sys::unblock_all();
    run_anywhere();
    if plan.id_maps.is_some() {
        // The parent writes the maps, and with the host's privileges limits and OOM score.
        channel.wait_for_word().at(Step::Sync, b"")?;
    } else if !joined.needs_vanguard() {
        apply_early(&plan.process, rest)?;
    }
    joined.enter()?;
    if let RootTree::Clone(root) = &mut trees.root {
        if plan.root_change != RootChange::Chroot {
            rootfs::make_private()?;
        }
        rootfs::attach(&plan.rootfs.path, root, plan.root_change)?;
    }
    if plan.namespaces.has(libc::CLONE_NEWUSER as u64) {
        become_root(plan.process.keep_groups)?;
    }
    umask(Mode::empty());
    setsid().at(Step::Terminal, b"setsid")?;
    name_and_network(plan)?;
    let null = (!plan.rootfs.masked.is_empty()).then(rootfs::host_null);
    // From here on paths of the host lead there only if the root is yet to be changed.
    let (root, host) = trees.root.enter()?;
    fill_root(
        plan,
        (root, host),
        (&mut trees.mounts, &trees.devices),
        rest,
    )?;
    if plan.waits_for_parent() {
        channel.send(Report::Mounted).at(Step::Sync, b"")?;
        channel.wait_for_word().at(Step::Sync, b"")?;
        let hooks = ChildHooks {
            step: Step::CreateContainerHook,
            list: &plan.create_container,
            directory: &plan.rootfs.path,
            env: None,
        };
        run_child_hooks(hooks, hook_io)?;
    }
    close_root(plan, root.as_fd(), (&trees.mounts, null), rest)
}

/// After the maps are there: root of the user namespace, and no group of the host's.
pub(super) fn become_root(keep_groups: bool) -> Result<(), Failure<'static>> {
    let root = || -> Result<(), Errno> {
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
        // A namespace that was made without privileges denies setgroups, and has no groups.
        if !keep_groups {
            match set_thread_groups(&[]) {
                Ok(()) | Err(Errno::PERM) => {}
                Err(errno) => return Err(errno),
            }
        }
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
    };
    root().at(Step::UserNamespace, b"")
}

fn name_and_network(plan: &LaunchPlan) -> Result<(), Failure<'_>> {
    let labels = &plan.process.labels;
    let proc = match labels.selinux {
        Some(_) => Some(host_proc().at(Step::Keyring, b"/proc")?),
        None => None,
    };
    join_keyring(
        plan.keyring.as_ref(),
        labels,
        proc.as_ref().map(|p| p.as_fd()),
    )?;
    if let Some(name) = &plan.hostname {
        sethostname(name.as_bytes()).at(Step::Hostname, name.as_bytes())?;
    }
    if let Some(name) = &plan.domainname {
        setdomainname(name.as_bytes()).at(Step::Hostname, name.as_bytes())?;
    }
    if plan.loopback {
        sys::loopback_up().at(Step::Loopback, b"lo")?;
    }
    Ok(())
}

/// Mounts, devices, terminal and working directory.
fn fill_root<'p>(
    plan: &'p LaunchPlan,
    (root, host): (&mut OwnedFd, HostPaths<'_>),
    (mounts, devices): (&mut [HostPart], &[OwnedFd]),
    rest: &mut FinishJob,
) -> Result<(), Failure<'p>> {
    // The descriptor is the root for every path from here on.
    let kept = rootfs::mount_all(&plan.rootfs.mounts, root, mounts)?;
    rest.proc = kept.proc;
    let root = root.as_fd();
    if plan.rootfs.own_dev {
        rootfs::fill_dev(&plan.rootfs, (root, kept.dev.as_ref()), devices, host)?;
    }
    take_terminal(&plan.process, rest, root, true)?;
    // A missing working directory is made, as runc does; what cannot be made is for chdir to tell.
    if !plan.rootfs.cwd.is_empty() {
        let _ = rootfs::open_target(root, &plan.rootfs.cwd, Want::Directory, false);
    }
    Ok(())
}

/// Parameters, masks, and the change of root.
fn close_root<'p>(
    plan: &'p LaunchPlan,
    root: BorrowedFd<'_>,
    (mounts, null): (&[HostPart], Option<Result<OwnedFd, Errno>>),
    rest: &mut FinishJob,
) -> Result<(), Failure<'p>> {
    if rest.proc.is_none() && (!plan.rootfs.sysctls.is_empty() || !plan.process.labels.is_empty()) {
        rest.proc = Some(rootfs::trusted_proc(root).at(Step::Filesystem, b"proc")?);
    }
    if let Some(proc) = &rest.proc {
        rootfs::write_sysctls(&plan.rootfs.sysctls, proc.as_fd())?;
    }
    rootfs::protect_paths(&plan.rootfs.readonly_paths, root)?;
    rootfs::hide_paths(&plan.rootfs.masked, root, null)?;
    rootfs::seal(&plan.rootfs.mounts, mounts)?;
    rootfs::enter(&plan.rootfs, root, plan.root_change)
}
