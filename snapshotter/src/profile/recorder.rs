//! The recordings that are under way on this node, and what becomes of them.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Profile, Profiles, Recording};
use crate::digest::Digest;

/// Records starts and remembers them.
#[derive(Debug)]
pub struct Recorder {
    profiles: Profiles,
    window: Duration,
    active: Mutex<Vec<Arc<Recording>>>,
}

impl Recorder {
    /// Records the first `window` of each start, and keeps profiles below `root`; a window of
    /// nothing switches all of it off.
    pub fn new(root: &Path, window: Duration) -> Self {
        Self {
            profiles: Profiles::below(root),
            window,
            active: Mutex::default(),
        }
    }

    /// Begins to record a chain of layers that was just mounted, which is the first time unless it
    /// has a profile already.
    pub fn begin(&self, layers: Vec<Digest>, is_first: bool) -> Option<Arc<Recording>> {
        if self.window.is_zero() {
            return None;
        }
        let recording = Arc::new(Recording::new(layers, self.window, is_first));
        self.active().push(Arc::clone(&recording));
        Some(recording)
    }

    /// What is known of a chain. A profile that cannot be read is no reason not to start.
    pub fn profile(&self, layers: &[Digest]) -> Option<Profile> {
        if self.window.is_zero() || layers.is_empty() {
            return None;
        }
        self.profiles.get(layers).unwrap_or_else(|error| {
            tracing::warn!(%error, "started without a profile");
            None
        })
    }

    /// Keeps a profile that another node has recorded.
    pub fn keep_foreign(&self, profile: Profile) {
        if let Err(error) = self.profiles.merge(profile) {
            tracing::warn!(%error, "a profile from the registry is not kept");
        }
    }

    /// Keeps what was noted by recordings whose window has closed; their chains.
    pub fn harvest(&self) -> Vec<Vec<Digest>> {
        self.keep(Recording::is_over)
    }

    /// Keeps what was noted of a chain so far, which is mounted no longer; the chain, if something
    /// was.
    pub fn end(&self, layers: &[Digest]) -> Vec<Vec<Digest>> {
        self.keep(|recording| recording.layers() == layers)
    }

    /// Keeps what was noted by all recordings.
    pub fn end_all(&self) {
        self.keep(|_| true);
    }

    fn keep(&self, ended: impl Fn(&Recording) -> bool) -> Vec<Vec<Digest>> {
        let mut active = self.active();
        let (over, going_on) = std::mem::take(&mut *active)
            .into_iter()
            .partition::<Vec<_>, _>(|recording| ended(recording));
        *active = going_on;
        drop(active);
        let mut kept = Vec::new();
        for profile in over.iter().filter_map(|recording| recording.finish()) {
            let chain = profile.layers().to_vec();
            let (layers, reads) = (chain.len(), profile.reads().len());
            match self.profiles.merge(profile) {
                Ok(()) => {
                    tracing::info!(layers, reads, "recorded a start");
                    kept.push(chain);
                }
                Err(error) => tracing::warn!(%error, "a recorded start is lost"),
            }
        }
        kept
    }

    fn active(&self) -> MutexGuard<'_, Vec<Arc<Recording>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_recording_becomes_the_profile_of_its_chain() {
        let root = tempfile::tempdir().unwrap();
        let recorder = Recorder::new(root.path(), Duration::from_mins(1));
        let chain = |name: &str| vec![Digest::of(name.as_bytes())];
        let (a, b) = (
            recorder.begin(chain("a"), true),
            recorder.begin(chain("b"), true),
        );
        let (a, b) = (a.unwrap(), b.unwrap());
        a.note((0, 1, 2, 3).into());
        b.note((0, 4, 5, 6).into());
        recorder.harvest();
        assert!(recorder.profile(&chain("a")).is_none(), "it goes on");
        recorder.end(&chain("a"));
        assert_eq!(recorder.profile(&chain("a")).unwrap().reads().len(), 1);
        assert!(recorder.profile(&chain("b")).is_none());
        recorder.end_all();
        assert_eq!(recorder.profile(&chain("b")).unwrap().runs(), 1);
        let off = Recorder::new(root.path(), Duration::ZERO);
        assert!(off.begin(chain("a"), true).is_none() && off.profile(&chain("a")).is_none());
    }
}
