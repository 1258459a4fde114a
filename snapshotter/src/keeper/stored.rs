//! The group in systemd's file descriptor store (sd_pid_notify_with_fds(3), sd_listen_fds(3)).
//!
//! Where systemd runs the daemon, its first process holds the group too, so that even the death of
//! daemon and keeper together lets nobody read a hole: reads wait until systemd has started the
//! daemon again, which finds the group among its descriptors.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};

use super::group::Group;
use crate::sys;

/// The descriptor's name in the store.
const NAME: &str = "xebec-group";

/// Variables by which systemd speaks to a service; not meant for its children.
pub(crate) const VARIABLES: [&str; 4] = [
    "NOTIFY_SOCKET",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];

/// Gives the group to the service manager, if there is one.
pub(crate) fn put(group: &Group) {
    notify(
        &format!("FDSTORE=1\nFDPOLL=0\nFDNAME={NAME}"),
        &[group.as_fd()],
    );
}

/// Takes it back: nothing is watched any more.
pub(crate) fn remove() {
    notify(&format!("FDSTOREREMOVE=1\nFDNAME={NAME}"), &[]);
}

/// The group that an earlier daemon has given to the service manager.
pub(crate) fn take() -> Option<Group> {
    let variable = |name| std::env::var(name).ok();
    let for_us = variable("LISTEN_PID")? == std::process::id().to_string();
    let names = variable("LISTEN_FDNAMES")?;
    let position = names.split(':').position(|name| name == NAME)?;
    let count: usize = variable("LISTEN_FDS")?.parse().ok()?;
    if !for_us || position >= count {
        return None;
    }
    match sys::inherited(position) {
        Ok(fd) => Some(fd.into()),
        Err(error) => {
            tracing::warn!(%error, "the descriptor that the service manager has kept");
            None
        }
    }
}

fn notify(state: &str, fds: &[BorrowedFd<'_>]) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(socket.as_encoded_bytes(), state, fds) {
        tracing::warn!(%error, "give a descriptor to the service manager");
    }
}

fn send(socket: &[u8], state: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let address = match socket.strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(socket)?,
    };
    let flags = SocketFlags::CLOEXEC;
    let sender = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let text = [IoSlice::new(state.as_bytes())];
    sendmsg_addr(
        &sender,
        &address,
        &text,
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
