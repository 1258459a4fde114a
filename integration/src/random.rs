//! Choices that a seed repeats, for tests that do things at random.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A small generator (splitmix64).
#[derive(Debug)]
pub struct Random {
    seed: u64,
    state: u64,
}

/// A seed that is not the last one.
pub fn seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_nanos() as u64 % 1_000_000_007
}

impl Random {
    /// A generator of the choices that belong to `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// What repeats its choices.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next number, of 64 bits.
    #[allow(clippy::should_implement_trait)] // It has no end.
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next().checked_rem(limit).unwrap_or(0)
    }

    /// A time between two numbers of milliseconds.
    pub fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least))
    }
}

/// A number from the environment, `None` when it is not set.
pub fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|error| panic!("{name}={value}: {error}")))
}
