//! The supervisor: the process that containerd knows as the shim. It has one thread and no event
//! loop of a library, and does little, so that it has little to die of. All that a shim *knows*
//! is in its worker, a child, which may be killed at any time and is replaced.
//!
//! What the supervisor holds, because it must outlive a worker:
//! - containerd's listening socket and connections. Whole frames go to the worker; until it has
//!   answered, a request is kept, and goes to the worker's successor again.
//! - the children. As the subreaper and the parent of all containers it alone can wait for them;
//!   a dead one stays a zombie, with its status, until the worker has dealt with it.
//! - records of the worker's, and with them the descriptors of pipes that loggers read.
//! - the containers' streams, which it copies ([`copier`]), so that nobody else has to hold them.
//! - events for containerd, until containerd has them.
//! - launches: each is a fork of the supervisor that clones one container, and ends ([`launch`]).
//!
//! # The protocol
//!
//! One stream socket, messages as in [`wire`] and [`message`]. A worker is told the records
//! ([`ToWorker::Record`]), then [`ToWorker::Ready`], then the ends of children and the requests
//! that are open, then what comes. It tells changes as [`ToSupervisor::Commit`]s, each of which
//! counts whole or, when the worker dies before the message is complete, not at all; an event
//! goes with the change that it tells of. The order of messages is the order of effects: an
//! answer comes after the changes that it tells of, a launch after its streams. So
//! a worker's death is always between two messages, an exit is told exactly once, and a successor
//! finds what its predecessor had said, and must look for itself only at what that was just doing.
//!
//! When the supervisor ends, worker and launches end with it; containerd then calls `delete`.

mod book;
mod children;
mod copier;
mod courier;
mod launch;
pub(crate) mod message;
mod stream;
mod waiting;
pub(crate) mod wire;
mod workers;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::error::{Context, Result};
use crate::{log, sys};
use book::Book;
use children::Children;
pub use children::UNKNOWN_STATUS;
use copier::Copier;
use courier::Courier;
use launch::Launching;
pub use message::Exit;
pub(crate) use message::Insight;
use message::{Change, ToSupervisor, ToWorker};
use stream::Stream;
use waiting::Source;
use wire::Message;
use workers::{Restart, Worker};

/// How long the last answers and events may take when the shim ends.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long a shim without a container stays when nobody is connected: its containerd died
/// between starting it and using it, and does not know of it any more.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// Shortest pause before something is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// What a shim starts from.
#[derive(Debug, Clone)]
pub struct Identity {
    /// containerd namespace.
    pub namespace: String,
    /// containerd's ttrpc socket.
    pub containerd: PathBuf,
    /// Path of the socket to serve.
    pub socket: PathBuf,
}

/// Runs the shim to its end. `listener` listens at the identity's socket, non-blocking. The
/// process must have a single thread.
pub fn run(identity: Identity, listener: UnixListener) -> Result<()> {
    sys::keep_heap_small();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context(|| "become a subreaper".into())?;
    let mut supervisor = Supervisor::new(identity, listener)?;
    supervisor.start_worker()?;
    supervisor.send_told();
    while !supervisor.is_done() {
        supervisor.turn()?;
    }
    Ok(())
}

/// Has this process, a fresh child of `parent`, killed when that ends.
fn die_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() == Some(parent) {
        Ok(())
    } else {
        Err(io::Error::other("the supervisor is gone"))
    }
}

struct Supervisor {
    identity: Identity,
    signals: OwnedFd,
    listener: Option<UnixListener>,
    connections: BTreeMap<u32, Stream>,
    next_connection: u32,
    book: Book,
    copier: Copier,
    children: Children,
    /// How many operations of the worker may have children that nobody watches yet.
    holds: usize,
    launches: Vec<Launching>,
    courier: Courier,
    worker: Option<Worker>,
    /// How many there have been.
    workers: u32,
    since: Instant,
    restart: Restart,
    /// Since when nobody is connected and there is no container.
    idle: Option<Instant>,
    /// A worker has said that the shim is about to end.
    is_ending: bool,
    /// The worker has said farewell, or can say it no more.
    leaving: Option<Leaving>,
}

