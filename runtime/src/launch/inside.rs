//! For a caller without privileges on the host: trees are cloned from inside the container's user
//! namespace, in a copy of the caller's mounts that belongs to it.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Error, Result};
use crate::plan::IdMaps;
use crate::rootfs::{HostTrees, receive_trees, send_trees};
use crate::sys::{CloneRequest, clone3, unshare};

/// Opens trees as root of the user namespace `user` may, which is owned by the caller.
///
/// Unlike init, the process that does it allocates: a caller without privileges is a command of
/// one thread, not a daemon.
pub(crate) fn open_trees_inside(
    user: &OwnedFd,
    open: impl Fn() -> Result<HostTrees>,
) -> Result<HostTrees> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Error::os("socketpair"))?;
    let request = CloneRequest {
        flags: 0,
        cgroup: None,
    };
    let (_, pidfd) = clone3(&request, || {
        let opened = enter(user).and_then(|()| open());
        let sent = send_trees(theirs.as_fd(), &opened);
        i32::from(sent.is_err())
    })
    .map_err(Error::os("clone3"))?;
    drop(theirs);
    let trees = receive_trees(ours.as_fd());
    waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        .map_err(Error::os("wait for helper process"))?;
    trees
}

fn enter(user: &OwnedFd) -> Result<()> {
    move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))
        .map_err(Error::os("join user namespace"))?;
    unshare(libc::CLONE_NEWNS as u64).map_err(Error::os("create mount namespace"))
}

/// The user namespace of a mount with id maps: the root of another one cannot make it.
pub(crate) fn no_user_namespace(_: &IdMaps) -> Result<OwnedFd> {
    Err(Error::Unsupported(
        "mounts with id maps need privileges on the host".to_owned(),
    ))
}
