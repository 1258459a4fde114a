//! Events for containerd: in the order they happened, on one connection, kept until containerd
//! has them, whatever becomes of the worker that told them.
//!
//! While containerd is down nothing new can be asked of the shim, so what waits are exits and
//! out-of-memory kills. Exits are always kept, there is one for each process; of the others the
//! newest [`LIMIT`].

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use prost::Message;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use xebec_proto::ttrpc::Response;

use super::message::Importance;
use super::stream::Stream;
use crate::error::Code;
use crate::log;
use crate::ttrpc::frame::{self, Frame, Header};

/// How long containerd may take to accept one event.
const CALL: Duration = Duration::from_secs(5);
/// Pauses between attempts while containerd cannot be reached.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Most ordinary events that wait.
const LIMIT: usize = 1024;

/// Carries events to containerd.
#[derive(Debug)]
pub(super) struct Courier {
    containerd: PathBuf,
    events: VecDeque<Event>,
    ordinary: usize,
    stream: Option<Stream>,
    next_stream: u32,
    /// The first event has been sent and has to be accepted until then.
    deadline: Option<Instant>,
    /// No attempt before.
    pause_until: Option<Instant>,
    pause: Duration,
}

#[derive(Debug)]
struct Event {
    /// An encoded ttrpc request.
    request: Vec<u8>,
    importance: Importance,
}

impl Courier {
    /// A courier to containerd's ttrpc socket.
    pub(super) fn new(containerd: PathBuf) -> Courier {
        Courier {
            containerd,
            events: VecDeque::new(),
            ordinary: 0,
            stream: None,
            next_stream: 1,
            deadline: None,
            pause_until: None,
            pause: FIRST_PAUSE,
        }
    }

    /// Queues one event.
    pub(super) fn push(&mut self, request: Vec<u8>, importance: Importance) {
        self.events.push_back(Event {
            request,
            importance,
        });
        if importance == Importance::Ordinary {
            self.ordinary += 1;
            if self.ordinary > LIMIT {
                self.drop_oldest();
            }
        }
        self.proceed();
    }

    /// Drops the oldest ordinary event that is not on its way.
    fn drop_oldest(&mut self) {
        let on_its_way = usize::from(self.deadline.is_some());
        let oldest = (on_its_way..self.events.len())
            .find(|index| self.events[*index].importance == Importance::Ordinary);
        if let Some(oldest) = oldest {
            self.events.remove(oldest);
            self.ordinary -= 1;
            log::warn(format_args!(
                "containerd takes no events: an old one is dropped"
            ));
        }
    }

    /// True if containerd has everything.
    pub(super) fn is_done(&self) -> bool {
        self.events.is_empty()
    }

    /// How many events wait.
    pub(super) fn waiting(&self) -> usize {
        self.events.len()
    }

    /// What to poll, for input always, for output if the second value is true.
    pub(super) fn socket(&self) -> Option<(&std::os::unix::net::UnixStream, bool)> {
        let stream = self.stream.as_ref()?;
        Some((&stream.socket, stream.is_full()))
    }

