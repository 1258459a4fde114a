//! Single flight: each unit is fetched once, however many threads want it at a time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Shared;
use crate::error::Error;

/// The units that somebody fetches right now.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<u32, Arc<Landing>>>);

/// Where a flight's outcome will stand.
#[derive(Default)]
pub(super) struct Landing {
    outcome: Mutex<Option<Shared<()>>>,
    landed: Condvar,
}

/// The duty to fetch a unit. Dropping it without [`Claim::land`] is a failure for all who wait.
pub(super) struct Claim {
    flights: Arc<Flights>,
    unit: u32,
    landing: Arc<Landing>,
    done: bool,
}

impl Flights {
    /// Claims the `units` that nobody has claimed and that are not local; and gives the flights of
    /// those that are under way. Local is checked under the lock: a unit that lands in between is
    /// seen as one or the other.
    pub(super) fn claim(
        self: &Arc<Self>,
        units: impl Iterator<Item = u32>,
        is_local: impl Fn(u32) -> bool,
    ) -> (Vec<Claim>, Vec<Arc<Landing>>) {
        let mut flying = lock(&self.0);
        let (mut mine, mut theirs) = (Vec::new(), Vec::new());
        for unit in units {
            match flying.entry(unit) {
                Entry::Occupied(flight) => theirs.push(Arc::clone(flight.get())),
                Entry::Vacant(_) if is_local(unit) => {}
                Entry::Vacant(vacant) => {
                    let landing = Arc::clone(vacant.insert(Arc::default()));
                    mine.push(Claim {
                        flights: Arc::clone(self),
                        unit,
                        landing,
                        done: false,
                    });
                }
            }
        }
        (mine, theirs)
    }

    /// Whether somebody fetches `unit`.
    pub(super) fn is_claimed(&self, unit: u32) -> bool {
        lock(&self.0).contains_key(&unit)
    }
}

impl Landing {
    /// Waits for the outcome.
    pub(super) fn wait(&self) -> Shared<()> {
        let mut outcome = lock(&self.outcome);
        loop {
            if let Some(outcome) = &*outcome {
                return outcome.clone();
            }
            let waited = self.landed.wait(outcome);
            outcome = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Claim {
    pub(super) fn unit(&self) -> u32 {
        self.unit
    }

    /// The flight, to be awaited like one of somebody else's.
    pub(super) fn landing(&self) -> Arc<Landing> {
        Arc::clone(&self.landing)
    }

    /// Tells everyone who waits how it ended.
    pub(super) fn land(mut self, outcome: Shared<()>) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: Shared<()>) {
        self.done = true;
        // Out of the map first: who comes now looks at the store, not at this flight.
        lock(&self.flights.0).remove(&self.unit);
        *lock(&self.landing.outcome) = Some(outcome);
        self.landing.landed.notify_all();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.done {
            let error = Error::Internal("a fetch was given up".to_owned());
            self.end(Err(Arc::new(error)));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_claimed_once_and_its_outcome_reaches_everyone() {
        let flights = Arc::new(Flights::default());
        let (mut mine, none) = flights.claim([1, 2].into_iter(), |unit| unit == 2);
        assert_eq!((mine.len(), none.len()), (1, 0));
        let (nothing, theirs) = flights.claim([1].into_iter(), |_| false);
        assert!(nothing.is_empty());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| theirs[0].wait());
            mine.remove(0).land(Ok(()));
            assert!(waiter.join().unwrap().is_ok());
        });
        assert!(!flights.is_claimed(1));
    }

    #[test]
    fn a_claim_that_is_dropped_fails_those_who_wait_and_frees_the_unit() {
        let flights = Arc::new(Flights::default());
        let (mine, _) = flights.claim([7].into_iter(), |_| false);
        let (_, theirs) = flights.claim([7].into_iter(), |_| false);
        drop(mine);
        assert!(theirs[0].wait().is_err());
        assert_eq!(flights.claim([7].into_iter(), |_| false).0.len(), 1);
    }
}
