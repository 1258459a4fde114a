//! The background fill: what nobody has asked for yet is fetched while nothing else is going on, so
//! that in the end a mounted image needs no registry any more.
//!
//! One thread goes through the mounted chains in the order of their mounting, each from its top
//! layer down, and fetches one piece at a time. It begins some time after the mount, waits whenever
//! something else was fetched just now, keeps to a rate, stops where the disk would become too full or
//! anything would have to be evicted, and comes back when a registry fails. What is local is known by the store: after a restart or a
//! crash it goes on where it was.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::LayerId;
use crate::error::{Error, Result};
use crate::fill::Filler;
use crate::fill::pool::Pool;
use crate::store::Space;

/// Nothing else must have been fetched for this long.
const CALM: Duration = Duration::from_millis(300);
/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(1));
/// How often is looked whether the disk has room again.
const ROOM_AGAIN: Duration = Duration::from_secs(30);
/// Bytes that must be free beyond what is to be kept: several pieces, unpacked.
const MARGIN: u64 = 64 << 20;

/// How mounted images are completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackgroundConfig {
    /// Whether they are at all.
    pub enabled: bool,
    /// Time between the mount and the first request.
    pub delay: Duration,
    /// Most packed bytes a second; 0 for as many as the line gives.
    pub rate: u64,
    /// Percent of the file system that stay free.
    pub keep_free: u8,
}

impl Default for BackgroundConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            // Longer than what a start is recorded for.
            delay: Duration::from_secs(30),
            rate: 0,
            keep_free: 10,
        }
    }
}

/// Why the fill waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Something more urgent is being fetched.
    Reads,
    /// The disk would become too full, or something that is stored would have to go.
    Space,
    /// The registry fails.
    Registry,
}

/// All of them.
pub const PAUSES: [Pause; 3] = [Pause::Reads, Pause::Space, Pause::Registry];

impl Pause {
    /// A name for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reads => "reads",
            Self::Space => "space",
            Self::Registry => "registry",
        }
    }
}

/// What the fill has to do and has met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackgroundInsight {
    /// Mounted images that are not known to be complete.
    pub pending: u64,
    /// How often it had to wait, as [`PAUSES`].
    pub pauses: [u64; PAUSES.len()],
}

/// The thread and its work.
pub(super) struct Background {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    config: BackgroundConfig,
    root: PathBuf,
    space: Arc<Space>,
    pool: Arc<Pool>,
    state: Mutex<State>,
    changed: Condvar,
    pauses: [AtomicU64; PAUSES.len()],
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    stopped: bool,
}

/// A mounted chain.
#[derive(Clone)]
struct Job {
    chain: Vec<LayerId>,
    /// Bottom first. The mount holds them.
    fillers: Vec<Weak<Filler>>,
    due: Instant,
    /// The next pause after a failure.
    retry: Duration,
}

/// How far one step came.
enum Step {
    /// So many packed bytes.
    Fetched(u64),
    /// The whole chain is local.
    Complete,
    Paused(Pause),
}

