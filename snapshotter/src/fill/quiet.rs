//! Log lines that many readers cause at once are written once.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines about the same layer.
const INTERVAL: Duration = Duration::from_secs(2);

/// Counts what is not written.
#[derive(Debug, Default)]
pub(super) struct Quiet(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    written: Option<Instant>,
    left_out: u64,
}

impl Quiet {
    /// Whether a line is to be written now; if so, how many were not since the last one.
    pub(super) fn speak(&self) -> Option<u64> {
        self.speak_at(Instant::now())
    }

    fn speak_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.written.is_some_and(|last| now < last + INTERVAL) {
            state.left_out += 1;
            return None;
        }
        state.written = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_written_and_the_next_one_tells_of_those_between() {
        let (quiet, now) = (Quiet::default(), Instant::now());
        let said: Vec<_> = (0..5).map(|_| quiet.speak_at(now)).collect();
        assert_eq!(said, [Some(0), None, None, None, None]);
        assert_eq!(quiet.speak_at(now + INTERVAL), Some(4));
    }
}
