//! The conversation with one `criu swrk`: a request, its notifications, an answer, each a packet.

use std::io::{ErrorKind, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use prost::Message as _;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketFlags,
    SocketType, recvmsg, socketpair,
};
use xebec_proto::criu::{Features, Request, RequestType, Response};

use crate::error::{Error, Result};

/// Longest packet of CRIU's; all of them are small.
const PACKET_MAX: usize = 64 << 10;

/// Our end of the socket.
#[derive(Debug)]
pub(crate) struct Session(std::os::unix::net::UnixStream);

/// What CRIU tells on its way.
#[derive(Debug)]
pub(crate) struct Notice {
    /// Where it is: `post-dump`, `setup-namespaces`, …
    pub(crate) script: String,
    /// Pid of the restored init, where there is one.
    pub(crate) pid: i32,
    /// The master of the container's terminal, with `orphan-pts-master`.
    pub(crate) file: Option<OwnedFd>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It did what it was asked for.
    Done {
        /// Pid of the restored init, after a restore.
        pid: i32,
        /// What CRIU and the kernel can do, after a question for that.
        features: Features,
    },
    /// It did not: the request that failed, as CRIU calls it, CRIU's errno, and its words if it
    /// had any.
    Failed {
        request: &'static str,
        errno: i32,
        words: String,
    },
}

impl Session {
    /// A session, and the end that CRIU gets.
    pub(crate) fn new() -> Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(Error::os("socketpair"))?;
        Ok((Self(ours.into()), theirs))
    }

    /// Asks, answers notifications by what `on_notice` does about them, and waits for the end. A
    /// notification that cannot be served ends the session, which makes CRIU give up.
    pub(crate) fn ask(
        &self,
        request: &Request,
        on_notice: &mut dyn FnMut(Notice) -> Result<()>,
    ) -> Result<Answer> {
        self.send(request)?;
        loop {
            let (response, file) = self.receive()?;
            let kind = response.r#type();
            if !response.success {
                return Ok(Answer::Failed {
                    request: kind.as_str_name(),
                    errno: response.cr_errno(),
                    words: response.cr_errmsg().to_owned(),
                });
            }
            if kind != RequestType::Notify {
                return Ok(Answer::Done {
                    pid: response.restore.map_or(0, |restore| restore.pid),
                    features: response.features.unwrap_or_default(),
                });
            }
            let notice = response.notify.unwrap_or_default();
            on_notice(Notice {
                script: notice.script().to_owned(),
                pid: notice.pid(),
                file,
            })?;
            let mut heard = Request::default();
            heard.set_type(RequestType::Notify);
            heard.notify_success = Some(true);
            self.send(&heard)?;
        }
    }

    fn send(&self, request: &Request) -> Result<()> {
        let sent = (&self.0).write_all(&request.encode_to_vec());
        sent.map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => ended(),
            _ => Error::os("speak to criu")(error),
        })
    }

    fn receive(&self) -> Result<(Response, Option<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut packet = vec![0; PACKET_MAX];
        let mut data = [IoSliceMut::new(&mut packet)];
        let receive = || recvmsg(&self.0, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC);
        let received = match rustix::io::retry_on_intr(receive) {
            Ok(received) if received.bytes > 0 => received,
            // The second one if it has not read the question.
            Ok(_) | Err(Errno::CONNRESET) => {
                return Err(ended());
            }
            Err(errno) => return Err(Error::os("listen to criu")(errno)),
        };
        let garbled = |reason: &str| Error::Criu(format!("its answer is {reason}"));
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(garbled("too long"));
        }
        let file = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        let response =
            Response::decode(&packet[..received.bytes]).map_err(|e| garbled(&e.to_string()))?;
        Ok((response, file))
    }
}

fn ended() -> Error {
    Error::Criu("it ended without an answer".to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use xebec_proto::criu::{Notification, RestoreAnswer};

    use super::*;

    fn packet(peer: &mut UnixStream) -> Request {
        let mut packet = [0; 4096];
        let length = peer.read(&mut packet).expect("a packet");
        Request::decode(&packet[..length]).expect("a request")
    }

    fn response(kind: RequestType) -> Response {
        let mut response = Response {
            success: true,
            ..Response::default()
        };
        response.set_type(kind);
        response
    }

    #[test]
    fn notifications_are_answered_until_the_end() {
        let (session, peer) = Session::new().expect("a socket pair");
        let mut peer = UnixStream::from(peer);
        let criu = std::thread::spawn(move || {
            assert_eq!(packet(&mut peer).r#type(), RequestType::Restore);
            let mut notice = response(RequestType::Notify);
            notice.notify = Some(Notification {
                script: Some("post-restore".to_owned()),
                pid: Some(7),
            });
            peer.write_all(&notice.encode_to_vec()).expect("sent");
            assert_eq!(packet(&mut peer).notify_success, Some(true));
            let mut end = response(RequestType::Restore);
            end.restore = Some(RestoreAnswer { pid: 7 });
            peer.write_all(&end.encode_to_vec()).expect("sent");
        });
        let mut request = Request::default();
        request.set_type(RequestType::Restore);
        let mut heard = Vec::new();
        let answer = session.ask(&request, &mut |notice| {
            heard.push((notice.script, notice.pid));
            Ok(())
        });
        criu.join().expect("criu's side");
        assert!(
            matches!(answer, Ok(Answer::Done { pid: 7, .. })),
            "{answer:?}"
        );
        assert_eq!(heard, [("post-restore".to_owned(), 7)]);
    }

    #[test]
    fn silence_and_garbage_are_errors() {
        for said in [&b""[..], b"\xff\xff\xff"] {
            let (session, peer) = Session::new().expect("a socket pair");
            let mut peer = UnixStream::from(peer);
            let said = said.to_vec();
            let criu = std::thread::spawn(move || {
                packet(&mut peer);
                if !said.is_empty() {
                    peer.write_all(&said).expect("sent");
                }
            });
            let answer = session.ask(&Request::default(), &mut |_| Ok(()));
            criu.join().expect("criu's side");
            assert!(matches!(answer, Err(Error::Criu(_))), "{answer:?}");
        }
    }
}
