//! Trees from one process to another: opened where the privileges are, attached elsewhere.

use std::ffi::CString;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::host::{HostPart, HostTree, HostTrees, RootTree};
use crate::error::{Error, Result};

/// What a packet carries: its first byte.
const ROOT: u8 = b'r';
const NOTHING: u8 = b'-';
const DIRECTORY: u8 = b'd';
const FILE: u8 = b'f';
const KNOWN_DIRECTORY: u8 = b'D';
const KNOWN_FILE: u8 = b'F';
const LINK: u8 = b'l';
const DEVICE: u8 = b'n';
const FAILURE: u8 = b'!';

/// Longest text of a failure.
const TEXT_MAX: usize = 4096;

/// Sends what came of opening trees, tree by tree, over a socket that keeps packets apart.
pub(crate) fn send_trees(socket: BorrowedFd<'_>, opened: &Result<HostTrees>) -> Result<()> {
    let send = |kind: u8, fd: Option<BorrowedFd<'_>>| send_packet(socket, &[kind], fd);
    let sent = match opened {
        Ok(trees) => trees
            .mounts
            .iter()
            .try_for_each(|part| match &part.tree {
                Some(HostTree::Tree { fd, is_dir }) => {
                    send(if *is_dir { DIRECTORY } else { FILE }, Some(fd.as_fd()))
                }
                Some(HostTree::Known { fd, is_dir }) => {
                    let kind = if *is_dir { KNOWN_DIRECTORY } else { KNOWN_FILE };
                    send(kind, Some(fd.as_fd()))
                }
                Some(HostTree::Link(target)) => {
                    send_packet(socket, &[&[LINK], target.to_bytes()].concat(), None)
                }
                None => send(NOTHING, None),
            })
            .and_then(|()| {
                let mut devices = trees.devices.iter();
                devices.try_for_each(|device| send(DEVICE, Some(device.as_fd())))
            })
            // The root comes last and says that all is there.
            .and_then(|()| match &trees.root {
                RootTree::Clone(root) => send(ROOT, Some(root.as_fd())),
                // Only made by whoever makes the child as well.
                RootTree::Namespace(_) => Err(Errno::OPNOTSUPP),
            }),
        Err(error) => {
            let mut text = vec![FAILURE];
            text.extend(error.to_string().bytes().take(TEXT_MAX - 1));
            send_packet(socket, &text, None)
        }
    };
    sent.map_err(Error::os("send trees"))
}

/// Receives what [`send_trees`] sends.
pub(crate) fn receive_trees(socket: BorrowedFd<'_>) -> Result<HostTrees> {
    let (mut mounts, mut devices) = (Vec::new(), Vec::new());
    loop {
        let mut text = [0; TEXT_MAX];
        let (length, fd) = receive_packet(socket, &mut text).map_err(Error::os("receive trees"))?;
        let garbled = || Error::os("receive trees")(Errno::BADMSG);
        let fd = || fd.ok_or_else(garbled);
        let mut mount = |tree| {
            mounts.push(HostPart {
                tree,
                ..HostPart::default()
            });
        };
        match text[..length].split_first() {
            Some((&NOTHING, _)) => mount(None),
            Some((kind @ (&DIRECTORY | &FILE), _)) => mount(Some(HostTree::Tree {
                fd: fd()?,
                is_dir: *kind == DIRECTORY,
            })),
            Some((kind @ (&KNOWN_DIRECTORY | &KNOWN_FILE), _)) => mount(Some(HostTree::Known {
                fd: fd()?,
                is_dir: *kind == KNOWN_DIRECTORY,
            })),
            Some((&LINK, target)) => mount(Some(HostTree::Link(
                CString::new(target).map_err(|_| garbled())?,
            ))),
            Some((&DEVICE, _)) => devices.push(fd()?),
            Some((&ROOT, _)) => {
                return Ok(HostTrees {
                    root: RootTree::Clone(fd()?),
                    mounts,
                    devices,
                });
            }
            Some((&FAILURE, reason)) => {
                let reason = String::from_utf8_lossy(reason).into_owned();
                return Err(Error::InvalidArgument(reason));
            }
            _ => return Err(Error::InitDied("while it opened trees".to_owned())),
        }
    }
}

fn send_packet(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> std::result::Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fd) = &fd
        && !control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)))
    {
        return Err(Errno::NOBUFS);
    }
    let bytes = [IoSlice::new(bytes)];
    rustix::io::retry_on_intr(|| sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL))
        .map(drop)
}

fn receive_packet(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> std::result::Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(bytes)];
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fd = rights.last();
        }
    }
    Ok((received.bytes, fd))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags, fstat, open};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let (flags, kind) = (SocketFlags::CLOEXEC, SocketType::SEQPACKET);
        socketpair(AddressFamily::UNIX, kind, flags, None).expect("a socket pair")
    }

    #[test]
    fn trees_arrive_in_their_places() {
        let (ours, theirs) = pair();
        let fd =
            |path: &str| open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("opens");
        let part = |tree| HostPart {
            tree,
            ..HostPart::default()
        };
        let bind = HostTree::Tree {
            fd: fd("/proc"),
            is_dir: true,
        };
        let link = HostTree::Link(c"/there".to_owned());
        let trees = HostTrees {
            root: RootTree::Clone(fd("/")),
            mounts: vec![part(None), part(Some(bind)), part(Some(link))],
            devices: vec![fd("/dev/null")],
        };
        send_trees(theirs.as_fd(), &Ok(trees)).expect("sent");
        let arrived = receive_trees(ours.as_fd()).expect("received");
        let inode = |fd: &OwnedFd| fstat(fd).expect("fstat").st_ino;
        let RootTree::Clone(root) = &arrived.root else {
            panic!("arrived: {:?}", arrived.root)
        };
        assert_eq!(inode(root), inode(&fd("/")));
        match &arrived.mounts[..] {
            [
                HostPart { tree: None, .. },
                HostPart {
                    tree:
                        Some(HostTree::Tree {
                            fd: bind,
                            is_dir: true,
                        }),
                    ..
                },
                HostPart {
                    tree: Some(HostTree::Link(target)),
                    ..
                },
            ] => {
                assert_eq!(inode(bind), inode(&fd("/proc")));
                assert_eq!(target.as_c_str(), c"/there");
            }
            other => panic!("arrived: {other:?}"),
        }
        assert_eq!(inode(&arrived.devices[0]), inode(&fd("/dev/null")));
    }

    #[test]
    fn a_failure_arrives_with_its_words_and_a_death_is_noticed() {
        let (ours, theirs) = pair();
        let error = Error::InvalidArgument("no such rootfs".to_owned());
        send_trees(theirs.as_fd(), &Err(error)).expect("sent");
        drop(theirs);
        let failed = receive_trees(ours.as_fd()).expect_err("a failure");
        assert_eq!(failed.to_string(), "no such rootfs");
        let dead = receive_trees(ours.as_fd()).expect_err("nobody there");
        assert!(dead.to_string().contains("init died"), "{dead}");
    }
}
