//! How long the phases of a container's start took in the shim.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::log;
use crate::trace::Phase;

/// Times in microseconds. The phases up to the terminal lie within `create`.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Timings {
    /// Streams were opened.
    pub(super) streams: u32,
    /// The rootfs was mounted.
    pub(super) mount: u32,
    /// The runtime made the container.
    pub(super) launch: u32,
    /// The terminal was taken over.
    pub(super) console: u32,
    /// All of the creation.
    pub(super) create: u32,
    /// The runtime let init go; 0 before that.
    pub(super) start: u32,
}

impl Timings {
    /// Creation and start.
    pub(super) fn total(&self) -> u32 {
        self.create.saturating_add(self.start)
    }

    /// Tells the log of the start of container `id`.
    pub(super) fn log(&self, id: &str) {
        let fields: &[log::Field<'_>] = &[
            ("id", &id),
            ("streams_us", &self.streams),
            ("mount_us", &self.mount),
            ("launch_us", &self.launch),
            ("console_us", &self.console),
            ("create_us", &self.create),
            ("start_us", &self.start),
            ("total_us", &self.total()),
        ];
        log::with(fields).debug(format_args!("container started"));
    }
}

/// Takes the time of one phase after the other.
#[derive(Debug)]
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    pub(super) fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    /// The phase since the start or the last lap.
    pub(super) fn lap(&mut self, name: &'static str) -> Phase {
        let now = Instant::now();
        let began = std::mem::replace(&mut self.0, now);
        Phase {
            name,
            began,
            took: now - began,
        }
    }
}

impl Phase {
    /// How long it took, in microseconds.
    pub(super) fn micros(self) -> u32 {
        micros(self.took)
    }
}

/// Microseconds, at most what 32 bits hold: 71 minutes.
pub(super) fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
