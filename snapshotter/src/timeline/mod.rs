//! What happened when an image was pulled and a container started from it, and how long it took.
//!
//! A [`Timeline`] begins with the first layer that containerd asks for, or with the mount when that
//! was long ago, and ends when nothing has happened for some time. Whoever has something to tell
//! notes it when it is over. The last few timelines are kept in memory; nothing is written.

mod names;
mod packed;
mod svg;
mod text;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::packed::Events;
pub use names::name_files;
pub use svg::draw;
pub use text::list;

use crate::digest::Digest;
use crate::snapshots::record::Timestamp;

/// Starts that are remembered.
const MAX_STARTS: usize = 16;
/// Most events of one start; the rest are counted.
const MAX_EVENTS: usize = 4096;
/// Nothing happens for this long after the last event of a start.
const QUIET: Duration = Duration::from_secs(10);
/// Longest start.
const LONGEST: Duration = Duration::from_mins(2);

/// Something that took time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it began, in microseconds from the beginning of the start.
    pub at: u64,
    /// How long it took, in microseconds.
    pub took: u64,
    /// What it was.
    #[serde(flatten)]
    pub what: What,
}

/// What took time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum What {
    /// The registry was asked for the image's manifest, or another layer had asked for it.
    Resolve,
    /// What describes a layer was fetched and read.
    Open {
        /// The layer's digest.
        layer: Digest,
    },
    /// containerd waited for a layer's snapshot.
    Prepare {
        /// The layer's digest.
        layer: Digest,
    },
    /// The registry was asked for a profile.
    Profile {
        /// Ranges in it; none if there was none.
        reads: Option<usize>,
    },
    /// The tree was mounted.
    Mount {
        /// The back end.
        by: String,
    },
    /// A range of a layer's blob was fetched.
    Fetch {
        /// The layer's digest.
        layer: Digest,
        /// What for: see [`crate::fill::pool::Class`].
        cause: String,
        /// First byte of the range.
        offset: u64,
        /// Bytes fetched.
        bytes: u64,
    },
    /// A container waited for a part of a file.
    Wait {
        /// The layer's digest.
        layer: Digest,
        /// The file's path, as far as it is known.
        file: String,
        /// Bytes that it wanted.
        bytes: u64,
        /// Segment of the store, and position in it, of the first of them.
        #[serde(skip)]
        place: (u32, u64),
    },
}

/// One start, as it is told to others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The image; empty if it was not named any more when the timeline began.
    pub image: String,
    /// Digest of its topmost layer.
    pub top: Digest,
    /// When it began.
    pub began: Timestamp,
    /// Whether it goes on.
    pub open: bool,
    /// Everything that was noted, in the order of its beginning.
    pub events: Vec<Event>,
    /// Events that were too many.
    pub dropped: u64,
}

/// A start that goes on, or is remembered.
#[derive(Debug)]
pub struct Timeline {
    image: String,
    top: Digest,
    began: Timestamp,
    zero: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    events: Events,
    dropped: u64,
    last: Instant,
    /// It was told as one that is over.
    told: bool,
}

impl Timeline {
    /// Begins now.
    pub fn new(image: String, top: Digest) -> Self {
        let zero = Instant::now();
        Self {
            image,
            top,
            began: Timestamp::now(),
            zero,
            state: Mutex::new(State {
                events: Events::default(),
                dropped: 0,
                last: zero,
                told: false,
            }),
        }
    }

    /// Notes what began at `begun` and is over now; nothing when the start is over.
    pub fn note(&self, begun: Instant, what: What) {
        let mut state = lock(&self.state);
        if !self.is_open_in(&state) {
            return;
        }
        state.last = Instant::now();
        let event = Event {
            at: begun.saturating_duration_since(self.zero).as_micros() as u64,
            took: begun.elapsed().as_micros() as u64,
            what,
        };
        if state.events.len() >= MAX_EVENTS || !state.events.push(&event) {
            state.dropped += 1;
        }
    }

