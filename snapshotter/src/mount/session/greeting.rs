//! The beginning of a session: the kernel's first request (`FUSE_INIT`) and its answer.
//!
//! fuser begins every session by reading that request, which comes once in the life of a mount and
//! not to a daemon that goes on with one. So it is passed on to fuser by way of a socket, whose
//! place the device takes afterwards; a successor passes on what its predecessor has received.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use fuser::{Config, Session, SessionACL};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::super::fuse::TreeFs;
use crate::sys;

/// Room for the request; the kernel gives none to less than 8 KiB.
const ROOM: usize = 64 << 10;
/// Offsets in the request: `fuse_in_header`, then `fuse_init_in`.
const OPCODE: usize = 4;
const MAJOR: usize = 40;
const FLAGS2: usize = 56;
/// And in its answer: `fuse_out_header`, then `fuse_init_out`.
const ANSWER_FLAGS2: usize = 48;
const INIT: u32 = 26;
const SUPPORTED_MAJOR: u32 = 7;
/// `FUSE_HAS_RESEND` and `FUSE_PASSTHROUGH`, of the upper half of the flags.
const HAS_RESEND: u32 = 1 << (39 - 32);
const PASSTHROUGH: u32 = 1 << (37 - 32);

/// The kernel's first request on a device that was just mounted.
pub(super) fn receive(device: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut request = vec![0; ROOM];
    let len = rustix::io::retry_on_intr(|| rustix::io::read(device, &mut request))?;
    request.truncate(len);
    if number(&request, OPCODE) != INIT || number(&request, MAJOR) != SUPPORTED_MAJOR {
        return Err(io::Error::other("the kernel speaks another FUSE protocol"));
    }
    Ok(request)
}

/// Whether the kernel can be told to ask once more what was not answered (Linux 6.9).
pub(super) fn has_resend(init: &[u8]) -> bool {
    number(init, FLAGS2) & HAS_RESEND != 0
}

/// Whether the answer says that the kernel is to read files by itself.
pub(super) fn agrees_to_passthrough(answer: &[u8]) -> bool {
    number(answer, ANSWER_FLAGS2) & PASSTHROUGH != 0
}

/// A session of fuser on `device`, and fuser's answer to the first request. The kernel wants that
/// once.
pub(super) fn session(
    tree: TreeFs,
    device: BorrowedFd<'_>,
    init: &[u8],
    threads: usize,
) -> io::Result<(Session<TreeFs>, Vec<u8>)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (ours, theirs): (OwnedFd, OwnedFd) = socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
    rustix::io::write(&ours, init)?;
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads.max(1));
    // One descriptor for all: what was read by way of a clone would fail with the clone's end.
    config.clone_fd = false;
    let place = theirs.as_raw_fd();
    let session = Session::from_fd(tree, theirs, SessionACL::All, config)?;
    let mut answer = vec![0; ROOM];
    let len = rustix::io::read(&ours, &mut answer)?;
    answer.truncate(len);
    debug_assert_eq!(session.as_fd().as_raw_fd(), place);
    sys::fuse::take_place(device, session.as_fd())?;
    Ok((session, answer))
}

fn number(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_ne_bytes)
}
