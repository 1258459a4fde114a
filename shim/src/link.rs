//! The worker's end of the connection with its supervisor.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::blocking::TURN;
use crate::error::{Error, Result};
use crate::supervisor::Insight;
use crate::supervisor::message::{
    Change, Copying, Importance, Levels, Request, ToSupervisor, ToWorker,
};
use crate::supervisor::wire::{Inbox, Message, Outbox};
use crate::{log, sys};

/// What the worker tells its supervisor goes through here, from any thread, in order.
#[derive(Debug)]
pub struct Link {
    socket: UnixStream,
    outbox: Mutex<Outbox>,
    /// There may be something to send for [`Link::keep_sending`].
    unsent: Notify,
    launches: Mutex<Launches>,
    /// Who waits for the supervisor to tell of itself, in the order of asking.
    inquiries: Mutex<VecDeque<oneshot::Sender<(Insight, Levels)>>>,
    /// Each is a process of its own with some memory.
    at_once: Semaphore,
}

/// Most launches at once that have not taken long yet: a crowd of them does not run faster side by
/// side.
const AT_ONCE: usize = 2;

#[derive(Debug, Default)]
struct Launches {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Outcome>>,
}

/// The pid of the process that a launch leaves, if any, or the runtime's own words.
type Outcome = std::result::Result<Option<i32>, String>;

/// While one exists, the supervisor collects no orphans.
#[derive(Debug)]
pub struct Hold(Arc<Link>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.send(&ToSupervisor::Release, &[], Vec::new());
    }
}

impl Link {
    /// The worker's end is `socket`, non-blocking.
    pub fn new(socket: UnixStream) -> Link {
        Link {
            socket,
            outbox: Mutex::default(),
            unsent: Notify::new(),
            launches: Mutex::default(),
            inquiries: Mutex::default(),
            at_once: Semaphore::new(AT_ONCE),
        }
    }

    /// Commits changes, all or none of which survive this worker.
    pub(crate) fn commit(&self, changes: Vec<Change>, fds: Vec<OwnedFd>) {
        let event = None;
        self.send(&ToSupervisor::Commit { changes, event }, &[], fds);
    }

    /// The same for changes whose effects only the supervisor brings about: they leave with what is
    /// said next, once the caller waits for anything at the latest.
    pub(crate) fn commit_soon(&self, changes: Vec<Change>) {
        let event = None;
        self.push(&ToSupervisor::Commit { changes, event }, &[], Vec::new());
    }

    /// Commits changes together with the event that tells of them, an encoded ttrpc request. They
    /// leave with the answer to the call that made them, if that comes before the caller waits for
    /// anything: a worker's death falls before both or after both.
    pub(crate) fn commit_event(&self, changes: Vec<Change>, event: &[u8], importance: Importance) {
        let commit = ToSupervisor::Commit {
            changes,
            event: Some(importance),
        };
        self.push(&commit, event, Vec::new());
    }

    /// Has a stream copied from the first descriptor to the second, or to what is to be opened.
    pub(crate) fn copy(&self, key: &str, copying: Copying, fds: Vec<OwnedFd>) {
        let key = key.to_owned();
        self.push(&ToSupervisor::Copy { key, copying }, &[], fds);
    }

    /// Ends a standard input once what has been written to it so far is through.
    pub(crate) fn close_input(&self, key: &str) {
        let key = key.to_owned();
        self.send(&ToSupervisor::CloseInput { key }, &[], Vec::new());
    }

    /// Resizes the terminal that a stream comes from; in characters.
    pub(crate) fn resize(&self, key: &str, columns: u16, rows: u16) {
        let key = key.to_owned();
        self.send(
            &ToSupervisor::Resize { key, columns, rows },
            &[],
            Vec::new(),
        );
    }

    /// Answers a request with a ttrpc frame.
    pub fn answer(&self, connection: u32, frame: &[u8]) {
        self.send(&ToSupervisor::Answer { connection }, frame, Vec::new());
    }

    /// The shim is about to end, whatever becomes of this worker. This leaves with the answer to
    /// the call that it ends by.
    pub fn ending(&self) {
        self.push(&ToSupervisor::Ending, &[], Vec::new());
    }

    /// The shim is to end. Returns when the supervisor has been told, and everything before.
    pub async fn bye(&self) -> io::Result<()> {
        self.send(&ToSupervisor::Bye, &[], Vec::new());
        self.send_rest().await
    }

    /// To be held while children may appear that are not watched yet.
    pub fn hold(self: &Arc<Self>) -> Hold {
        self.send(&ToSupervisor::Hold, &[], Vec::new());
        Hold(Arc::clone(self))
    }

    /// Starts a process that gets `fds`; when this returns it is there, and watched. Its pid is kept
    /// under `key`.
    pub(crate) async fn launch(
        &self,
        key: Option<String>,
        request: Request,
        raw: &[u8],
        fds: Vec<OwnedFd>,
    ) -> std::result::Result<i32, String> {
        let left = self.perform(key, request, raw, fds).await?;
        left.ok_or_else(|| "nothing was started".to_owned())
    }

