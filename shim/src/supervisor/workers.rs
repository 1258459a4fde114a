//! The worker's life as its supervisor leads it: start, messages, death, successor.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::launch::Launching;
use super::message::ToWorker;
use super::wire::{Inbox, Outbox};
use super::{FIRST_PAUSE, Identity, Supervisor, UNKNOWN_STATUS, children, die_with};
use crate::error::{Context, Error, Result};
use crate::sys::{self, Fork};
use crate::{log, worker};

/// How long launches of a dead worker may go on before they are ended.
pub(super) const LAUNCHES: Duration = Duration::from_secs(10);
/// A worker that dies younger than this has its successor wait.
const YOUNG: Duration = Duration::from_secs(10);
/// containerd gives a State call two seconds (`io.containerd.timeout.task.state`), and takes a task
/// that does not answer for one of unknown state.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The worker process.
pub(super) struct Worker {
    pub(super) pid: Pid,
    pub(super) socket: UnixStream,
    inbox: Inbox,
    pub(super) outbox: Outbox,
    since: Instant,
}

impl Worker {
    fn new(pid: Pid, socket: UnixStream) -> Worker {
        Worker {
            pid,
            socket,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            since: Instant::now(),
        }
    }
}

/// When the next worker starts.
#[derive(Debug, Default)]
pub(super) struct Restart {
    died: Option<Instant>,
    pause: Duration,
}

impl Restart {
    /// A worker has died at `now` after it has lived since `since`.
    fn died(&mut self, now: Instant, since: Instant) {
        self.died = Some(now);
        self.pause = if now - since >= YOUNG {
            Duration::ZERO
        } else {
            (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
        };
    }

    pub(super) fn due(&self) -> Option<Instant> {
        Some(self.died? + self.pause)
    }
}

impl Supervisor {
    /// Tells the worker, by [`Supervisor::send_told`]; without a worker it is lost, as a successor
    /// is told the state.
    pub(super) fn tell(&mut self, head: &ToWorker, raw: &[u8], fds: Vec<OwnedFd>) {
        if let Some(worker) = &mut self.worker
            && let Err(error) = worker.outbox.push(head, raw, fds)
        {
            log::error(format_args!("tell the worker: {error}"));
        }
    }

    /// Sends all that the worker is to be told.
    pub(super) fn send_told(&mut self) {
        if let Some(worker) = &mut self.worker
            && let Err(error) = worker.outbox.flush(&worker.socket)
        {
            // It has ended, and its end is told by a signal.
            log::debug(format_args!("tell the worker: {error}"));
        }
    }

