//! Identity of a process beyond its pid, which the kernel gives out again.

use std::fs::File;
use std::io::Read as _;

/// What the kernel says about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessFacts {
    /// It has exited and only waits to be reaped.
    pub(crate) dead: bool,
    /// Clock ticks between boot and its start: differs between two owners of one pid.
    pub(crate) start_time: u64,
}

impl ProcessFacts {
    /// Reads `/proc/PID/stat` (`proc_pid_stat(5)`); none when there is no such process.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        // A line of at most 52 numbers, which the kernel gives with one read.
        let mut stat = [0; 2048];
        let mut file = File::open(format!("/proc/{pid}/stat")).ok()?;
        let length = file.read(&mut stat).ok()?;
        Self::parse(&stat[..length])
    }

    fn parse(stat: &[u8]) -> Option<Self> {
        // The name in parentheses may hold anything, parentheses and blanks too.
        let after_name = &stat[stat.iter().rposition(|&b| b == b')')? + 1..];
        let mut fields = std::str::from_utf8(after_name)
            .ok()?
            .split_ascii_whitespace();
        let dead = matches!(fields.next()?, "Z" | "X" | "x");
        let start_time = fields.nth(18)?.parse().ok()?;
        Some(Self { dead, start_time })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_confuse_the_parser() {
        let stat = b"7 (a) Z (b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        let facts = ProcessFacts {
            dead: false,
            start_time: 4711,
        };
        assert_eq!(ProcessFacts::parse(stat), Some(facts));
        assert_eq!(ProcessFacts::parse(b"7 (a"), None);
        assert_eq!(ProcessFacts::parse(b"7 (a) S 1"), None);
    }

    #[test]
    fn the_caller_is_alive() {
        let own = ProcessFacts::of(std::process::id() as i32).expect("exists");
        assert!(!own.dead && own.start_time > 0);
    }
}
