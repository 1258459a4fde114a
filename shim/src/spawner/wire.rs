//! What the daemon and its spawner say to each other: two lengths, a JSON head, raw bytes, and
//! descriptors beside the first byte.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Most descriptors in one message: three streams and a console.
const MAX_FDS: usize = 4;
/// Longest message: an exec's process document with a large environment fits many times over.
const MAX_LENGTH: u32 = 64 << 20;

/// A process to be started.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// Runtime state directory.
    pub(crate) root: PathBuf,
    /// Container id.
    pub(crate) id: String,
    pub(crate) ignore_missing_controllers: bool,
    pub(crate) systemd_cgroup: bool,
    /// Which of the descriptors stdin, stdout, stderr, console come along, in this order.
    pub(crate) descriptors: [bool; MAX_FDS],
    pub(crate) pid_file: PathBuf,
    pub(crate) launch: Launch,
}

/// Init of a new container, or a further process; the latter's document is the raw part.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Launch {
    Init {
        bundle: PathBuf,
        no_pivot: bool,
        no_new_keyring: bool,
    },
    Exec,
}

/// The answer; a launched process comes with its pidfd.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Launched { pid: i32 },
    Failed { message: String },
}

/// A received message.
#[derive(Debug)]
pub(crate) struct Message<T> {
    pub(crate) head: T,
    pub(crate) raw: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Sends one message.
pub(crate) fn send(
    socket: &UnixStream,
    head: &impl Serialize,
    raw: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let head = serde_json::to_vec(head)?;
    let mut bytes = Vec::with_capacity(8 + head.len() + raw.len());
    bytes.extend_from_slice(&length(head.len())?.to_ne_bytes());
    bytes.extend_from_slice(&length(raw.len())?.to_ne_bytes());
    bytes.extend_from_slice(&head);
    bytes.extend_from_slice(raw);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let flags = SendFlags::NOSIGNAL;
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags)
    })?;
    let mut rest = socket;
    rest.write_all(&bytes[sent..])
}

/// Receives one message; `None` when the other side is gone.
pub(crate) fn receive<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<Option<Message<T>>> {
    let mut lengths = [0; 8];
    let (got, fds) = receive_with_fds(socket, &mut lengths)?;
    if got == 0 {
        return Ok(None);
    }
    let mut rest = socket;
    rest.read_exact(&mut lengths[got..])?;
    let [head, raw] = [0, 4].map(|at| {
        let mut word = [0; 4];
        word.copy_from_slice(&lengths[at..at + 4]);
        u32::from_ne_bytes(word)
    });
    if head > MAX_LENGTH || raw > MAX_LENGTH {
        return Err(io::Error::other("oversized message"));
    }
    let mut bytes = vec![0; head as usize];
    rest.read_exact(&mut bytes)?;
    let mut tail = vec![0; raw as usize];
    rest.read_exact(&mut tail)?;
    Ok(Some(Message {
        head: serde_json::from_slice(&bytes)?,
        raw: tail,
        fds,
    }))
}

/// Reads bytes and the descriptors beside them, close-on-exec set.
pub(crate) fn receive_with_fds(
    socket: impl AsFd,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
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

fn length(bytes: usize) -> io::Result<u32> {
    u32::try_from(bytes)
        .ok()
        .filter(|length| *length <= MAX_LENGTH)
        .ok_or_else(|| io::Error::other("oversized message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            root: "/r".into(),
            id: "c".into(),
            ignore_missing_controllers: false,
            systemd_cgroup: false,
            descriptors: [true, false, false, false],
            pid_file: "/b/init.pid".into(),
            launch: Launch::Exec,
        }
    }

    #[test]
    fn a_message_arrives_with_its_bytes_and_descriptors() {
        let (here, there) = UnixStream::pair().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let raw = vec![7; 300_000];
        let expected = raw.clone();
        let sender = std::thread::spawn(move || {
            send(&here, &request(), &raw, &[writer.as_fd()]).unwrap();
        });
        let message = receive::<Request>(&there).unwrap().unwrap();
        sender.join().unwrap();
        assert_eq!(message.head.id, "c");
        assert_eq!(message.raw, expected);
        let [fd]: [OwnedFd; 1] = message.fds.try_into().unwrap();
        std::fs::File::from(fd).write_all(b"hi").unwrap();
        let mut text = String::new();
        { reader }.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hi");
        assert!(receive::<Request>(&there).unwrap().is_none());
    }

    #[test]
    fn a_cut_or_absurd_message_is_an_error() {
        let (here, there) = UnixStream::pair().unwrap();
        { &here }
            .write_all(&[4, 0, 0, 0, 0, 0, 0, 0, b'{'])
            .unwrap();
        drop(here);
        assert!(receive::<Request>(&there).is_err());
        let (here, there) = UnixStream::pair().unwrap();
        { &here }.write_all(&[0xff; 8]).unwrap();
        assert!(receive::<Request>(&there).is_err());
    }
}
