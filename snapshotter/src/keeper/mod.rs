//! The keeper: a small process that holds what containers need through the daemon's death.
//!
//! **The fanotify group.** Mounts of the kernel back end read sparse files, and whoever reads a
//! hole waits until the daemon has filled it. The kernel makes them wait for as long as some
//! process holds the group's descriptor; when the last one goes, **it lets everyone through and
//! holes read as zeros**.
//!
//! **FUSE sessions.** A mount of the other back end lives as long as somebody holds its device;
//! requests wait there meanwhile, and what a dead daemon has taken but not answered can be asked
//! for again (`session`).
//!
//! So both are held twice, by the daemon and by this process, and each of them replaces the other:
//! a daemon that finds its keeper dead starts a new one at once, and a daemon that starts takes
//! everything over from the keeper (`custody`). Under systemd a third copy is in its store
//! (`stored`).
//!
//! **It also takes the events from the group's queue.** An event that was read is lost to everyone
//! but its reader, so the reader must be who does not die. The keeper hands each event to the
//! daemon as a number, a range and a path, and remembers it until the daemon says that it is done;
//! a successor gets all that are left again. The answer itself goes from the daemon straight to
//! the kernel, which knows an event by its number, whoever answers.
//!
//! Without a daemon reads wait for a successor, up to a deadline; from then on they get EIO, never
//! zeros. If there is nothing to keep by then, the keeper ends. It has no other job: it knows no
//! layer, allocates next to nothing and is not chosen when memory runs out.

pub(crate) mod custody;
pub(crate) mod group;
pub(crate) mod link;
pub(crate) mod session;
pub(crate) mod stored;
pub(crate) mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, SocketFlags};

use self::group::{Group, Verdict};
use self::session::{Kept, Life};
use self::wire::{Event, FromDaemon};
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::fanotify::Waiting;

/// The name that the process goes by, unlike the daemon's: what ends the one spares the other.
pub(crate) const NAME: &str = "xebec-keeper";

/// Serves with the group and the socket that come over standard input, until it is dismissed.
pub fn run(deadline: Duration) -> Result<()> {
    harden();
    let stdin = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3);
    let daemon = stdin.map_err(failed("take standard input"))?;
    let (listener, group) = wire::receive_start(&daemon).map_err(failed("take the group"))?;
    let mut keeper = Keeper {
        group,
        listener,
        daemon: None,
        lost: Instant::now(),
        deadline,
        refusing: false,
        pending: BTreeMap::new(),
        sessions: BTreeMap::new(),
        unsent: VecDeque::new(),
        dismissed: false,
    };
    keeper.welcome(daemon);
    keeper.serve().map_err(failed("wait for events"))
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::Internal(format!("keeper: {action}: {}", error.into()))
}

/// Makes the process hard to lose. What the system refuses here makes it easier to lose, no more.
fn harden() {
    let steps = [
        sys::ignore_termination(),
        sys::set_name(NAME),
        std::env::set_current_dir("/"),
        std::fs::write("/proc/self/oom_score_adj", "-1000"),
    ];
    for error in steps.into_iter().filter_map(io::Result::err) {
        tracing::warn!(%error, "the keeper is less protected than it should be");
    }
}

struct Keeper {
    group: Option<Group>,
    listener: OwnedFd,
    daemon: Option<OwnedFd>,
    /// When the last daemon went.
    lost: Instant,
    deadline: Duration,
    /// No daemon has come in time, and requests of FUSE are answered here.
    refusing: bool,
    /// Events that nobody has answered as far as we know, by their number.
    pending: BTreeMap<i32, Waiting>,
    /// FUSE sessions, by name.
    sessions: BTreeMap<String, Kept>,
    /// What the daemon does not know yet.
    unsent: VecDeque<Unsent>,
    /// The daemon has said that nothing is to be kept any more.
    dismissed: bool,
}

/// Something for the daemon.
enum Unsent {
    Session(String),
    Event(i32),
}

