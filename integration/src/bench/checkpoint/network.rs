//! A network namespace that containers join by its path, as under CRI, and a client in it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::super::measure::output;
use crate::error::{Error, Result};

/// Where every server listens.
pub(super) const PORT: u16 = 8080;
/// How often a server that is not there yet is asked again.
const AGAIN: Duration = Duration::from_micros(300);
/// How long a connection may take, which takes no time where there is a server: one that is refused by
/// silence, as by a network that CRIU has locked, would try again only after a second.
const HANDSHAKE: Duration = Duration::from_millis(5);
/// How long a server may take.
const PATIENCE: Duration = Duration::from_mins(1);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";

/// A namespace under `/run/netns`; it goes with the host.
pub(super) struct Network {
    path: String,
}

/// A complete answer.
pub(super) struct Answer {
    /// When its last byte had come.
    pub(super) at: Instant,
    /// What it says.
    pub(super) body: String,
}

impl Network {
    /// Makes it, with its loopback up.
    pub(super) fn create(name: &'static str) -> Result<Self> {
        output(&["ip", "netns", "add", name])?;
        output(&["ip", "-n", name, "link", "set", "lo", "up"])?;
        Ok(Self {
            path: format!("/run/netns/{name}"),
        })
    }

    /// That of a process.
    pub(super) fn of(pid: u32) -> Self {
        Self {
            path: format!("/proc/{pid}/ns/net"),
        }
    }

    /// Its file.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Has `work` done while the server is asked until it answers; what `work` returns, when it
    /// began, and the answer.
    pub(super) fn ask_while<T>(
        &self,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Instant, Answer)> {
        let path = self.path();
        let namespace = File::open(path).map_err(Error::file("open", Path::new(path)))?;
        let (inside, entered) = channel();
        let hopeless = AtomicBool::new(false);
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                let inside = inside;
                move_into_thread_name_spaces(namespace.as_fd(), ThreadNameSpaceType::NETWORK)
                    .map_err(Error::system("join a network namespace"))?;
                // Whoever waits for this is there.
                let _ = inside.send(());
                first_answer(&hopeless)
            });
            // If it could not enter, the end of the channel says so, and its result why.
            let _ = entered.recv();
            let began = Instant::now();
            let done = work();
            hopeless.store(done.is_err(), Ordering::Relaxed);
            let answer = client
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((done?, began, answer?))
        })
    }

    /// Asks the server that is there.
    pub(super) fn ask(&self) -> Result<Answer> {
        self.ask_while(|| Ok(())).map(|((), _, answer)| answer)
    }
}

fn first_answer(hopeless: &AtomicBool) -> Result<Answer> {
    let end = Instant::now() + PATIENCE;
    loop {
        match answer() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > end || hopeless.load(Ordering::Relaxed) => {
                return Err(Error::system("hear from the server")(error));
            }
            Err(_) => thread::sleep(AGAIN),
        }
    }
}

fn answer() -> io::Result<Answer> {
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let mut stream = TcpStream::connect_timeout(&server, HANDSHAKE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let at = Instant::now();
    let body =
        complete(&text).ok_or_else(|| io::Error::other(format!("half an answer: {text}")))?;
    Ok(Answer {
        at,
        body: body.to_owned(),
    })
}

/// The body of an answer that is good and complete.
fn complete(text: &str) -> Option<&str> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let is_good = lines.next()?.split(' ').nth(1) == Some("200");
    let lengths = lines.filter_map(|line| line.split_once(": "));
    let mut lengths = lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = lengths.next()?.1.parse().ok()?;
    (is_good && body.len() == length).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_when_it_is_good_and_complete() {
        let answer = |status: &str, length: u32| {
            format!("HTTP/1.0 {status} OK\r\nServer: x\r\ncontent-length: {length}\r\n\r\nbody")
        };
        assert_eq!(complete(&answer("200", 4)), Some("body"));
        for bad in [
            answer("200", 5),
            answer("500", 4),
            "HTTP/1.0 200 OK\r\n".into(),
        ] {
            assert_eq!(complete(&bad), None, "{bad}");
        }
    }
}
