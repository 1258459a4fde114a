//! The threads that wait for registries, and who goes first.
//!
//! Readers come first and have most threads. What is fetched ahead runs at once or not at all:
//! waiting in a queue it would hold claims that a reader then waits for. What a profile wants is
//! what readers will ask for next, so that it keeps the line busy beside them. Other prefetching has two
//! requests under way when no reader waits and one when some do: enough to make use of the line,
//! too few to take it away. Background work runs only when nothing else does.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(1);
/// Pages of stack are only touched as needed; unpacking needs little.
const STACK: usize = 256 << 10;

/// What work is for, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Somebody waits for it.
    Read,
    /// It lies beside what somebody waits for.
    Ahead,
    /// Containers of this image have read it in their first seconds.
    Profile,
    /// The image's author says that it will be read.
    Prefetch,
    /// It makes the layer complete.
    Background,
}

impl Class {
    /// A name for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Ahead => "ahead",
            Self::Profile => "profile",
            Self::Prefetch => "prefetch",
            Self::Background => "background",
        }
    }
}

/// All classes, the most urgent first.
pub const CLASSES: [Class; 5] = [
    Class::Read,
    Class::Ahead,
    Class::Profile,
    Class::Prefetch,
    Class::Background,
];
/// Most jobs of each class that run at a time.
const LIMITS: [usize; CLASSES.len()] = [24, 8, 6, 2, 1];

type Job = Box<dyn FnOnce() + Send>;

/// A bounded set of threads, made when needed.
#[derive(Default)]
pub struct Pool {
    state: Mutex<State>,
    work: Condvar,
    /// What is fetched that is no background work.
    urgent: Mutex<Urgent>,
}

#[derive(Default)]
struct Urgent {
    under_way: usize,
    /// When the last of it ended.
    ended: Option<Instant>,
}

/// See [`Pool::disturb`].
pub struct Disturbance<'a>(&'a Pool);

impl Drop for Disturbance<'_> {
    fn drop(&mut self) {
        let mut urgent = self.0.urgent();
        urgent.under_way -= 1;
        urgent.ended = Some(Instant::now());
    }
}

#[derive(Default)]
struct State {
    queues: [VecDeque<Job>; CLASSES.len()],
    running: [usize; CLASSES.len()],
    /// Threads that wait for work.
    idle: usize,
    /// How many of them are to look for it: a wake-up that is not counted here is spurious.
    calls: usize,
    closed: bool,
}

impl State {
    /// Whether one more job of `class` may run beside what runs now.
    fn allows(&self, class: Class) -> bool {
        let limit = match class {
            Class::Prefetch if self.running[Class::Read as usize] > 0 => 1,
            Class::Background if self.running.iter().any(|running| *running > 0) => 0,
            _ => LIMITS[class as usize],
        };
        self.running[class as usize] < limit
    }

    /// Takes the most urgent job that may run.
    fn take(&mut self) -> Option<(Class, Job)> {
        for class in CLASSES {
            if self.allows(class)
                && let Some(job) = self.queues[class as usize].pop_front()
            {
                self.running[class as usize] += 1;
                return Some((class, job));
            }
        }
        None
    }
}

/// See [`Pool::slot`].
pub struct Slot {
    pool: Arc<Pool>,
    class: Class,
    used: bool,
}

impl Slot {
    /// Runs `job` on a thread of the pool.
    pub fn run(mut self, job: impl FnOnce() + Send + 'static) {
        let pool = Arc::clone(&self.pool);
        let mut state = pool.lock();
        if !state.closed {
            // Under one lock with giving the slot back: nobody else can take it in between.
            state.running[self.class as usize] -= 1;
            self.used = true;
            state.queues[self.class as usize].push_back(Box::new(job));
            pool.wake(&mut state);
            return;
        }
        drop(state);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.used {
            self.pool.lock().running[self.class as usize] -= 1;
        }
    }
}

impl Pool {
    /// Runs `job` when its turn comes; after [`Pool::close`] it is dropped.
    pub fn run(self: &Arc<Self>, class: Class, job: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.queues[class as usize].push_back(Box::new(job));
        self.wake(&mut state);
    }

    /// A right to run one job of `class` at once, if that class has a thread free.
    pub fn slot(self: &Arc<Self>, class: Class) -> Option<Slot> {
        let mut state = self.lock();
        let free = !state.closed && state.allows(class) && state.queues[class as usize].is_empty();
        free.then(|| {
            state.running[class as usize] += 1;
            Slot {
                pool: Arc::clone(self),
                class,
                used: false,
            }
        })
    }