    /// Has something done that needs no process of its own afterwards, and waits for its end.
    pub(crate) async fn perform(
        &self,
        key: Option<String>,
        request: Request,
        raw: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Outcome {
        let (sender, mut outcome) = oneshot::channel();
        let turn = self
            .at_once
            .acquire()
            .await
            .map_err(|error| error.to_string())?;
        let ticket = {
            let mut launches = locked(&self.launches);
            launches.last += 1;
            let ticket = launches.last;
            launches.waiting.insert(ticket, sender);
            ticket
        };
        let launch = ToSupervisor::Launch {
            ticket,
            key,
            request,
        };
        self.send(&launch, raw, fds);
        // The sender stays in the map until it is used; a worker without supervisor ends.
        let in_turn = tokio::time::timeout(TURN, &mut outcome).await;
        drop(turn);
        let outcome = match in_turn {
            Ok(outcome) => outcome,
            _ => outcome.await,
        };
        outcome.unwrap_or_else(|_| Err("the supervisor is gone".to_owned()))
    }

    /// Asks the supervisor how it and the streams are. To be called on the event loop's thread.
    pub(crate) async fn inquire(&self) -> Result<(Insight, Levels)> {
        let (sender, insight) = oneshot::channel();
        locked(&self.inquiries).push_back(sender);
        self.send(&ToSupervisor::Inquire, &[], Vec::new());
        insight.await.map_err(|_| Error::Io {
            what: "ask the supervisor".into(),
            source: io::ErrorKind::UnexpectedEof.into(),
        })
    }

    fn launched(&self, ticket: u64, outcome: Outcome) {
        let waiting = locked(&self.launches).waiting.remove(&ticket);
        if waiting.is_none_or(|waiting| waiting.send(outcome).is_err()) {
            log::error(format_args!("launch {ticket} is nobody's"));
        }
    }

    /// Has something sent soon.
    fn push(&self, head: &ToSupervisor, raw: &[u8], fds: Vec<OwnedFd>) {
        if let Err(error) = locked(&self.outbox).push(head, raw, fds) {
            log::error(format_args!("tell the supervisor: {error}"));
        }
        self.unsent.notify_one();
    }

    /// Sends something, and all that waits.
    fn send(&self, head: &ToSupervisor, raw: &[u8], fds: Vec<OwnedFd>) {
        let mut outbox = locked(&self.outbox);
        let sent = outbox
            .push(head, raw, fds)
            .and_then(|()| outbox.flush(&self.socket));
        match sent {
            Ok(true) => {}
            Ok(false) => self.unsent.notify_one(),
            // The reading side sees the same end, and ends the worker.
            Err(error) => log::debug(format_args!("tell the supervisor: {error}")),
        }
    }

    /// Sends what found no room at once, for ever.
    pub async fn keep_sending(&self) -> io::Result<()> {
        loop {
            self.unsent.notified().await;
            self.send_rest().await?;
        }
    }

    async fn send_rest(&self) -> io::Result<()> {
        while !locked(&self.outbox).flush(&self.socket)? {
            drop(self.watch(Interest::WRITABLE)?.writable().await?);
        }
        Ok(())
    }

    /// A descriptor of the same connection for the event loop, to hear the supervisor.
    pub fn listen(&self) -> io::Result<AsyncFd<OwnedFd>> {
        // Not for room, too: there is some again after each message.
        self.watch(Interest::READABLE)
    }

    fn watch(&self, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
        sys::watch_for(self.socket.as_fd().try_clone_to_owned()?, interest)
    }

    /// The next message that is not the answer to a launch; an error when the supervisor is gone.
    pub(crate) async fn next(
        &self,
        ready: &AsyncFd<OwnedFd>,
        inbox: &mut Inbox,
    ) -> Result<Message<ToWorker>> {
        let failed = |source| Error::Io {
            what: "hear the supervisor".into(),
            source,
        };
        loop {
            while let Some(message) = inbox.next::<ToWorker>().map_err(failed)? {
                match message.head {
                    ToWorker::Launched { ticket, pid } => self.launched(ticket, Ok(pid)),
                    ToWorker::NotLaunched { ticket, message } => {
                        self.launched(ticket, Err(message));
                    }
                    ToWorker::Insight { insight, streams } => {
                        if let Some(waiting) = locked(&self.inquiries).pop_front() {
                            // Who asked may have hung up.
                            drop(waiting.send((insight, streams)));
                        }
                    }
                    _ => return Ok(message),
                }
            }
            let mut readable = ready.readable().await.map_err(failed)?;
            match inbox.fill(&self.socket) {
                Ok(true) => {}
                Ok(false) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => readable.clear_ready(),
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks an id before it becomes part of a path or a key.
pub(crate) fn container_id(id: &str) -> Result<xebec_runtime::ContainerId> {
    id.parse()
        .map_err(|error: xebec_runtime::Error| Error::InvalidArgument(error.to_string()))
}
