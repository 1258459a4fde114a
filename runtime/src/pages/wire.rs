//! What the parties say to each other: packets of one byte, a number, and descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, socket_with,
};

/// Most descriptors in one packet; the kernel takes 253.
pub(super) const FDS_MAX: usize = 64;

/// What a packet is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// To the server: a clone comes; the socket that CRIU will connect to, and the images.
    Clone = b'c',
    /// To the server: it runs; a descriptor of its init.
    Started = b's',
    /// The other's request is done.
    Done = b'o',
    /// To the guard: it depends on these.
    Keep = b'k',
    /// To the guard: it has ended.
    Ended = b'e',
}

/// One packet.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) kind: Kind,
    /// Which clone, between server and guard; of a new one, whether it gets hot pages.
    pub(super) number: u64,
    pub(super) files: Vec<OwnedFd>,
}

/// A socket of packets.
pub(super) fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// A connection to whoever listens at `path`.
pub(super) fn connect_to(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = new_socket()?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends one packet.
pub(super) fn send(
    socket: &OwnedFd,
    kind: Kind,
    number: u64,
    files: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let mut bytes = [kind as u8; 9];
    bytes[1..].copy_from_slice(&number.to_le_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(Errno::TOOBIG);
    }
    let data = [IoSlice::new(&bytes)];
    retry_on_intr(|| sendmsg(socket, &data, &mut control, SendFlags::NOSIGNAL)).map(drop)
}

/// Receives one packet; none when the other end is closed.
pub(super) fn receive(socket: &OwnedFd) -> Result<Option<Packet>, Errno> {
    let mut bytes = [0; 9];
    let (length, files) = receive_into(socket.as_fd(), &mut bytes)?;
    if length == 0 {
        return Ok(None);
    }
    let known = [
        Kind::Clone,
        Kind::Started,
        Kind::Done,
        Kind::Keep,
        Kind::Ended,
    ];
    let kind = known.into_iter().find(|kind| *kind as u8 == bytes[0]);
    let [_, number @ ..] = bytes;
    Ok(Some(Packet {
        kind: kind.filter(|_| length == 9).ok_or(Errno::PROTO)?,
        number: u64::from_le_bytes(number),
        files,
    }))
}

/// Receives bytes with descriptors; how many bytes there were.
pub(super) fn receive_into(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(bytes)];
    let receive = || recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC);
    let received = retry_on_intr(receive)?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            files.extend(sent);
        }
    }
    Ok((received.bytes, files))
}

#[cfg(test)]
mod tests {
    use rustix::net::socketpair;

    use super::*;

    #[test]
    fn packets_arrive_as_they_were_sent() {
        let flags = SocketFlags::CLOEXEC;
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a pair");
        send(&one, Kind::Keep, 7, &[one.as_fd(), other.as_fd()]).expect("sent");
        let packet = receive(&other).expect("received").expect("a packet");
        assert_eq!((packet.kind, packet.number), (Kind::Keep, 7));
        assert_eq!(packet.files.len(), 2);
        rustix::io::write(&one, b"?").expect("sent");
        assert_eq!(receive(&other).expect_err("no packet"), Errno::PROTO);
        drop((packet, one));
        assert!(receive(&other).expect("the end").is_none());
    }
}
