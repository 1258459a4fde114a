//! What keeper and daemon say to each other: one packet each, a letter and numbers in the
//! machine's own order, since both ends are on one machine.
//!
//! | packet | from | holds |
//! |---|---|---|
//! | `S` | daemon, once | descriptors of the listening socket and, if there is one, of the group |
//! | `H` | keeper, first | version of this protocol, number of sessions that follow; descriptor of the group, if there is one |
//! | `K` | both | a FUSE session: descriptors of its device and its record; its name |
//! | `F` | daemon | name of a session that has ended |
//! | `G` | daemon | descriptor of the group |
//! | `E` | keeper | number of an event, offset, bytes (0: not known), path |
//! | `D` | daemon | number of an event that was answered |
//! | `R` | daemon | nothing is left to keep: the keeper ends when the daemon goes |

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::group::Group;
use super::session::Kept;

/// A daemon takes over from keepers of this version only.
const VERSION: u32 = 2;
/// Longest packet: an event with the longest path.
const MAX_PACKET: usize = 32 + 4096;
/// Most descriptors of a packet.
const MAX_FDS: usize = 2;

/// A read that waits, as the daemon gets to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// What the answer is for.
    pub(crate) id: i32,
    /// First byte.
    pub(crate) offset: u64,
    /// Bytes; 0 if the kernel does not say.
    pub(crate) count: u64,
    /// The file.
    pub(crate) path: PathBuf,
}

/// What a daemon says.
#[derive(Debug)]
pub(crate) enum FromDaemon {
    /// This event was answered.
    Done(i32),
    /// Files are watched from now on.
    Watches(Group),
    /// This session is to be kept.
    Keep(Kept),
    /// This one is not, any more.
    Forget(String),
    /// There will be nothing more.
    Dismissed,
    /// The daemon is gone.
    Gone,
}

/// What a keeper holds when a daemon comes.
#[derive(Debug)]
pub(crate) struct Hello {
    /// The watch, if there is one.
    pub(crate) group: Option<Group>,
    /// How many sessions will be handed over.
    pub(crate) sessions: u32,
}

/// Gives a new keeper its socket, and the group if there is one.
pub(crate) fn send_start(
    keeper: &OwnedFd,
    listener: BorrowedFd<'_>,
    group: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let fds: Vec<_> = [listener].into_iter().chain(group).collect();
    send(keeper, b"S", &fds, SendFlags::empty()).map(drop)
}

/// Waits for what [`send_start`] sends.
pub(crate) fn receive_start(daemon: &OwnedFd) -> io::Result<(OwnedFd, Option<Group>)> {
    let mut buffer = [0; MAX_PACKET];
    let (packet, fds) = receive(daemon, &mut buffer, RecvFlags::empty())?;
    let mut fds = fds.into_iter();
    match (packet, fds.next()) {
        (b"S", Some(listener)) => Ok((listener, fds.next().map(Group::from))),
        _ => Err(malformed()),
    }
}

/// Greets a daemon.
pub(crate) fn send_hello(
    daemon: &OwnedFd,
    group: Option<BorrowedFd<'_>>,
    sessions: u32,
) -> io::Result<()> {
    let mut packet = b"H".to_vec();
    packet.extend_from_slice(&VERSION.to_ne_bytes());
    packet.extend_from_slice(&sessions.to_ne_bytes());
    let fds: Vec<_> = group.into_iter().collect();
    send(daemon, &packet, &fds, SendFlags::DONTWAIT).map(drop)
}

/// Waits for the keeper's greeting.
pub(crate) fn receive_hello(keeper: &OwnedFd) -> io::Result<Hello> {
    let mut buffer = [0; MAX_PACKET];
    let (packet, mut fds) = receive(keeper, &mut buffer, RecvFlags::empty())?;
    match packet {
        [b'H', a, b, c, d, sessions @ ..] if [*a, *b, *c, *d] == VERSION.to_ne_bytes() => {
            let sessions = sessions.try_into().map_err(|_| malformed())?;
            Ok(Hello {
                group: fds.pop().map(Group::from),
                sessions: u32::from_ne_bytes(sessions),
            })
        }
        [b'H', ..] => Err(io::Error::other("the keeper speaks another version")),
        _ => Err(malformed()),
    }
}

