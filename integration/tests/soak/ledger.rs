//! What everyone who acts on the host writes down: troubles, which excuse failures, the failures
//! that nothing excuses, and the ends of processes.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::judge::Exit;

/// How long after containerd listens again its calls may still fail.
const AFTERMATH: Duration = Duration::from_secs(5);
/// How long it may take to clear up what a cut-off client has left.
const CLEARING: Duration = Duration::from_mins(1);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// What a client is told whose call a worker died of, and never else.
const REFUSAL: &str = "the shim was restarted";

/// What is done to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// containerd is killed and started again.
    Outage,
    /// Workers are killed.
    Kill,
}

/// Why something was not done.
enum Failure {
    Excused,
    Fault,
}

/// A trouble with its beginning and end.
type Troubled = (Trouble, Instant, Option<Instant>);

#[derive(Debug, Default)]
struct Pages {
    troubles: Vec<Troubled>,
    faults: Vec<String>,
    exits: Vec<Exit>,
    /// How often what was done, and how often that failed for a trouble.
    counts: BTreeMap<String, (u32, u32)>,
}

/// Shared by all threads.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Pages>);

impl Ledger {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes trouble; whatever overlaps with it is excused.
    pub(crate) fn during<T>(&self, trouble: Trouble, make: impl FnOnce() -> T) -> T {
        let number = {
            let mut pages = self.pages();
            pages.troubles.push((trouble, Instant::now(), None));
            pages.troubles.len() - 1
        };
        let made = make();
        self.pages().troubles[number].2 = Some(Instant::now());
        made
    }

    /// Whether a failure of what was begun then, with those words, is nobody's fault.
    fn excuses(&self, begun: Instant, said: &str) -> bool {
        self.pages().troubles.iter().any(|trouble| {
            let is_told = trouble.0 == Trouble::Outage || said.contains(REFUSAL);
            is_told && reaches(trouble, begun)
        })
    }

    /// Whether something begun then may have been left undone by a client that does not say so:
    /// `ctr` deletes what it ran without looking whether that succeeds.
    pub(crate) fn is_troubled_since(&self, begun: Instant) -> bool {
        let pages = self.pages();
        pages.troubles.iter().any(|trouble| reaches(trouble, begun))
    }

    fn count(&self, what: &str, failed: bool) {
        let mut pages = self.pages();
        let (done, excused) = pages.counts.entry(what.to_owned()).or_default();
        *done += 1;
        *excused += u32::from(failed);
    }

    /// Notes what must not be.
    pub(crate) fn fault(&self, what: impl Into<String>) {
        let what = what.into();
        println!("FAULT {what}");
        self.pages().faults.push(what);
    }

    /// Notes the end of a process that ended since `from`.
    pub(crate) fn exit(&self, container: &str, process: &str, status: Option<u32>, from: Instant) {
        self.pages().exits.push(Exit {
            container: container.to_owned(),
            process: process.to_owned(),
            status,
            from,
            until: Instant::now(),
        });
    }

    /// Does something once; `None` if it failed, which is a fault unless a trouble excuses it.
    pub(crate) fn once<T, E: Display>(
        &self,
        what: &str,
        act: impl FnOnce() -> Result<T, E>,
    ) -> Option<T> {
        self.attempt(what, act).ok()
    }

    /// Does something that may be repeated, for as long as troubles excuse its failures.
    pub(crate) fn persist<T, E: Display>(
        &self,
        what: &str,
        mut act: impl FnMut() -> Result<T, E>,
    ) -> Option<T> {
        loop {
            match self.attempt(what, &mut act) {
                Ok(done) => return Some(done),
                Err(Failure::Excused) => std::thread::sleep(PAUSE),
                Err(Failure::Fault) => return None,
            }
        }
    }

    fn attempt<T, E: Display>(
        &self,
        what: &str,
        act: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        let error = match act() {
            Ok(done) => {
                self.count(what, false);
                return Ok(done);
            }
            Err(error) => error.to_string(),
        };
        if self.excuses(begun, &error) {
            self.count(what, true);
            return Err(Failure::Excused);
        }
        self.fault(format!("{what}: {error}"));
        Err(Failure::Fault)
    }

    /// Clears up after a client that was cut off, at most for a while after the last trouble.
    pub(crate) fn clear<E: Display>(&self, what: &str, mut act: impl FnMut() -> Result<(), E>) {
        let mut patience_since = Instant::now();
        loop {
            let begun = Instant::now();
            let Err(error) = act() else {
                return self.count(what, false);
            };
            let error = error.to_string();
            if self.excuses(begun, &error) {
                patience_since = Instant::now();
            } else if patience_since.elapsed() > CLEARING {
                return self.fault(format!("{what}: {error}"));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// What was done, with how many failures that were excused.
    pub(crate) fn summary(&self) -> String {
        let pages = self.pages();
        let count = |trouble| pages.troubles.iter().filter(|t| t.0 == trouble).count();
        format!(
            "{} restarts of containerd, {} kills of workers; done (and excused): {:?}",
            count(Trouble::Outage),
            count(Trouble::Kill),
            pages.counts
        )
    }

    /// Faults and ends of processes.
    pub(crate) fn close(self) -> (Vec<String>, Vec<Exit>) {
        let pages = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        (pages.faults, pages.exits)
    }
}

/// Whether what was begun then may have felt a trouble.
fn reaches((trouble, _, until): &Troubled, begun: Instant) -> bool {
    let margin = match trouble {
        Trouble::Outage => AFTERMATH,
        Trouble::Kill => Duration::ZERO,
    };
    until.is_none_or(|until| until + margin >= begun)
}
