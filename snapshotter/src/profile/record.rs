//! Noting what is read, while a container starts.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::{MAX_READS, Profile, Read};
use crate::digest::Digest;

/// The reads of one mounted chain, for as long as its window lasts.
#[derive(Debug)]
pub struct Recording {
    layers: Vec<Digest>,
    window: Duration,
    is_first: bool,
    mounted: Instant,
    first_read: OnceLock<Instant>,
    reads: Mutex<Vec<Read>>,
}

impl Recording {
    /// Begins; the window opens with the first read. `is_first` says that nothing is known yet of
    /// these layers, so that every read counts.
    pub fn new(layers: Vec<Digest>, window: Duration, is_first: bool) -> Self {
        Self {
            layers,
            window,
            is_first,
            mounted: Instant::now(),
            first_read: OnceLock::new(),
            reads: Mutex::default(),
        }
    }

    /// The layers of the chain, bottom first.
    pub fn layers(&self) -> &[Digest] {
        &self.layers
    }

    /// Whether reads must not be hidden from it now, as those are that the kernel does by itself.
    pub fn wants_every_read(&self) -> bool {
        self.is_first && !self.is_over()
    }

    /// Milliseconds since the first read, which this one may be; none when the window has closed.
    pub fn time(&self) -> Option<u32> {
        let elapsed = self.first_read.get_or_init(Instant::now).elapsed();
        (elapsed < self.window).then_some(elapsed.as_millis() as u32)
    }

    /// Notes what was read for the first time.
    pub fn note(&self, read: Read) {
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        if reads.len() < MAX_READS {
            reads.push(read);
        }
    }

    /// Whether nothing will be noted any more. A chain that nobody reads is given up as well.
    pub fn is_over(&self) -> bool {
        let begun = self.first_read.get().unwrap_or(&self.mounted);
        begun.elapsed() >= self.window
    }

    /// What was noted; nothing if nothing was.
    pub fn finish(&self) -> Option<Profile> {
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let reads = std::mem::take(&mut *reads);
        (!reads.is_empty()).then(|| Profile::new(self.layers.clone(), reads))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_opens_with_the_first_read_and_closes() {
        let recording = Recording::new(vec![Digest::of(b"x")], Duration::from_millis(200), true);
        assert!(recording.finish().is_none() && recording.wants_every_read());
        let at = recording.time().unwrap();
        recording.note((0, 5, 6, at).into());
        while recording.time().is_some() {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(!recording.wants_every_read());
        assert_eq!(recording.finish().unwrap().reads(), [(0, 5, 6, at).into()]);
        assert!(recording.finish().is_none(), "it was taken");
    }
}
