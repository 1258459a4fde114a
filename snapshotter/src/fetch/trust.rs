//! Who gave which bytes of a blob, and who is no longer asked for it.
//!
//! Bytes that do not match their digest are the fault of the host that sent them, or of the image,
//! whose author states the digests. Which of the two, only another host can tell: the first one is a
//! suspect, and is convicted when right bytes come from elsewhere.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most answers that are remembered of one blob: a unit is verified as soon as it has arrived.
const MAX_ANSWERS: usize = 64;

/// The account of one blob.
#[derive(Debug, Default)]
pub(super) struct Trust(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    answers: VecDeque<(Range<u64>, String)>,
    suspects: Vec<String>,
}

impl Trust {
    /// Notes that `host` has sent `range`.
    pub(super) fn note(&self, range: Range<u64>, host: String) {
        let mut state = self.lock();
        if let Some((last, of)) = state.answers.back_mut()
            && *of == host
            && last.end == range.start
        {
            last.end = range.end;
            return;
        }
        if state.answers.len() == MAX_ANSWERS {
            state.answers.pop_front();
        }
        state.answers.push_back((range, host));
    }

    /// Suspects those who have sent something of `range`; who is suspected now.
    pub(super) fn suspect(&self, range: &Range<u64>) -> Vec<String> {
        let mut guard = self.lock();
        let state = &mut *guard;
        for (sent, host) in &state.answers {
            let concerns = sent.start < range.end && range.start < sent.end;
            if concerns && !state.suspects.contains(host) {
                state.suspects.push(host.clone());
            }
        }
        state
            .answers
            .retain(|(_, host)| !state.suspects.contains(host));
        state.suspects.clone()
    }

    /// Those who are not asked for this blob.
    pub(super) fn suspects(&self) -> Vec<String> {
        self.lock().suspects.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_sent_the_bytes_is_suspected() {
        let trust = Trust::default();
        trust.note(0..10, "a".to_owned());
        trust.note(10..20, "b".to_owned());
        trust.note(20..30, "a".to_owned());
        assert!(trust.suspects().is_empty());
        assert_eq!(trust.suspect(&(12..14)), ["b"]);
        assert_eq!(trust.suspect(&(30..40)), ["b"], "nobody has sent those");
        assert_eq!(trust.suspect(&(5..25)), ["b", "a"]);
        assert_eq!(trust.suspects(), ["b", "a"]);
    }

    #[test]
    fn memory_is_bounded() {
        let trust = Trust::default();
        for number in 0..10_000 {
            trust.note(number * 2..number * 2 + 1, "a".to_owned());
        }
        assert_eq!(trust.lock().answers.len(), MAX_ANSWERS);
        for number in 0..10_000 {
            trust.note(number..number + 1, "b".to_owned());
        }
        assert_eq!(trust.suspect(&(9_000..9_001)), ["a", "b"][1..]);
    }
}