/// The end of the shim. What still lives of its children are loggers, which have seen the end of
/// their input.
struct Leaving {
    since: Instant,
    /// How many of [`ENDINGS`] have been used.
    signalled: usize,
}

/// When and how loggers that do not end by themselves are made to, since the farewell.
const ENDINGS: [(Duration, i32); 2] = [
    (Duration::from_secs(10), libc::SIGTERM),
    (Duration::from_secs(22), libc::SIGKILL),
];

impl Leaving {
    /// When the next signal is due, and which it is.
    fn next(&self) -> Option<(Instant, i32)> {
        let (after, signal) = ENDINGS.get(self.signalled)?;
        Some((self.since + *after, *signal))
    }
}

impl Supervisor {
    /// A supervisor without a worker.
    fn new(identity: Identity, listener: UnixListener) -> Result<Supervisor> {
        Ok(Supervisor {
            signals: sys::child_signals().context(|| "watch for dying children".into())?,
            courier: Courier::new(identity.containerd.clone()),
            identity,
            listener: Some(listener),
            connections: BTreeMap::new(),
            next_connection: 1,
            book: Book::default(),
            copier: Copier::default(),
            children: Children::default(),
            holds: 0,
            launches: Vec::new(),
            worker: None,
            workers: 0,
            since: Instant::now(),
            restart: Restart::default(),
            idle: None,
            is_ending: false,
            leaving: None,
        })
    }

    fn is_done(&mut self) -> bool {
        let Some(leaving) = &mut self.leaving else {
            return false;
        };
        let now = Instant::now();
        let loggers = self.children.living();
        if let Some((_, signal)) = leaving.next().filter(|(due, _)| now >= *due) {
            leaving.signalled += 1;
            for logger in &loggers {
                // Dead already is what is wanted.
                let _ = sys::signal(*logger, signal);
            }
        }
        if !loggers.is_empty() {
            return false;
        }
        let delivered = self.courier.is_done() && !self.connections.values().any(Stream::is_full);
        if !delivered && now >= leaving.since + FAREWELL {
            let waiting = self.courier.waiting();
            log::error(format_args!("{waiting} events could not be delivered"));
            return true;
        }
        delivered
    }

    /// When events that containerd does not take are given up. Loggers that live are waited for in
    /// any case, and their ends are told by a signal.
    fn farewell_due(&self) -> Option<Instant> {
        let leaving = self.leaving.as_ref()?;
        let is_alone = self.children.living().is_empty();
        (is_alone && !self.courier.is_done()).then(|| leaving.since + FAREWELL)
    }

    /// Waits for something to happen and deals with it.
    fn turn(&mut self) -> Result<()> {
        for source in self.wait().context(|| "poll".into())? {
            match source {
                Source::Signals => self.reap(),
                Source::Listener => self.accept(),
                Source::Worker => self.hear_worker(),
                Source::Courier => self.courier.ready(),
                Source::Connection(connection) => self.hear_containerd(connection),
                Source::Launch(ticket) => self.hear_launch(ticket),
                Source::Copy(number) => {
                    let ended = self.copier.proceed(number);
                    self.tell_ended(ended);
                }
            }
        }
        let ended = self.copier.look(Instant::now());
        self.tell_ended(ended);
        self.courier.proceed();
        self.end_if_forgotten();
        self.replace_worker()?;
        self.send_told();
        Ok(())
    }

    fn end_if_forgotten(&mut self) {
        let is_idle = self.connections.is_empty() && self.book.is_empty();
        if !is_idle || self.leaving.is_some() {
            self.idle = None;
        } else if self.idle.get_or_insert_with(Instant::now).elapsed() >= FORGOTTEN {
            log::warn(format_args!(
                "nobody has used this shim for {FORGOTTEN:?}: it ends"
            ));
            self.leave();
        }
    }

    /// Ends once containerd has its answers and events, and the loggers are gone.
    fn leave(&mut self) {
        self.stop_listening();
        self.leaving = Some(Leaving {
            since: Instant::now(),
            signalled: 0,
        });
    }