    pub(super) fn hear_worker(&mut self) {
        let Some(worker) = &mut self.worker else {
            return;
        };
        // It has ended, and its end is told by a signal, too.
        if worker.outbox.flush(&worker.socket).is_err() {
            return self.worker_hung_up();
        }
        let heard = match worker.inbox.fill(&worker.socket) {
            Ok(true) => self.obey_worker(),
            Ok(false) => return self.worker_hung_up(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => Err(error),
        };
        if let Err(error) = heard {
            log::error(format_args!("the worker makes no sense: {error}"));
            let status = self.kill_worker();
            self.bury_worker(status);
        }
    }

    /// Obeys what has arrived whole.
    fn obey_worker(&mut self) -> io::Result<()> {
        while let Some(worker) = &mut self.worker
            && let Some(message) = worker.inbox.next()?
        {
            self.obey(message);
        }
        Ok(())
    }

    /// The worker does not listen or does not talk any more.
    fn worker_hung_up(&mut self) {
        let status = self.kill_worker();
        self.worker_died(status);
    }

    /// Makes sure that the worker is dead; its status.
    fn kill_worker(&self) -> u32 {
        let Some(worker) = &self.worker else {
            return UNKNOWN_STATUS;
        };
        // Not there any more is what is wanted.
        let _ = rustix::process::kill_process(worker.pid, Signal::KILL);
        loop {
            match rustix::process::waitid(WaitId::Pid(worker.pid), WaitIdOptions::EXITED) {
                Ok(Some(status)) => break children::code(&status),
                Err(Errno::INTR) | Ok(None) => {}
                Err(_) => break UNKNOWN_STATUS,
            }
        }
    }

    /// The worker is dead and collected. What it has said and nobody has read yet counts: the
    /// last of it may be its farewell, which no successor would repeat, as the request that led
    /// to it has its answer.
    pub(super) fn worker_died(&mut self, status: u32) {
        while let Some(worker) = &mut self.worker
            && let Ok(true) = worker.inbox.fill(&worker.socket)
            && self.obey_worker().is_ok()
        {}
        self.bury_worker(status);
    }

    fn bury_worker(&mut self, status: u32) {
        let Some(worker) = self.worker.take() else {
            return;
        };
        self.holds = 0;
        if self.leaving.is_some() {
            return;
        }
        log::error(format_args!("the worker ended with status {status}"));
        if self.is_ending {
            self.leave();
        } else {
            self.restart.died(Instant::now(), worker.since);
        }
    }

    /// Starts a new worker when it is time. Launches of the old one come to their end first: what
    /// they have made can then be found.
    pub(super) fn replace_worker(&mut self) -> Result<()> {
        let Some(due) = self.restart.due().filter(|_| self.worker.is_none()) else {
            return Ok(());
        };
        let now = Instant::now();
        if self.has_open_launch() {
            if now >= due + LAUNCHES {
                self.launches.iter().for_each(Launching::kill);
            }
            return Ok(());
        }
        if now < due {
            return Ok(());
        }
        self.restart.died = None;
        self.start_worker()
    }

    pub(super) fn start_worker(&mut self) -> Result<()> {
        let what = || "start the worker".to_owned();
        let (ours, theirs) = UnixStream::pair().context(what)?;
        ours.set_nonblocking(true).context(what)?;
        theirs.set_nonblocking(true).context(what)?;
        let supervisor = rustix::process::getpid();
        let pid = match sys::fork().context(what)? {
            Fork::Child => become_worker(supervisor, theirs, &self.identity),
            Fork::Parent(pid) => pid,
        };
        let pid = Pid::from_raw(pid).ok_or_else(|| Error::Io {
            what: what(),
            source: ErrorKind::InvalidData.into(),
        })?;
        self.workers += 1;
        self.worker = Some(Worker::new(pid, ours));
        self.hand_over();
        Ok(())
    }

    /// Tells a new worker all that its predecessors have left.
    fn hand_over(&mut self) {
        let mut records = Vec::new();
        for (key, kept) in self.book.records() {
            match kept.fds.iter().map(OwnedFd::try_clone).collect() {
                Ok(fds) => records.push((key.clone(), kept.record.clone(), fds)),
                Err(error) => log::error(format_args!("hand {key} over: {error}")),
            }
        }
        records.extend(
            self.copier
                .keys()
                .map(|key| (key.clone(), String::new(), Vec::new())),
        );
        for (key, record, fds) in records {
            self.tell(&ToWorker::Record { key, record }, &[], fds);
        }
        let children = self.children.pids();
        self.tell(&ToWorker::Ready { children }, &[], Vec::new());
        let exits: Vec<_> = self.children.exits().collect();
        for (pid, exit) in exits {
            self.tell(&ToWorker::Exited { pid, exit }, &[], Vec::new());
        }
        let mut book = std::mem::take(&mut self.book);
        for (connection, request) in book.ask_again() {
            let attempt = request.attempt;
            self.tell(
                &ToWorker::Frame {
                    connection,
                    attempt,
                },
                &request.frame,
                Vec::new(),
            );
        }
        self.book = book;
    }
}

fn become_worker(supervisor: Pid, socket: UnixStream, identity: &Identity) -> ! {
    let run = || -> Result<()> {
        die_with(supervisor).context(|| "tie the worker to the supervisor".into())?;
        let kept = sys::keep_only(vec![socket.into()]).context(|| "keep the socket".into())?;
        rustix::thread::set_name(c"xebec-worker").context(|| "name the worker".into())?;
        for socket in kept {
            worker::run(UnixStream::from(socket), identity.clone(), supervisor)?;
        }
        Ok(())
    };
    let code = match run() {
        Ok(()) => 0,
        Err(error) => {
            log::error(format_args!("worker: {error}"));
            1
        }
    };
    std::process::exit(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::message::ToSupervisor;
    use crate::supervisor::tests::supervisor;
    use std::process::Command;

    /// A supervisor whose worker has said `last` and ended before anybody listened.
    #[expect(clippy::zombie_processes, reason = "the supervisor collects it")]
    fn bereaved(directory: &std::path::Path, last: ToSupervisor) -> Supervisor {
        let mut supervisor = supervisor(directory);
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let worker = Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(worker.id() as i32).unwrap();
        supervisor.worker = Some(Worker::new(pid, ours));
        let mut outbox = Outbox::default();
        for head in [ToSupervisor::Hold, last] {
            outbox.push(&head, &[], Vec::new()).unwrap();
        }
        assert!(outbox.flush(&theirs).unwrap());
        // Until it executes its program it has the other end, too.
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(pid), ended).unwrap();
        supervisor
    }

    fn has_heard_the_farewell(supervisor: &mut Supervisor) {
        assert!(supervisor.leaving.is_some(), "the farewell was lost");
        assert_eq!(supervisor.restart.due(), None);
        assert_eq!(supervisor.holds, 0);
        assert!(!supervisor.identity.socket.exists());
        assert!(supervisor.is_done());
    }

    #[test]
    fn a_farewell_counts_when_the_end_of_the_worker_is_noticed_first() {
        // The second worker was killed before it came to say farewell.
        for last in [ToSupervisor::Bye, ToSupervisor::Ending] {
            let directory = tempfile::tempdir().unwrap();
            let mut supervisor = bereaved(directory.path(), last);
            let status = supervisor.kill_worker();
            supervisor.worker_died(status);
            has_heard_the_farewell(&mut supervisor);
        }
    }

    #[test]
    fn a_farewell_counts_when_the_worker_can_be_told_nothing_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let mut supervisor = bereaved(directory.path(), ToSupervisor::Bye);
        supervisor.tell(&ToWorker::Closed { connection: 1 }, &[], Vec::new());
        while supervisor.worker.is_some() {
            supervisor.hear_worker();
        }
        has_heard_the_farewell(&mut supervisor);
    }
}
