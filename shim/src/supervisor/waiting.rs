//! Whom the supervisor waits for, and how long.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::workers::LAUNCHES;
use super::{FORGOTTEN, Leaving, Supervisor};

/// Whom a polled descriptor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Signals,
    Listener,
    Worker,
    Courier,
    Connection(u32),
    /// By its ticket.
    Launch(u64),
    /// By its number.
    Copy(u32),
}

impl Supervisor {
    /// Those that have something for us, or room again.
    pub(super) fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = Vec::new();
        let mut polled = Vec::new();
        let mut poll = |source, fd, flags| {
            sources.push(source);
            polled.push(PollFd::from_borrowed_fd(fd, flags));
        };
        for (number, fd, flags) in self.copier.polled() {
            poll(Source::Copy(number), fd, flags);
        }
        let mut add = |source, fd, full| {
            let flags = if full {
                PollFlags::IN | PollFlags::OUT
            } else {
                PollFlags::IN
            };
            poll(source, fd, flags);
        };
        add(Source::Signals, self.signals.as_fd(), false);
        if let Some(listener) = &self.listener {
            add(Source::Listener, listener.as_fd(), false);
        }
        if let Some(worker) = &self.worker {
            add(
                Source::Worker,
                worker.socket.as_fd(),
                !worker.outbox.is_empty(),
            );
        }
        if let Some((socket, full)) = self.courier.socket() {
            add(Source::Courier, socket.as_fd(), full);
        }
        for (connection, stream) in &self.connections {
            add(
                Source::Connection(*connection),
                stream.socket.as_fd(),
                stream.is_full(),
            );
        }
        for launch in &self.launches {
            if let Some(socket) = launch.socket() {
                add(Source::Launch(launch.ticket), socket.as_fd(), false);
            }
        }
        match rustix::event::poll(&mut polled, self.timeout().as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let is_ready = |polled: &PollFd<'_>| !polled.revents().is_empty();
        let ready = polled.iter().map(is_ready);
        Ok(sources
            .into_iter()
            .zip(ready)
            .filter_map(|(source, ready)| ready.then_some(source))
            .collect())
    }

    /// Until something is due by itself.
    fn timeout(&self) -> Option<Timespec> {
        let restart = self.restart.due().filter(|_| self.worker.is_none());
        // Launches of a dead worker hold its successor up.
        let launches = restart
            .map(|due| due + LAUNCHES)
            .filter(|_| self.has_open_launch());
        let restart = restart.filter(|_| !self.has_open_launch());
        let farewell = self.farewell_due();
        let logger = self.leaving.as_ref().and_then(Leaving::next);
        let logger = logger.map(|(due, _)| due);
        let forgotten = self.idle.map(|since| since + FORGOTTEN);
        let next = [
            restart,
            launches,
            self.courier.wake(),
            self.copier.wake(),
            forgotten,
            farewell,
            logger,
        ];
        let wait = next
            .into_iter()
            .flatten()
            .min()?
            .saturating_duration_since(Instant::now());
        // A millisecond more than too early: a turn for nothing would follow.
        let wait = wait + Duration::from_millis(1);
        Timespec::try_from(wait).ok()
    }
}