    /// Some child has died.
    fn reap(&mut self) {
        let mut buffer = [0; 4 * 128];
        while let Ok(1..) = rustix::io::read(&self.signals, &mut buffer) {}
        for index in 0..self.launches.len() {
            let launch = &mut self.launches[index];
            if let Some(outcome) = launch.collect() {
                let (ticket, key) = (launch.ticket, launch.key.take());
                self.launched(ticket, key, outcome);
            }
        }
        self.launches.retain(|launch| !launch.is_over());
        self.tell_exits();
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        if let Some(pid) = self.worker.as_ref().map(|worker| worker.pid)
            && let Ok(Some(status)) = rustix::process::waitid(WaitId::Pid(pid), options)
        {
            self.worker_died(children::code(&status));
        }
        self.collect_orphans();
    }

    fn tell_exits(&mut self) {
        for (pid, exit) in self.children.died() {
            self.tell(&ToWorker::Exited { pid, exit }, &[], Vec::new());
        }
    }

    fn tell_ended(&mut self, streams: impl IntoIterator<Item = String>) {
        for key in streams {
            self.tell(&ToWorker::Ended { key }, &[], Vec::new());
        }
    }

    fn collect_orphans(&self) {
        if self.holds > 0 || self.has_open_launch() {
            return;
        }
        let worker = self.worker.as_ref().map(|worker| worker.pid.as_raw_pid());
        self.children.collect_orphans(|pid| {
            worker == Some(pid) || self.launches.iter().any(|launch| launch.pid() == pid)
        });
    }