/// Hands a session over, from either end; `false` if the other one has too much unread and
/// `DONTWAIT` was said.
pub(crate) fn send_session(to: &OwnedFd, kept: &Kept, flags: SendFlags) -> io::Result<bool> {
    let mut packet = b"K".to_vec();
    packet.extend_from_slice(kept.name.as_bytes());
    send(
        to,
        &packet,
        &[kept.device.as_fd(), kept.record.as_fd()],
        flags,
    )
}

/// Waits for a session that was announced.
pub(crate) fn receive_session(keeper: &OwnedFd) -> io::Result<Kept> {
    let mut buffer = [0; MAX_PACKET];
    let (packet, fds) = receive(keeper, &mut buffer, RecvFlags::empty())?;
    match packet {
        [b'K', name @ ..] => session(name, fds),
        _ => Err(malformed()),
    }
}

fn session(name: &[u8], fds: Vec<OwnedFd>) -> io::Result<Kept> {
    let mut fds = fds.into_iter();
    match (fds.next(), fds.next()) {
        (Some(device), Some(record)) => Ok(Kept {
            name: text(name)?,
            device,
            record,
        }),
        _ => Err(malformed()),
    }
}

fn text(bytes: &[u8]) -> io::Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| malformed())
}

/// Tells the keeper that a session has ended.
pub(crate) fn send_forget(keeper: &OwnedFd, name: &str) -> io::Result<()> {
    let mut packet = b"F".to_vec();
    packet.extend_from_slice(name.as_bytes());
    send(keeper, &packet, &[], SendFlags::empty()).map(drop)
}

/// Gives the keeper the group.
pub(crate) fn send_group(keeper: &OwnedFd, group: BorrowedFd<'_>) -> io::Result<()> {
    send(keeper, b"G", &[group], SendFlags::empty()).map(drop)
}

/// Tells the daemon of an event; `false` if it has too many unread already.
pub(crate) fn send_event(daemon: &OwnedFd, event: &Event) -> io::Result<bool> {
    let mut packet = b"E".to_vec();
    packet.extend_from_slice(&event.id.to_ne_bytes());
    packet.extend_from_slice(&event.offset.to_ne_bytes());
    packet.extend_from_slice(&event.count.to_ne_bytes());
    packet.extend_from_slice(event.path.as_os_str().as_bytes());
    send(daemon, &packet, &[], SendFlags::DONTWAIT)
}

/// Waits for an event; `None` when the keeper is gone.
pub(crate) fn receive_event(keeper: &OwnedFd) -> io::Result<Option<Event>> {
    let mut buffer = [0; MAX_PACKET];
    let (packet, _) = receive(keeper, &mut buffer, RecvFlags::empty())?;
    if packet.is_empty() {
        return Ok(None);
    }
    let numbers = packet.get(1..21).ok_or_else(malformed)?;
    if packet[0] != b'E' {
        return Err(malformed());
    }
    let u64_at = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&numbers[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    Ok(Some(Event {
        id: i32::from_ne_bytes([numbers[0], numbers[1], numbers[2], numbers[3]]),
        offset: u64_at(4),
        count: u64_at(12),
        path: OsString::from_vec(packet[21..].to_vec()).into(),
    }))
}

/// Tells the keeper that an event was answered.
pub(crate) fn send_done(keeper: &OwnedFd, id: i32) -> io::Result<()> {
    let mut packet = b"D".to_vec();
    packet.extend_from_slice(&id.to_ne_bytes());
    send(keeper, &packet, &[], SendFlags::empty()).map(drop)
}

/// Tells the keeper that it may go when we do.
pub(crate) fn send_dismissal(keeper: &OwnedFd) -> io::Result<()> {
    send(keeper, b"R", &[], SendFlags::empty()).map(drop)
}

/// What a daemon has said, without waiting; `None` if nothing.
pub(crate) fn receive_from_daemon(daemon: &OwnedFd) -> io::Result<Option<FromDaemon>> {
    let mut buffer = [0; MAX_PACKET];
    let (packet, mut fds) = loop {
        match receive(daemon, &mut buffer, RecvFlags::DONTWAIT) {
            // It died with packets of ours unread; what it had sent before is still to be read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            received => break received?,
        }
    };
    match packet {
        [b'D', id @ ..] => {
            let id = id.try_into().map_err(|_| malformed())?;
            Ok(Some(FromDaemon::Done(i32::from_ne_bytes(id))))
        }
        [b'K', name @ ..] => session(name, fds).map(|kept| Some(FromDaemon::Keep(kept))),
        [b'F', name @ ..] => Ok(Some(FromDaemon::Forget(text(name)?))),
        b"G" => match fds.pop() {
            Some(group) => Ok(Some(FromDaemon::Watches(group.into()))),
            None => Err(malformed()),
        },
        b"R" => Ok(Some(FromDaemon::Dismissed)),
        [] => Ok(Some(FromDaemon::Gone)),
        _ => Err(malformed()),
    }
}

fn malformed() -> io::Error {
    io::Error::other("an unknown packet")
}

/// Sends one packet; `false` if there is no room and `DONTWAIT` was said.
fn send(
    socket: &OwnedFd,
    packet: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<bool> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for a packet"));
    }
    let flags = flags | SendFlags::NOSIGNAL;
    loop {
        let sent = rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut ancillary, flags);
        return match sent {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::AGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        };
    }
}

