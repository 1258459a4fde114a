//! What is kept, in systemd's file descriptor store (sd_pid_notify_with_fds(3),
//! sd_listen_fds(3)).
//!
//! Where systemd runs the daemon, its first process holds the group and the sessions too, so that
//! even the death of daemon and keeper together lets nobody read a hole and ends no session: reads
//! wait until systemd has started the daemon again, which finds all of it among its descriptors.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};

use super::group::Group;
use super::session::Kept;
use crate::sys;

/// The group's name in the store.
const GROUP: &str = "xebec-group";
/// What the names of a session's two descriptors begin with; its own name follows.
const DEVICE: &str = "xebec-fuse-";
const RECORD: &str = "xebec-record-";

/// Variables by which systemd speaks to a service; not meant for its children.
pub(crate) const VARIABLES: [&str; 4] = [
    "NOTIFY_SOCKET",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];

/// Gives the group to the service manager, if there is one.
pub(crate) fn put_group(group: &Group) {
    put(GROUP, group.as_fd());
}

/// Gives a session to the service manager, if there is one.
pub(crate) fn put_session(kept: &Kept) {
    put(&format!("{DEVICE}{}", kept.name), kept.device.as_fd());
    put(&format!("{RECORD}{}", kept.name), kept.record.as_fd());
}

/// Takes the group back: nothing is watched any more.
pub(crate) fn remove_group() {
    remove(GROUP);
}

/// Takes a session back: it has ended.
pub(crate) fn remove_session(name: &str) {
    remove(&format!("{DEVICE}{name}"));
    remove(&format!("{RECORD}{name}"));
}

/// What an earlier daemon has given to the service manager; once in the life of the process.
pub(crate) fn take() -> (Option<Group>, Vec<Kept>) {
    let mut found = match inherited() {
        Ok(found) => found.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, "the descriptors that the service manager has kept");
            BTreeMap::new()
        }
    };
    let group = found.remove(GROUP).map(Group::from);
    let names: Vec<String> = found
        .keys()
        .filter_map(|name| name.strip_prefix(DEVICE).map(str::to_owned))
        .collect();
    let session = |name: String| {
        Some(Kept {
            device: found.remove(&format!("{DEVICE}{name}"))?,
            record: found.remove(&format!("{RECORD}{name}"))?,
            name,
        })
    };
    (group, names.into_iter().filter_map(session).collect())
}

/// The descriptors that are meant for this process, by name.
fn inherited() -> io::Result<Option<BTreeMap<String, OwnedFd>>> {
    let variable = |name| std::env::var(name).ok();
    if variable("LISTEN_PID") != Some(std::process::id().to_string()) {
        return Ok(None);
    }
    let (Some(names), Some(count)) = (variable("LISTEN_FDNAMES"), variable("LISTEN_FDS")) else {
        return Ok(None);
    };
    let fds = sys::inherited(count.parse().map_err(io::Error::other)?)?;
    Ok(Some(names.split(':').map(str::to_owned).zip(fds).collect()))
}

fn put(name: &str, fd: BorrowedFd<'_>) {
    notify(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[fd]);
}

fn remove(name: &str) {
    notify(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
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