impl Keeper {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            if ready.newcomer {
                self.accept();
            }
            if ready.daemon {
                self.hear();
            }
            if self.dismissed && self.daemon.is_none() {
                return Ok(());
            }
            if ready.events {
                self.take_events();
            }
            if self.is_late() && self.refuse_all() {
                return Ok(());
            }
            self.send();
        }
    }

    /// Sleeps until something is to be done.
    fn wait(&self) -> io::Result<Ready> {
        let is_late = self.is_late();
        let wants_events = match self.daemon {
            Some(_) => self.unsent.is_empty(),
            None => is_late,
        };
        let of_daemon = if self.unsent.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        };
        let group = self.group.as_ref().filter(|_| wants_events);
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        fds.extend(self.daemon.as_ref().map(|fd| PollFd::new(fd, of_daemon)));
        let group_at = fds.len();
        fds.extend(group.map(|group| PollFd::from_borrowed_fd(group.as_fd(), PollFlags::IN)));
        if is_late {
            let devices = self.sessions.values().map(|kept| &kept.device);
            fds.extend(devices.map(|device| PollFd::new(device, PollFlags::IN)));
        }
        let left = self.deadline.saturating_sub(self.lost.elapsed());
        // A moment later than the deadline: it has passed then.
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let waits_for_deadline = self.daemon.is_none() && !is_late;
        match poll(&mut fds, waits_for_deadline.then_some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let is_ready = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready {
            newcomer: is_ready(0),
            daemon: self.daemon.is_some() && is_ready(1),
            events: group.is_some() && is_ready(group_at),
        })
    }

    /// Whether no daemon has come in time.
    fn is_late(&self) -> bool {
        self.daemon.is_none() && self.lost.elapsed() >= self.deadline
    }

    fn accept(&mut self) {
        let accepted = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC);
        let daemon = match accepted {
            Ok(daemon) => daemon,
            Err(error) => return tracing::warn!(%error, "keeper: accept"),
        };
        let peer = rustix::net::sockopt::socket_peercred(&daemon);
        let own = rustix::process::geteuid();
        if !peer.is_ok_and(|peer| peer.uid == own) {
            return tracing::warn!("keeper: somebody else than our user was turned away");
        }
        self.welcome(daemon);
    }

    /// Serves a daemon from now on; it gets everything that is left of an earlier one.
    fn welcome(&mut self, daemon: OwnedFd) {
        let group = self.group.as_ref().map(AsFd::as_fd);
        if let Err(error) = wire::send_hello(&daemon, group, self.sessions.len() as u32) {
            return tracing::warn!(%error, "keeper: greet a daemon");
        }
        let sessions = self.sessions.keys().cloned().map(Unsent::Session);
        let events = self.pending.keys().copied().map(Unsent::Event);
        self.unsent = sessions.chain(events).collect();
        self.dismissed = false;
        self.refusing = false;
        self.daemon = Some(daemon);
    }

    /// Takes what the daemon says; all of it, so that it never waits for us.
    fn hear(&mut self) {
        let Some(daemon) = &self.daemon else {
            return;
        };
        loop {
            match wire::receive_from_daemon(daemon) {
                Ok(Some(FromDaemon::Done(id))) => drop(self.pending.remove(&id)),
                Ok(Some(FromDaemon::Watches(group))) => self.group = Some(group),
                Ok(Some(FromDaemon::Keep(kept))) => {
                    self.sessions.insert(kept.name.clone(), kept);
                }
                Ok(Some(FromDaemon::Forget(name))) => drop(self.sessions.remove(&name)),
                Ok(Some(FromDaemon::Dismissed)) => self.dismissed = true,
                Ok(None) => return,
                Ok(Some(FromDaemon::Gone)) | Err(_) => break,
            }
        }
        self.daemon = None;
        self.unsent.clear();
        self.lost = Instant::now();
    }

    /// Takes what waits in the kernel, as much as the daemon can be told at once.
    fn take_events(&mut self) {
        const AT_ONCE: usize = 16;
        let Some(group) = &self.group else {
            return;
        };
        for _ in 0..AT_ONCE {
            match group.next_event() {
                Ok(Some(waiting)) => {
                    let id = waiting.file.as_raw_fd();
                    self.pending.insert(id, waiting);
                    self.unsent.push_back(Unsent::Event(id));
                }
                Ok(None) => return,
                // The kernel has denied the event that it could not give us.
                Err(error) => return tracing::error!(%error, "keeper: a read got an error"),
            }
        }
    }

    fn send(&mut self) {
        while let (Some(daemon), Some(next)) = (&self.daemon, self.unsent.front()) {
            let sent = match next {
                Unsent::Session(name) => match self.sessions.get(name) {
                    Some(kept) => wire::send_session(daemon, kept, SendFlags::DONTWAIT),
                    None => Ok(true),
                },
                Unsent::Event(id) => match self.pending.get(id) {
                    Some(waiting) => send_event(daemon, *id, waiting),
                    None => Ok(true),
                },
            };
            match sent {
                Ok(true) => drop(self.unsent.pop_front()),
                // Full, or gone: that shows at the next reading.
                Ok(false) | Err(_) => return,
            }
        }
    }

    /// Answers everything with EIO; whether there is nothing left to keep.
    fn refuse_all(&mut self) -> bool {
        if !self.refusing {
            self.refusing = true;
            self.sessions.values().for_each(Kept::begin_refusing);
        }
        self.sessions.retain(|_, kept| kept.refuse() == Life::Going);
        self.unsent.clear();
        let Some(group) = &self.group else {
            return self.sessions.is_empty();
        };
        for (id, _waiting) in std::mem::take(&mut self.pending) {
            if let Err(error) = group.answer(id, Verdict::Deny) {
                tracing::error!(%error, "keeper: deny a read");
            }
        }
        let watches = group.watches_anything().unwrap_or(true);
        self.sessions.is_empty() && !watches
    }
}

/// What can be done without waiting.
struct Ready {
    newcomer: bool,
    events: bool,
    daemon: bool,
}

fn send_event(daemon: &OwnedFd, id: i32, waiting: &Waiting) -> io::Result<bool> {
    let path = path_of(waiting.file.as_fd())?;
    let event = Event {
        id,
        offset: waiting.offset,
        count: waiting.count.unwrap_or(0),
        path,
    };
    wire::send_event(daemon, &event)
}

/// Where an open file is, as the kernel names it.
fn path_of(file: BorrowedFd<'_>) -> io::Result<std::path::PathBuf> {
    std::fs::read_link(Path::new("/proc/self/fd").join(file.as_raw_fd().to_string()))
}