    /// When to call [`Courier::proceed`] at the latest.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.deadline.or(self.pause_until)
    }

    /// Reads an answer, or learns that containerd has gone.
    pub(super) fn ready(&mut self) {
        if let Err(error) = self.receive() {
            self.retry(&error);
        }
        self.proceed();
    }

    fn receive(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        stream.flush()?;
        let arrived = stream.read()?;
        for frame in arrived.frames {
            self.answered(&frame)?;
        }
        if arrived.ended {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn answered(&mut self, frame: &[u8]) -> io::Result<()> {
        let Some(Frame::Message(header, body)) = Frame::decode(frame) else {
            return Err(io::Error::other("oversized answer"));
        };
        // Streams count up by two, and one call is open at a time.
        let is_expected = header.stream == self.next_stream.wrapping_sub(2);
        if header.kind != frame::RESPONSE || !is_expected || self.deadline.is_none() {
            return Ok(());
        }
        let response = Response::decode(body.as_slice()).map_err(io::Error::other)?;
        let status = response.status.filter(|status| status.code != 0);
        if let Some(status) = status {
            if worth_retrying(status.code) {
                return Err(io::Error::other(status.message));
            }
            // A retry would only be refused again.
            log::error(format_args!(
                "containerd refused an event: {}",
                status.message
            ));
        }
        self.deadline = None;
        self.pause = FIRST_PAUSE;
        if let Some(event) = self.events.pop_front()
            && event.importance == Importance::Ordinary
        {
            self.ordinary -= 1;
        }
        Ok(())
    }

    /// Sends the first event if none is on its way; the next one waits for its answer, so that a
    /// retry never changes the order.
    pub(super) fn proceed(&mut self) {
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.retry(&io::ErrorKind::TimedOut.into());
        }
        if self.pause_until.is_some_and(|until| now < until) {
            return;
        }
        self.pause_until = None;
        if self.deadline.is_some() || self.events.is_empty() {
            return;
        }
        if let Err(error) = self.send_first() {
            self.retry(&error);
        }
    }

    fn send_first(&mut self) -> io::Result<()> {
        let Some(event) = self.events.front() else {
            return Ok(());
        };
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(connect(&self.containerd)?),
        };
        let header = Header {
            length: event.request.len(),
            stream: self.next_stream,
            kind: frame::REQUEST,
            flags: 0,
        };
        self.next_stream += 2;
        self.deadline = Some(Instant::now() + CALL);
        stream.send(&[&header.encode()[..], &event.request].concat())
    }

    /// Gives the connection up. With an event on its way a new one is tried at once, as the old
    /// one may have been idle since an earlier containerd; then after growing pauses.
    fn retry(&mut self, error: &io::Error) {
        self.stream = None;
        self.next_stream = 1;
        self.deadline = None;
        if self.events.is_empty() {
            return;
        }
        log::debug(format_args!("event not delivered yet: {error}"));
        self.pause_until = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

fn connect(path: &std::path::Path) -> io::Result<Stream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Connecting by a path never stays half-way: it is done, or refused, or the queue is full.
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(Stream::new(socket.into()))
}

fn worth_retrying(code: i32) -> bool {
    [Code::Unavailable, Code::DeadlineExceeded]
        .iter()
        .any(|known| *known as i32 == code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::thread::JoinHandle;

    /// A containerd that takes `count` events, of which it refuses `unlucky` for good, and ends.
    fn containerd(path: &Path, count: usize) -> JoinHandle<Vec<Vec<u8>>> {
        let listener = UnixListener::bind(path).unwrap();
        let path = path.to_owned();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut taken = Vec::new();
            while taken.len() < count {
                let mut header = [0; frame::HEADER];
                stream.read_exact(&mut header).unwrap();
                let header = Header::decode(header);
                let mut body = vec![0; header.length];
                stream.read_exact(&mut body).unwrap();
                let answer = if body == b"unlucky" {
                    frame::refusal(Code::InvalidArgument, "unlucky".into())
                } else {
                    Response::default()
                };
                taken.push(body);
                let answer = frame::encode(frame::RESPONSE, header.stream, &answer);
                stream.write_all(&answer).unwrap();
            }
            std::fs::remove_file(path).unwrap();
            taken
        })
    }

    /// Polls as the supervisor does until everything is delivered.
    fn deliver(courier: &mut Courier) {
        while !courier.is_done() {
            std::thread::sleep(Duration::from_millis(1));
            if courier.socket().is_some() {
                courier.ready();
            }
            courier.proceed();
        }
    }

    fn push(courier: &mut Courier, events: &[&str]) {
        for event in events {
            courier.push(event.as_bytes().to_vec(), Importance::Vital);
        }
    }

    #[test]
    fn events_survive_a_restart_of_containerd_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ttrpc");
        let mut courier = Courier::new(path.clone());
        push(&mut courier, &["1", "2", "3"]);
        let first = containerd(&path, 3);
        deliver(&mut courier);
        assert_eq!(first.join().unwrap(), [b"1", b"2", b"3"]);
        push(&mut courier, &["4", "unlucky", "6"]);
        let second = containerd(&path, 3);
        deliver(&mut courier);
        assert_eq!(second.join().unwrap(), [&b"4"[..], b"unlucky", b"6"]);
    }

    #[test]
    fn exits_are_kept_when_too_much_waits() {
        let mut courier = Courier::new("/nonexistent/ttrpc".into());
        courier.push(b"exit".to_vec(), Importance::Vital);
        for number in 0..LIMIT + 10 {
            courier.push(number.to_string().into_bytes(), Importance::Ordinary);
        }
        courier.push(b"exit 2".to_vec(), Importance::Vital);
        assert_eq!(courier.waiting(), LIMIT + 2);
        let first: Vec<_> = courier
            .events
            .iter()
            .take(2)
            .map(|event| &*event.request)
            .collect();
        assert_eq!(first, [&b"exit"[..], b"10"]);
        assert_eq!(courier.events.back().unwrap().request, b"exit 2");
    }
}
