//! Signals as something to wait for beside other descriptors.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::error::{Error, Result};
use crate::sys;

/// All signals of this process, blocked and readable instead: none is lost between two waits.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks every signal from now on. Processes of containers start with none blocked.
    pub fn block() -> Result<Self> {
        sys::block_all();
        sys::signal_fd().map(Self).map_err(Error::os("signalfd"))
    }

    /// The next pending signal's number, if there is one.
    pub fn next(&self) -> Result<Option<i32>> {
        let mut record = [0; sys::SIGNAL_RECORD];
        match rustix::io::read(&self.0, &mut record) {
            Ok(length) if length >= 4 => {
                let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
                Ok(i32::try_from(number).ok())
            }
            Ok(_) | Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(Error::os("read signals")(errno)),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Receives the one descriptor that the peer of a unix socket sends: a terminal's master, as a
/// console socket gets it.
pub fn receive_descriptor(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    let mut data = [IoSliceMut::new(&mut name)];
    let receive = || recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC);
    rustix::io::retry_on_intr(receive).map_err(Error::os("receive the terminal"))?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    received.ok_or_else(|| Error::Os {
        op: "receive the terminal".to_owned(),
        source: std::io::ErrorKind::UnexpectedEof.into(),
    })
}