    fn has_open_launch(&self) -> bool {
        self.launches.iter().any(Launching::is_open)
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let accepted = listener.accept().and_then(|(socket, _)| {
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        match accepted {
            Ok(socket) => {
                self.connections
                    .insert(self.next_connection, Stream::new(socket));
                self.next_connection += 1;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => {
                log::error(format_args!("accept a connection: {error}"));
                // Out of descriptors, most likely: the connection stays in the queue.
                std::thread::sleep(FIRST_PAUSE);
            }
        }
    }

    /// Passes on what containerd asks.
    fn hear_containerd(&mut self, connection: u32) {
        let Some(stream) = self.connections.get_mut(&connection) else {
            return;
        };
        let (frames, ended) = match stream.flush().and_then(|()| stream.read()) {
            Ok(arrived) => (arrived.frames, arrived.ended),
            Err(error) => {
                log::debug(format_args!("containerd's connection: {error}"));
                (Vec::new(), true)
            }
        };
        for frame in frames {
            self.tell(
                &ToWorker::Frame {
                    connection,
                    attempt: 1,
                },
                &frame,
                Vec::new(),
            );
            self.book.asked(connection, frame, self.worker.is_some());
        }
        if ended {
            self.connections.remove(&connection);
            self.book.closed(connection);
            self.tell(&ToWorker::Closed { connection }, &[], Vec::new());
        }
    }

    fn hear_launch(&mut self, ticket: u64) {
        let mut launches = self.launches.iter_mut();
        let Some(launch) = launches.find(|launch| launch.ticket == ticket) else {
            return;
        };
        if let Some(outcome) = launch.progress() {
            let key = launch.key.take();
            self.launched(ticket, key, outcome);
            self.launches.retain(|launch| !launch.is_over());
            // What died while the launch was open has been left alone.
            self.collect_orphans();
        }
    }

    fn launched(&mut self, ticket: u64, key: Option<String>, outcome: launch::Outcome) {
        match outcome {
            Ok(pid) => {
                if let Some(pid) = pid {
                    self.children.watch(pid);
                    if let Some(key) = key {
                        self.book.keep_pid(key, pid);
                    }
                }
                self.tell(&ToWorker::Launched { ticket, pid }, &[], Vec::new());
                self.tell_exits();
            }
            Err(message) => {
                self.tell(&ToWorker::NotLaunched { ticket, message }, &[], Vec::new());
            }
        }
    }

    fn obey(&mut self, message: Message<ToSupervisor>) {
        let Message { head, raw, fds } = message;
        match head {
            ToSupervisor::Commit { changes, event } => {
                for change in &changes {
                    match change {
                        Change::Drop { prefix } => self.copier.drop_below(prefix),
                        Change::TakeBack { prefix } => self.copier.take_back(prefix),
                        Change::Release { prefix } => self.copier.release(prefix),
                        _ => {}
                    }
                }
                let watches = self.book.apply(changes, fds);
                for pid in &watches.watch {
                    self.children.watch(*pid);
                }
                if let Some(importance) = event {
                    self.courier.push(raw, importance);
                }
                for pid in &watches.forget {
                    self.children.forget(*pid);
                }
                if !watches.watch.is_empty() {
                    // It may have died before anybody watched it.
                    self.tell_exits();
                }
                if !watches.forget.is_empty() {
                    self.collect_orphans();
                }
            }
            ToSupervisor::Answer { connection } => self.answer(connection, &raw),
            ToSupervisor::Launch {
                ticket,
                key,
                request,
            } => {
                // A fork takes its time.
                self.send_told();
                match Launching::start(ticket, key, request, raw, fds) {
                    Ok(launch) => self.launches.push(launch),
                    Err(error) => self.launched(ticket, None, Err(error.to_string())),
                }
            }
            ToSupervisor::Copy { key, copying } => {
                let ended = self.copier.add(key, copying, fds);
                self.tell_ended(ended);
            }
            ToSupervisor::CloseInput { key } => {
                let ended = self.copier.close(&key);
                self.tell_ended(ended);
            }
            ToSupervisor::Resize { key, columns, rows } => self.copier.resize(&key, columns, rows),
            ToSupervisor::Hold => self.holds += 1,
            ToSupervisor::Release => {
                self.holds = self.holds.saturating_sub(1);
                self.collect_orphans();
            }
            ToSupervisor::Inquire => {
                let answer = ToWorker::Insight {
                    insight: self.insight(),
                    streams: self.copier.levels(),
                };
                self.tell(&answer, &[], Vec::new());
            }
            ToSupervisor::Ending => self.is_ending = true,
            ToSupervisor::Bye => self.leave(),
        }
    }

    fn insight(&self) -> Insight {
        Insight {
            age_ms: self.since.elapsed().as_millis() as u64,
            workers: self.workers,
            pending_events: self.courier.waiting(),
            connections: self.connections.len(),
            open_requests: self.book.open_requests(),
            launches: self.launches.len(),
            children: self.children.pids().len(),
        }
    }

    /// The socket is gone before the process is: who connects now would wait for nobody.
    fn stop_listening(&mut self) {
        self.listener = None;
        let socket = &self.identity.socket;
        match std::fs::remove_file(socket) {
            // A `delete` that ran meanwhile found it without a server and removed it.
            Err(error) if error.kind() != ErrorKind::NotFound => {
                log::warn(format_args!("remove {}: {error}", socket.display()));
            }
            _ => {}
        }
    }

    fn answer(&mut self, connection: u32, frame: &[u8]) {
        if !self.book.answered(connection, frame) {
            return;
        }
        if let Some(stream) = self.connections.get_mut(&connection)
            && let Err(error) = stream.send(frame)
        {
            // The caller hung up; whoever calls next finds the state as it is.
            log::debug(format_args!("answer: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use message::Importance;
    use std::path::Path;
    use std::process::Command;

    /// A supervisor without a worker, which listens in `directory`.
    pub(super) fn supervisor(directory: &Path) -> Supervisor {
        let socket = directory.join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let identity = Identity {
            namespace: "test".into(),
            containerd: directory.join("containerd"),
            socket,
        };
        Supervisor::new(identity, listener).unwrap()
    }

    #[test]
    fn events_are_given_up_when_the_last_logger_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let mut supervisor = supervisor(directory.path());
        let mut logger = Command::new("sleep").arg("1000").spawn().unwrap();
        supervisor.children.watch(logger.id() as i32);
        supervisor.courier.push(b"event".into(), Importance::Vital);
        supervisor.leave();
        let since = Instant::now().checked_sub(FAREWELL).unwrap();
        supervisor.leaving.as_mut().unwrap().since = since;
        assert!(!supervisor.is_done());
        // Nothing can come of waking up for them.
        assert_eq!(supervisor.farewell_due(), None);
        logger.kill().unwrap();
        while supervisor.children.died().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(supervisor.farewell_due(), Some(since + FAREWELL));
        assert!(supervisor.is_done());
        logger.wait().unwrap();
    }
}
