//! FUSE sessions that are kept: what a daemon needs to go on with one, and what is done for their
//! readers when no daemon comes.
//!
//! A session is its device, an open `/dev/fuse`. While anyone holds it the kernel keeps the mount
//! alive and lets requests wait. Those that a daemon has read and not answered are not lost with
//! it, as its death closes no last descriptor: the kernel queues them again when it is told to
//! (`FUSE_NOTIFY_RESEND`, Linux 6.9).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// A session in keeping.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Unlike any other's.
    pub(crate) name: String,
    /// Where its requests are read.
    pub(crate) device: OwnedFd,
    /// What the daemon has written down for its successor.
    pub(crate) record: OwnedFd,
}

/// Whether a session can have further requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Going,
    Over,
}

/// Code of the notification (`fuse_notify_code`).
const NOTIFY_RESEND: u32 = 7;
/// `fuse_out_header`: length, error or code, number.
const HEADER: usize = 16;
/// The kernel gives no request to less room (`FUSE_MIN_READ_BUFFER`), and on our mounts none is
/// longer, as nothing is written.
const ROOM: usize = 8192;
/// Requests that nobody waits for: FORGET, INTERRUPT, BATCH_FORGET.
const UNANSWERED: [u32; 3] = [2, 36, 42];
const EIO: i32 = 5;

impl Kept {
    /// Lets the kernel queue once more what was read and not answered.
    pub(crate) fn resend(&self) -> io::Result<()> {
        rustix::io::write(&self.device, &header(NOTIFY_RESEND, 0))?;
        Ok(())
    }

    /// Chooses whether reading the device waits for a request. Everyone who holds it is concerned.
    pub(crate) fn set_waiting(&self, waits: bool) -> io::Result<()> {
        let flags = fcntl_getfl(&self.device)?;
        let wanted = flags.difference(OFlags::NONBLOCK)
            | if waits {
                OFlags::empty()
            } else {
                OFlags::NONBLOCK
            };
        Ok(fcntl_setfl(&self.device, wanted)?)
    }

    /// Whether its mount is gone, and nobody uses it any more.
    pub(crate) fn is_over(&self) -> bool {
        let mut device = [PollFd::new(&self.device, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut device, Some(&now)).is_ok() && device[0].revents().contains(PollFlags::ERR)
    }

    /// Gets ready to answer in the place of a daemon that does not come.
    pub(super) fn begin_refusing(&self) {
        let begun = self.set_waiting(false).and_then(|()| self.resend());
        if let Err(error) = begun {
            tracing::error!(%error, session = self.name, "keeper: some reads go on waiting");
        }
    }

    /// Answers the requests that wait with EIO.
    pub(super) fn refuse(&self) -> Life {
        refuse(self.device.as_fd())
    }
}

fn refuse(device: BorrowedFd<'_>) -> Life {
    const AT_ONCE: usize = 64;
    let mut request = [0; ROOM];
    for _ in 0..AT_ONCE {
        match rustix::io::read(device, &mut request) {
            Ok(len) => {
                if let Some(answer) = refusal(&request[..len])
                    && let Err(errno) = rustix::io::write(device, &answer)
                {
                    tracing::debug!(%errno, "keeper: refuse a request");
                }
            }
            // It was given up while it was read.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Life::Going,
            Err(errno) => {
                if errno != rustix::io::Errno::NODEV {
                    tracing::error!(%errno, "keeper: a session is given up");
                }
                return Life::Over;
            }
        }
    }
    Life::Going
}

/// The answer EIO to a request, if it wants any.
fn refusal(request: &[u8]) -> Option<[u8; HEADER]> {
    let opcode = u32::from_ne_bytes(request.get(4..8)?.try_into().ok()?);
    let number = u64::from_ne_bytes(request.get(8..16)?.try_into().ok()?);
    (!UNANSWERED.contains(&opcode)).then(|| header(-EIO as u32, number))
}

fn header(code: u32, number: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&(HEADER as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&code.to_ne_bytes());
    header[8..].copy_from_slice(&number.to_ne_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_an_answer_gets_eio_under_the_number_of_the_request() {
        let request = |opcode: u32| {
            let mut request = header(opcode, 0x8000_0000_0000_0012).to_vec();
            request.resize(40, 0);
            request
        };
        let read = refusal(&request(15)).unwrap();
        assert_eq!(i32::from_ne_bytes(read[4..8].try_into().unwrap()), -EIO);
        assert_eq!(read[8..], request(15)[8..16]);
        for forget in UNANSWERED {
            assert_eq!(refusal(&request(forget)), None);
        }
        assert_eq!(refusal(&[0; 10]), None);
    }
}
