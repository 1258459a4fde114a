//! Pidfds for others: runc's `--pidfd-socket`.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use crate::error::{Error, Result};
use crate::launch::connect_to;
use crate::request::Launched;
use crate::rootfs::send_descriptor;

/// Connects to the receiver before there is a process: one that is not there stops the launch.
pub(super) fn connect(path: Option<&Path>) -> Result<Option<OwnedFd>> {
    path.map(connect_to).transpose()
}

pub(super) fn send(receiver: Option<OwnedFd>, launched: &Launched) -> Result<()> {
    let Some(receiver) = receiver else {
        return Ok(());
    };
    send_descriptor(receiver.as_fd(), b"pidfd", launched.pidfd.as_fd())
        .map_err(Error::os("send the pidfd"))
}