/// Receives one packet; an empty one when the other end is gone.
fn receive<'b>(
    socket: &OwnedFd,
    buffer: &'b mut [u8],
    flags: RecvFlags,
) -> io::Result<(&'b [u8], Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(socket.as_fd(), &mut parts, &mut ancillary, flags) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((&buffer[..received.bytes], fds))
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn what_is_sent_is_received() {
        let (keeper, daemon) = pair();
        let event = Event {
            id: 17,
            offset: 1 << 40,
            count: 4096,
            path: "/a/b".into(),
        };
        assert!(send_event(&daemon, &event).unwrap());
        assert_eq!(receive_event(&keeper).unwrap(), Some(event));
        send_hello(&daemon, None, 3).unwrap();
        let hello = receive_hello(&keeper).unwrap();
        assert!(hello.group.is_none() && hello.sessions == 3);
        let heard = || receive_from_daemon(&daemon).unwrap();
        assert!(heard().is_none());
        send_done(&keeper, 17).unwrap();
        send_forget(&keeper, "one").unwrap();
        send_dismissal(&keeper).unwrap();
        assert!(matches!(heard(), Some(FromDaemon::Done(17))));
        assert!(matches!(heard(), Some(FromDaemon::Forget(name)) if name == "one"));
        assert!(matches!(heard(), Some(FromDaemon::Dismissed)));
        drop(keeper);
        assert!(matches!(heard(), Some(FromDaemon::Gone)));
    }

    /// A daemon that is killed has not read everything; the kernel then says so before it gives
    /// what the daemon has sent.
    #[test]
    fn the_last_words_of_a_daemon_are_heard() {
        let (keeper, daemon) = pair();
        send_hello(&daemon, None, 0).unwrap();
        let (device, record) = pair();
        let kept = Kept {
            name: "last".to_owned(),
            device,
            record,
        };
        assert!(send_session(&keeper, &kept, SendFlags::empty()).unwrap());
        drop(keeper);
        let heard = || receive_from_daemon(&daemon).unwrap();
        assert!(matches!(heard(), Some(FromDaemon::Keep(kept)) if kept.name == "last"));
        assert!(matches!(heard(), Some(FromDaemon::Gone)));
    }

    #[test]
    fn a_daemon_that_does_not_read_is_not_waited_for() {
        let (_keeper, daemon) = pair();
        let event = Event {
            id: 1,
            offset: 0,
            count: 1,
            path: "x".repeat(4000).into(),
        };
        let sent = (0..10_000).take_while(|_| send_event(&daemon, &event).unwrap());
        assert!((1..10_000).contains(&sent.count()));
    }

    #[test]
    fn a_stranger_is_not_understood() {
        let (ours, theirs) = pair();
        send(&theirs, b"Z", &[], SendFlags::empty()).unwrap();
        assert!(receive_event(&ours).is_err());
        send(&theirs, b"H1234", &[ours.as_fd()], SendFlags::empty()).unwrap();
        let refused = receive_hello(&ours).unwrap_err().to_string();
        assert!(refused.contains("version"), "{refused}");
    }
}