impl Background {
    /// Starts the thread, if there is to be one.
    pub(super) fn start(
        root: &Path,
        space: Arc<Space>,
        pool: Arc<Pool>,
        config: BackgroundConfig,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            config,
            root: root.to_owned(),
            space,
            pool,
            state: Mutex::default(),
            changed: Condvar::new(),
            pauses: Default::default(),
        });
        let thread = config.enabled.then(|| {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name("xebec-rest".to_owned());
            thread.spawn(move || shared.work())
        });
        let thread = thread
            .transpose()
            .map_err(|error| Error::Internal(format!("start a thread: {error}")))?;
        Ok(Self {
            shared,
            thread: Mutex::new(thread),
        })
    }

    /// Takes on a chain that was mounted.
    pub(super) fn add(&self, chain: &[LayerId], fillers: &[Arc<Filler>]) {
        if !self.shared.config.enabled {
            return;
        }
        let mut state = self.shared.lock();
        state.jobs.push(Job {
            chain: chain.to_vec(),
            fillers: fillers.iter().map(Arc::downgrade).collect(),
            due: Instant::now() + self.shared.config.delay,
            retry: RETRY.0,
        });
        self.shared.changed.notify_all();
    }

    /// Leaves a chain as it is, which is mounted no longer.
    pub(super) fn remove(&self, chain: &[LayerId]) {
        self.shared.lock().jobs.retain(|job| job.chain != chain);
    }

    pub(super) fn insight(&self) -> BackgroundInsight {
        let pause = |pause: usize| self.shared.pauses[pause].load(Ordering::Relaxed);
        BackgroundInsight {
            pending: self.shared.lock().jobs.len() as u64,
            pauses: std::array::from_fn(pause),
        }
    }

    /// Ends the thread; the pool must be closed, or its last piece is waited for.
    pub(super) fn stop(&self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::warn!("the thread of the background fill has died");
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some(job) = self.next() {
            let begun = Instant::now();
            let pause = match self.step(&job) {
                Step::Complete => {
                    tracing::info!(top = ?job.chain.last(), "a mounted image is complete");
                    self.lock().jobs.retain(|other| other.chain != job.chain);
                    continue;
                }
                Step::Fetched(bytes) => {
                    self.change(&job, |job| job.retry = RETRY.0);
                    time_for(bytes, self.config.rate).saturating_sub(begun.elapsed())
                }
                Step::Paused(why) => {
                    self.pauses[why as usize].fetch_add(1, Ordering::Relaxed);
                    match why {
                        Pause::Reads => CALM,
                        Pause::Space => ROOM_AGAIN,
                        Pause::Registry => {
                            // Meanwhile it is the turn of others, whose registry may answer.
                            self.change(&job, |job| {
                                job.due = Instant::now() + job.retry;
                                job.retry = (job.retry * 2).min(RETRY.1);
                            });
                            Duration::ZERO
                        }
                    }
                }
            };
            self.rest(pause);
        }
    }

    fn change(&self, job: &Job, change: impl FnOnce(&mut Job)) {
        let mut state = self.lock();
        let mut jobs = state.jobs.iter_mut();
        if let Some(job) = jobs.find(|other| other.chain == job.chain) {
            change(job);
        }
    }

    /// The chain that was mounted first, when its time has come; none at the end.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            let Some(job) = state.jobs.iter().min_by_key(|job| job.due) else {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = job.due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(job.clone());
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits, unless it is the end.
    fn rest(&self, pause: Duration) {
        let state = self.lock();
        let goes_on = |state: &mut State| !state.stopped;
        drop(self.changed.wait_timeout_while(state, pause, goes_on));
    }

    fn step(&self, job: &Job) -> Step {
        let mut fillers = job.fillers.iter().rev().filter_map(Weak::upgrade);
        let piece = fillers.find_map(|filler| Some((filler.absent_piece()?, filler)));
        let Some((piece, filler)) = piece else {
            return Step::Complete;
        };
        if self.pool.calm_for() < CALM {
            return Step::Paused(Pause::Reads);
        }
        let (bytes, places) = filler.unpacked(&piece);
        if !self.space.has_spare(bytes, places) {
            return Step::Paused(Pause::Space);
        }
        match has_room(&self.root, self.config.keep_free) {
            Ok(true) => {}
            Ok(false) => return Step::Paused(Pause::Space),
            Err(error) => {
                tracing::warn!(%error, "the background fill cannot tell how full the disk is");
                return Step::Paused(Pause::Space);
            }
        }
        match filler.fetch_in_background(piece) {
            Ok(bytes) => Step::Fetched(bytes),
            // The failure is logged where it happened.
            Err(_) => Step::Paused(Pause::Registry),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long so many bytes take at a rate.
fn time_for(bytes: u64, rate: u64) -> Duration {
    match rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs_f64(bytes as f64 / rate as f64),
    }
}

/// Whether more than `keep_free` percent of the file system are free.
fn has_room(root: &Path, keep_free: u8) -> Result<bool> {
    let disk = rustix::fs::statvfs(root).map_err(Error::io("measure", root))?;
    let (free, all) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
    Ok(free > all / 100 * u64::from(keep_free) + MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_gives_each_piece_its_time() {
        assert_eq!(time_for(5 << 20, 0), Duration::ZERO);
        assert_eq!(time_for(5 << 20, 10 << 20), Duration::from_millis(500));
    }

    #[test]
    fn a_disk_that_is_to_stay_empty_has_no_room() {
        let root = std::env::temp_dir();
        assert!(!has_room(&root, 100).unwrap());
        let error = has_room(Path::new("/does/not/exist"), 0).unwrap_err();
        assert!(error.to_string().contains("/does/not/exist"));
    }
}
