//! Lines for containerd's log: the daemon's standard error is the fifo that containerd reads.
//!
//! Writing never blocks and never fails the caller; a full or abandoned fifo loses the line.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

static DEBUG: AtomicBool = AtomicBool::new(false);

/// Lets [`debug`] through.
pub fn enable_debug() {
    DEBUG.store(true, Ordering::Relaxed);
}

/// Something failed that nobody is waiting for.
pub fn error(message: fmt::Arguments<'_>) {
    line("error", message);
}

/// Something is odd, but the work went on.
pub fn warn(message: fmt::Arguments<'_>) {
    line("warning", message);
}

/// Detail for `-debug`.
pub fn debug(message: fmt::Arguments<'_>) {
    if DEBUG.load(Ordering::Relaxed) {
        line("debug", message);
    }
}

fn line(level: &str, message: fmt::Arguments<'_>) {
    let text = format!("level={level} msg={:?}\n", message.to_string());
    // Nowhere is left to report a failed log write.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