    /// Whether anything is still noted.
    pub fn is_open(&self) -> bool {
        self.is_open_in(&lock(&self.state))
    }

    fn is_open_in(&self, state: &State) -> bool {
        state.last.elapsed() < QUIET && self.zero.elapsed() < LONGEST
    }

    /// All that was noted so far.
    pub fn tell(&self) -> Start {
        let state = lock(&self.state);
        let mut events: Vec<_> = state.events.iter().collect();
        events.sort_by_key(|event| event.at);
        Start {
            image: self.image.clone(),
            top: self.top,
            began: self.began,
            open: self.is_open_in(&state),
            events,
            dropped: state.dropped,
        }
    }
}

/// The starts of this node.
#[derive(Debug, Default)]
pub struct Timelines {
    recent: Mutex<VecDeque<Arc<Timeline>>>,
}

impl Timelines {
    /// The start of the image with this topmost layer that goes on, or a new one.
    pub fn of(&self, top: Digest, image: &str) -> Arc<Timeline> {
        let mut recent = lock(&self.recent);
        let known = recent.iter().rev().find(|known| known.top == top);
        if let Some(known) = known.filter(|known| known.is_open()) {
            return Arc::clone(known);
        }
        if recent.len() == MAX_STARTS {
            recent.pop_front();
        }
        let new = Arc::new(Timeline::new(image.to_owned(), top));
        recent.push_back(Arc::clone(&new));
        new
    }

    /// The starts that are over and have not been told before, the oldest first.
    pub fn over(&self) -> Vec<Start> {
        let recent = lock(&self.recent);
        let is_new = |one: &&Arc<Timeline>| {
            let mut state = lock(&one.state);
            !one.is_open_in(&state) && !std::mem::replace(&mut state.told, true)
        };
        recent.iter().filter(is_new).map(|one| one.tell()).collect()
    }

    /// The last start of an image, by its reference or by the digest of its topmost layer.
    pub fn find(&self, name: &str) -> Option<Arc<Timeline>> {
        let top = name.parse().ok();
        let recent = lock(&self.recent);
        let is_it = |one: &&Arc<Timeline>| one.image == name || Some(one.top) == top;
        recent.iter().rev().find(is_it).cloned()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_start_is_found_again_and_the_oldest_are_forgotten() {
        let timelines = Timelines::default();
        let top = |n: usize| Digest::of(&n.to_le_bytes());
        let first = timelines.of(top(0), "h/image:0");
        assert!(Arc::ptr_eq(&first, &timelines.of(top(0), "")));
        first.note(Instant::now(), What::Resolve);
        let told = timelines.find("h/image:0").unwrap().tell();
        assert_eq!((told.events.len(), told.open), (1, true));
        for n in 1..=MAX_STARTS {
            timelines.of(top(n), &format!("h/image:{n}"));
        }
        assert!(timelines.find("h/image:0").is_none());
        let last = timelines.find(&top(MAX_STARTS).to_string()).unwrap();
        assert_eq!(last.tell().image, format!("h/image:{MAX_STARTS}"));
    }

    #[test]
    fn events_are_bounded_sorted_and_come_back_from_json() {
        let timeline = Timeline::new("h/i:v".to_owned(), Digest::of(b"top"));
        let begun = Instant::now();
        std::thread::sleep(Duration::from_millis(2));
        let wait = What::Wait {
            layer: Digest::of(b"layer"),
            file: "bin/sh".to_owned(),
            bytes: 7,
            place: (0, 0),
        };
        timeline.note(Instant::now(), What::Resolve);
        timeline.note(begun, wait);
        for _ in 0..MAX_EVENTS {
            timeline.note(Instant::now(), What::Profile { reads: None });
        }
        let told = timeline.tell();
        assert_eq!((told.events.len(), told.dropped), (MAX_EVENTS, 2));
        assert!(matches!(told.events[0].what, What::Wait { .. }));
        assert!(told.events[0].took >= 2000);
        let json = serde_json::to_string(&told).unwrap();
        assert_eq!(serde_json::from_str::<Start>(&json).unwrap(), told);
    }
}
