//! What this daemon and its keeper hold together, and the connection between them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::group::Group;
use super::link::Link;
use super::session::Kept;
use super::stored;
use super::wire::Event;
use crate::error::Result;
use crate::mount::Keeping;

/// The daemon's part of the keeping.
#[derive(Debug)]
pub(crate) struct Custody {
    keeping: Keeping,
    link: Mutex<Arc<Link>>,
    held: Mutex<Held>,
    closing: AtomicBool,
}

/// Held by the keeper as well.
#[derive(Debug, Default)]
struct Held {
    group: Option<Arc<Group>>,
    sessions: BTreeMap<String, Arc<Kept>>,
}

/// What is to be done in the course of [`Custody::run`].
pub(crate) trait Duties {
    /// A read waits for its bytes.
    fn take(&self, link: &Arc<Link>, event: &Event);
    /// The keeper has died: returns when all its events are answered, since those of the next one
    /// will have the same numbers.
    fn settle(&self);
}

impl Custody {
    /// Takes over what a keeper holds, or systemd; without either begins with nothing. In both
    /// cases there is a keeper afterwards.
    pub(crate) fn open(keeping: Keeping) -> Result<Self> {
        // Before all else: nobody who is started from here on is to inherit it.
        let (group, sessions) = stored::take();
        let (link, group, sessions) = if let Some(found) = Link::to_keeper(&keeping.socket)? {
            found
        } else {
            if group.is_some() || !sessions.is_empty() {
                tracing::error!("the keeper was killed with the daemon; systemd has kept all");
            }
            if let Some(group) = &group {
                group.deny_lost();
            }
            let link = Link::to_new_keeper(group.as_ref(), sessions.iter(), &keeping)?;
            (link, group, sessions)
        };
        let sessions = sessions.into_iter().map(|kept| {
            let kept = Arc::new(kept);
            (kept.name.clone(), kept)
        });
        let held = Held {
            group: group.map(Arc::new),
            sessions: sessions.collect(),
        };
        tracing::info!(
            keeper = link.keeper(),
            watch = held.group.is_some(),
            sessions = held.sessions.len(),
            "there is a keeper; what it has kept is taken over"
        );
        Ok(Self {
            keeping,
            link: Mutex::new(Arc::new(link)),
            held: Mutex::new(held),
            closing: AtomicBool::new(false),
        })
    }

    /// The watch, if there is one.
    pub(crate) fn group(&self) -> Option<Arc<Group>> {
        self.held().group.clone()
    }

    /// Begins a watch.
    pub(crate) fn begin_watch(&self, group: Group) -> Arc<Group> {
        let group = Arc::new(group);
        stored::put_group(&group);
        // A keeper that has just died is replaced under this lock, by one that gets the group.
        let mut held = self.held();
        held.group = Some(Arc::clone(&group));
        self.link().watch(&group);
        group
    }

    /// The sessions that an earlier daemon has left, and those begun since.
    pub(crate) fn sessions(&self) -> Vec<Arc<Kept>> {
        self.held().sessions.values().cloned().collect()
    }

    /// Makes a session outlive this process.
    pub(crate) fn keep(&self, kept: &Arc<Kept>) {
        let mut held = self.held();
        held.sessions.insert(kept.name.clone(), Arc::clone(kept));
        self.link().keep(kept);
        drop(held);
        stored::put_session(kept);
    }

    /// Lets go of a session that has ended.
    pub(crate) fn forget(&self, name: &str) {
        let mut held = self.held();
        if held.sessions.remove(name).is_some() {
            self.link().forget(name);
            stored::remove_session(name);
        }
    }

    /// Does what comes from the keeper, and replaces it when it dies; until [`Custody::close`].
    pub(crate) fn run(&self, duties: &impl Duties) {
        loop {
            let link = self.link();
            match link.next_event() {
                Ok(Some(event)) => duties.take(&link, &event),
                _ if self.is_closing() => return,
                ended => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "the keeper is not understood");
                    }
                    if let Err(error) = self.replace_keeper(&link, duties) {
                        tracing::error!(
                            %error,
                            "there is no keeper: if this daemon dies, holes read as zeros and \
                             FUSE mounts end"
                        );
                        std::thread::sleep(Duration::from_secs(1));
                    }
                }
            }
        }
    }

    /// Starts a keeper in the place of one that has died.
    fn replace_keeper(&self, dead: &Link, duties: &impl Duties) -> Result<()> {
        tracing::error!(
            keeper = dead.keeper(),
            "the keeper has died; starting another"
        );
        dead.reap();
        duties.settle();
        let held = self.held();
        if let Some(group) = &held.group {
            group.deny_lost();
        }
        let sessions = held.sessions.values().map(Arc::as_ref);
        let link = Link::to_new_keeper(held.group.as_deref(), sessions, &self.keeping)?;
        tracing::info!(keeper = link.keeper(), "there is a keeper again");
        *lock(&self.link) = Arc::new(link);
        Ok(())
    }

    /// Leaves everything to a successor. The keeper goes too when there is nothing left to keep.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        let (link, held) = (self.link(), self.held());
        let watches = held.group.as_ref().map(|group| group.watches_anything());
        // Its thread may not have found out yet.
        let is_used = held.sessions.values().any(|kept| !kept.is_over());
        match watches.transpose() {
            Ok(watches) if !watches.unwrap_or(false) && !is_used => {
                link.dismiss();
                stored::remove_group();
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the keeper stays"),
        }
        link.close();
    }

    /// Whether what is not answered from here on is the successor's.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    fn link(&self) -> Arc<Link> {
        Arc::clone(&lock(&self.link))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        lock(&self.held)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
