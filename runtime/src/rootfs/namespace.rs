//! A mount namespace that is made of the root file system and nothing else
//! (`OPEN_TREE_NAMESPACE`, kernel 7.0): no copy of the host's mounts, and nothing to pivot away.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::{
    LinkNameSpaceType, SecureComputingMode, move_into_link_name_space, secure_computing_mode,
};

use super::host::set_propagation;
use super::refusals::{PRIVATE, node_of_host};
use crate::error::{At as _, Failure, Step};
use crate::sys::{is_confined_by_apparmor, open_tree_with};

/// `OPEN_TREE_NAMESPACE` of `linux/mount.h`.
const OPEN_TREE_NAMESPACE: OpenTreeFlags = OpenTreeFlags::from_bits_retain(1 << 1);

/// The kernel does not know the flag, or something around this process may refuse what is done
/// next.
static REFUSED: AtomicBool = AtomicBool::new(false);
/// Nothing around this process does.
static FREE: AtomicBool = AtomicBool::new(false);

/// The container's mount namespace, and the way back to the host's.
#[derive(Debug)]
pub(crate) struct RootNamespace {
    own: OwnedFd,
    /// The host's, and the root directory, once the child is inside.
    inside: Option<(OwnedFd, OwnedFd)>,
}

impl RootNamespace {
    /// The parent's part, and the only probe: it is tried until it has been refused once. Whatever
    /// else is wrong with `path` is for the ordinary way to tell.
    pub(super) fn open(path: &CStr) -> Result<Self, Errno> {
        if REFUSED.load(Ordering::Relaxed) {
            return Err(Errno::NOSYS);
        }
        let flags =
            OPEN_TREE_NAMESPACE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let own = open_tree(CWD, path, flags)?;
        if !FREE.load(Ordering::Relaxed) {
            if may_be_refused() {
                return Err(Errno::PERM);
            }
            FREE.store(true, Ordering::Relaxed);
        }
        Ok(Self { own, inside: None })
    }

    /// To be called with the errno of [`RootNamespace::open`] when the path turned out to be good.
    pub(super) fn remember(refusal: Errno) {
        if matches!(refusal, Errno::INVAL | Errno::PERM | Errno::NOSYS) {
            REFUSED.store(true, Ordering::Relaxed);
        }
    }

    /// The child's part: its root and working directory are the container's from here on.
    pub(super) fn enter(&mut self) -> Result<(&mut OwnedFd, HostPaths<'_>), Failure<'static>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let host = open(c"/proc/self/ns/mnt", flags, Mode::empty())
            .at(Step::EnterRootfs, b"/proc/self/ns/mnt")?;
        move_to(&self.own).at(Step::EnterRootfs, b"")?;
        // As the root of a detached clone: private itself, a slave wherever else the host shares.
        let root = open_tree_with(CWD, c"/", OpenTreeFlags::OPEN_TREE_CLOEXEC, &PRIVATE)
            .at(Step::EnterRootfs, b"/")?;
        set_propagation(root.as_fd(), libc::MS_SLAVE, true).at(Step::Propagation, b"/")?;
        let (host, root) = self.inside.insert((host, root));
        let own = &self.own;
        Ok((root, HostPaths::Outside { host, own }))
    }
}

/// Whether something around this process may refuse the mount API, for which there are other ways
/// only among the host's paths: a profile of AppArmor (LXC), a seccomp filter.
fn may_be_refused() -> bool {
    secure_computing_mode() != Ok(SecureComputingMode::Disabled) || is_confined_by_apparmor()
}

/// Where the child finds the host's paths while it fills the root.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HostPaths<'a> {
    /// Where it is.
    Here,
    /// In another mount namespace than its own.
    Outside { host: &'a OwnedFd, own: &'a OwnedFd },
}

impl HostPaths<'_> {
    /// The host's node of a device, as a detached mount.
    pub(super) fn node(self, path: &CStr) -> Result<OwnedFd, Errno> {
        match self {
            Self::Here => node_of_host(path, OpenTreeFlags::empty()),
            Self::Outside { host, own } => {
                move_to(host)?;
                let node = node_of_host(path, OpenTreeFlags::empty());
                move_to(own)?;
                node
            }
        }
    }
}

fn move_to(namespace: &OwnedFd) -> Result<(), Errno> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
}