    /// Says that something is being fetched that is no background work, on whatever thread, until
    /// what it gives is dropped.
    pub fn disturb(&self) -> Disturbance<'_> {
        self.urgent().under_way += 1;
        Disturbance(self)
    }

    /// How long nothing but background work has been fetched.
    pub fn calm_for(&self) -> Duration {
        let urgent = self.urgent();
        if urgent.under_way > 0 {
            return Duration::ZERO;
        }
        urgent.ended.map_or(Duration::MAX, |ended| ended.elapsed())
    }

    fn urgent(&self) -> MutexGuard<'_, Urgent> {
        self.urgent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what has not begun and lets the threads end; running jobs run to their end.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let dropped = std::mem::take(&mut state.queues);
        drop(state);
        // Outside of the lock: a dropped job answers a reader.
        drop(dropped);
        self.work.notify_all();
    }

    /// Whether [`Pool::close`] was called: what fails now fails because this process ends.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn wake(self: &Arc<Self>, state: &mut MutexGuard<'_, State>) {
        if state.idle > state.calls {
            state.calls += 1;
            self.work.notify_one();
            return;
        }
        let runnable = CLASSES
            .iter()
            .any(|class| state.allows(*class) && !state.queues[*class as usize].is_empty());
        if runnable {
            let pool = Arc::clone(self);
            let thread = std::thread::Builder::new()
                .name("xebec-fill".to_owned())
                .stack_size(STACK);
            if let Err(error) = thread.spawn(move || pool.work()) {
                tracing::warn!(%error, "no further thread for cold reads; they wait");
            }
        }
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            while let Some((class, job)) = state.take() {
                drop(state);
                job();
                state = self.lock();
                state.running[class as usize] -= 1;
            }
            state.idle += 1;
            let nothing = |state: &mut State| state.calls == 0 && !state.closed;
            let (woken, _) = self
                .work
                .wait_timeout_while(state, IDLE, nothing)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if state.calls == 0 {
                return;
            }
            state.calls -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn state(running: [usize; CLASSES.len()]) -> State {
        let mut state = State {
            running,
            ..State::default()
        };
        for queue in &mut state.queues {
            queue.push_back(Box::new(|| ()));
        }
        state
    }

    #[test]
    fn the_most_urgent_job_that_may_run_is_taken() {
        for (running, expected) in [
            ([0, 0, 0, 0, 0], Some(Class::Read)),
            ([24, 0, 0, 0, 0], Some(Class::Ahead)),
            ([24, 8, 0, 0, 0], Some(Class::Profile)),
            ([24, 8, 6, 0, 0], Some(Class::Prefetch)),
            ([24, 8, 6, 1, 0], None),
        ] {
            let taken = state(running).take().map(|(class, _)| class);
            assert_eq!(taken, expected, "{running:?}");
        }
    }

    #[test]
    fn prefetching_yields_to_readers_and_background_to_everyone() {
        assert!(state([0, 0, 0, 1, 0]).allows(Class::Prefetch));
        assert!(!state([1, 0, 0, 1, 0]).allows(Class::Prefetch));
        assert!(state([1, 0, 1, 0, 0]).allows(Class::Profile));
        assert!(state([0, 0, 0, 0, 0]).allows(Class::Background));
        assert!(!state([0, 1, 0, 0, 0]).allows(Class::Background));
    }

    #[test]
    fn jobs_run_and_a_closed_pool_drops_them() {
        let pool = Arc::new(Pool::default());
        let (sender, receiver) = mpsc::channel();
        for number in 0..100 {
            let sender = sender.clone();
            pool.run(Class::Read, move || sender.send(number).unwrap());
        }
        let mut seen: Vec<i32> = (0..100).map(|_| receiver.recv().unwrap()).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..100));
        pool.close();
        pool.run(Class::Read, move || sender.send(1).unwrap());
        assert!(receiver.recv().is_err(), "the job was dropped");
    }

    #[test]
    fn there_are_as_many_slots_as_jobs_may_run() {
        let pool = Arc::new(Pool::default());
        let limit = LIMITS[Class::Ahead as usize];
        let mut slots: Vec<Slot> = (0..limit).filter_map(|_| pool.slot(Class::Ahead)).collect();
        assert_eq!(slots.len(), limit);
        assert!(pool.slot(Class::Ahead).is_none());
        drop(slots.pop());
        slots.extend(pool.slot(Class::Ahead));
        let (sender, receiver) = mpsc::channel();
        for slot in slots {
            let sender = sender.clone();
            slot.run(move || sender.send(()).unwrap());
        }
        assert_eq!(
            (0..limit).filter(|_| receiver.recv().is_ok()).count(),
            limit
        );
        // A job has told of itself a moment before its slot is free again.
        let last = loop {
            match pool.slot(Class::Ahead) {
                Some(slot) => break slot,
                None => std::thread::yield_now(),
            }
        };
        pool.close();
        last.run(move || sender.send(()).unwrap());
        assert!(receiver.recv().is_err(), "a closed pool drops the job");
    }
}
