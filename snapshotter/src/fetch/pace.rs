//! The least rate at which a server must send: silence is not the only way to keep a reader.

use std::time::Duration;

use super::failure::Failure;

/// Bytes a second. A modem is faster, a slow-loris is not.
const MIN_RATE: u64 = 1 << 10;

/// Measures one answer in windows of time spent waiting for it.
pub(super) struct Pace {
    window: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    pub(super) fn new(window: Duration) -> Self {
        Self {
            window,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Counts `bytes` that were waited for; fails at the end of a window that brought too few.
    pub(super) fn count(&mut self, waited: Duration, bytes: usize) -> Result<(), Failure> {
        self.waited += waited;
        self.bytes += bytes as u64;
        if self.waited < self.window {
            return Ok(());
        }
        let due = (MIN_RATE as f64 * self.waited.as_secs_f64()) as u64;
        if self.bytes < due {
            return Err(Failure::Unreachable(format!(
                "the server sent only {} bytes in {:.1} s",
                self.bytes,
                self.waited.as_secs_f64()
            )));
        }
        *self = Self::new(self.window);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_trickles_is_given_up_after_a_window_and_what_flows_is_not() {
        let tick = Duration::from_millis(100);
        let mut pace = Pace::new(Duration::from_secs(1));
        let mut trickle = (0..100).map(|_| pace.count(tick, 1));
        assert_eq!(trickle.position(|counted| counted.is_err()), Some(9));
        let mut pace = Pace::new(Duration::from_secs(1));
        assert!((0..100).all(|_| pace.count(tick, 200).is_ok()));
        // Fast at first, then not: each window is judged by itself.
        pace.count(tick, 1 << 20).unwrap();
        assert!((0..30).any(|_| pace.count(tick, 1).is_err()));
    }
}
