//! How messages travel between supervisor and worker, and from a launching process to the
//! supervisor: three numbers (length of the head, length of the raw part, descriptors), a JSON
//! head, raw bytes; descriptors come beside the first byte. Neither side ever waits for the
//! other: what has no room yet stays in the outbox.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most descriptors in one message: three streams and a console.
const MAX_FDS: usize = 4;
/// Most descriptors that leave together: those of a start with its streams.
const PACKET_FDS: usize = 3 * MAX_FDS;
/// Longest part of a message: an exec's process document with a large environment fits many
/// times over.
const MAX_LENGTH: u32 = 64 << 20;
/// Bytes before the head.
const PREFIX: usize = 12;
/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// A received message.
#[derive(Debug)]
pub(crate) struct Message<T> {
    /// What it says.
    pub(crate) head: T,
    /// The bytes that go with it.
    pub(crate) raw: Vec<u8>,
    /// The descriptors that go with it.
    pub(crate) fds: Vec<OwnedFd>,
}

/// Messages on their way out.
#[derive(Debug, Default)]
pub(crate) struct Outbox(VecDeque<Packet>);

#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

impl Outbox {
    /// Adds a message. Those that wait together leave by one system call, unless that had too many
    /// descriptors.
    pub(crate) fn push(
        &mut self,
        head: &impl Serialize,
        raw: &[u8],
        fds: Vec<OwnedFd>,
    ) -> io::Result<()> {
        if fds.len() > MAX_FDS {
            return Err(io::Error::other("too many descriptors"));
        }
        let head = serde_json::to_vec(head)?;
        let mut bytes = Vec::with_capacity(PREFIX + head.len() + raw.len());
        for length in [head.len(), raw.len(), fds.len()] {
            bytes.extend_from_slice(&number(length)?.to_ne_bytes());
        }
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(raw);
        match self.0.back_mut() {
            // The descriptors come in before the first message that one of them belongs to.
            Some(last) if last.fds.len() + fds.len() <= PACKET_FDS => {
                last.bytes.extend(bytes);
                last.fds.extend(fds);
            }
            _ => self.0.push_back(Packet {
                bytes,
                sent: 0,
                fds,
            }),
        }
        Ok(())
    }

    /// Sends what there is room for; true when nothing is left.
    pub(crate) fn flush(&mut self, socket: impl AsFd) -> io::Result<bool> {
        while let Some(packet) = self.0.front_mut() {
            match packet.send(socket.as_fd()) {
                Ok(sent) => {
                    packet.sent += sent;
                    packet.fds.clear();
                    if packet.sent == packet.bytes.len() {
                        self.0.pop_front();
                    }
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // A burst does not stay in memory.
        self.0.shrink_to(16);
        Ok(true)
    }

    /// True if nothing waits for room.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Packet {
    fn send(&self, socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
        let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Errno::INVAL);
        }
        let bytes = IoSlice::new(&self.bytes[self.sent..]);
        rustix::net::sendmsg(socket, &[bytes], &mut control, SendFlags::NOSIGNAL)
    }
}

/// Messages on their way in.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Inbox {
    /// Reads once; false at the end of the connection.
    pub(crate) fn fill(&mut self, socket: impl AsFd) -> io::Result<bool> {
        let mut chunk = [0; CHUNK];
        let (read, fds) = receive_with_fds(socket, &mut chunk)?;
        self.bytes.extend_from_slice(&chunk[..read]);
        self.fds.extend(fds);
        Ok(read > 0)
    }

    /// The next message that is complete.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<Message<T>>> {
        let Some((head, raw, fds)) = self.lengths()? else {
            return Ok(None);
        };
        if self.bytes.len() < PREFIX + head + raw {
            return Ok(None);
        }
        let message = Message {
            head: serde_json::from_slice(&self.bytes[PREFIX..PREFIX + head])?,
            raw: self.bytes[PREFIX + head..PREFIX + head + raw].to_vec(),
            fds: self.fds.drain(..fds.min(self.fds.len())).collect(),
        };
        if message.fds.len() != fds {
            return Err(io::Error::other("descriptors were lost on the way"));
        }
        self.bytes.drain(..PREFIX + head + raw);
        if self.bytes.is_empty() {
            self.bytes.shrink_to(CHUNK);
        }
        Ok(Some(message))
    }

    fn lengths(&self) -> io::Result<Option<(usize, usize, usize)>> {
        let Some(prefix) = self.bytes.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let [head, raw, fds] = [0, 4, 8].map(|at| {
            let mut word = [0; 4];
            word.copy_from_slice(&prefix[at..at + 4]);
            u32::from_ne_bytes(word)
        });
        if head > MAX_LENGTH || raw > MAX_LENGTH || fds as usize > MAX_FDS {
            return Err(io::Error::other("oversized message"));
        }
        Ok(Some((head as usize, raw as usize, fds as usize)))
    }
}

/// Reads bytes and the descriptors beside them, close-on-exec set.
pub(crate) fn receive_with_fds(
    socket: impl AsFd,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(bytes)], &mut control, flags)
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("descriptors were lost on the way"));
    }
    Ok((received.bytes, fds))
}

fn number(value: usize) -> io::Result<u32> {
    u32::try_from(value)
        .ok()
        .filter(|value| *value <= MAX_LENGTH)
        .ok_or_else(|| io::Error::other("oversized message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, UnixStream) {
        let (here, there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        (here, there)
    }

    #[test]
    fn messages_arrive_in_order_with_their_bytes_and_descriptors() {
        let (here, there) = pair();
        let (reader, writer) = io::pipe().unwrap();
        let (other_reader, other) = io::pipe().unwrap();
        let raw = vec![7; 300_000];
        let mut outbox = Outbox::default();
        outbox.push(&"large", &raw, vec![writer.into()]).unwrap();
        outbox.push(&"small", &[], Vec::new()).unwrap();
        outbox.push(&"one more", &[], vec![other.into()]).unwrap();
        assert_eq!(outbox.0.len(), 1, "they do not leave together");
        let mut inbox = Inbox::default();
        let mut next = || {
            loop {
                outbox.flush(&here).unwrap();
                if let Some(message) = inbox.next::<String>().unwrap() {
                    return message;
                }
                assert!(inbox.fill(&there).unwrap());
            }
        };
        let mut large = next();
        assert_eq!((&*large.head, &large.raw), ("large", &raw));
        assert!(next().fds.is_empty());
        let mut last = next();
        File::from(last.fds.remove(0)).write_all(b"ho").unwrap();
        assert_eq!(io::read_to_string(other_reader).unwrap(), "ho");
        File::from(large.fds.remove(0)).write_all(b"hi").unwrap();
        let mut text = String::new();
        { reader }.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hi");
        drop(here);
        assert!(!inbox.fill(&there).unwrap());
    }

    #[test]
    fn a_cut_message_never_shows_and_an_absurd_one_is_an_error() {
        let (here, there) = pair();
        let mut outbox = Outbox::default();
        outbox.push(&"whole", b"raw", Vec::new()).unwrap();
        let bytes = outbox.0.pop_front().unwrap().bytes;
        for cut in 1..bytes.len() {
            let mut inbox = Inbox::default();
            inbox.bytes.extend_from_slice(&bytes[..cut]);
            assert!(inbox.next::<String>().unwrap().is_none(), "cut at {cut}");
        }
        { &here }.write_all(&[0xff; PREFIX]).unwrap();
        let mut inbox = Inbox::default();
        inbox.fill(&there).unwrap();
        assert!(inbox.next::<String>().is_err());
    }
}
