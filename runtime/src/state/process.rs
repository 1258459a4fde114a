//! Identity of a process beyond its pid, which the kernel gives out again.

use std::fs::{self, File};
use std::io::Read as _;

/// What the kernel says about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessFacts {
    /// It has exited and only waits to be reaped.
    pub(crate) dead: bool,
    /// Nothing but SIGKILL interrupts what it waits for, such as the child of its vfork(2).
    pub(crate) uninterruptible: bool,
    /// It is on its way out: as init, it waits for the others of its pid namespace.
    pub(crate) exiting: bool,
    /// Clock ticks between boot and its start: differs between two owners of one pid.
    pub(crate) start_time: u64,
}

impl ProcessFacts {
    /// Reads `/proc/PID/stat` (`proc_pid_stat(5)`); none when there is no such process.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Self::read(&format!("/proc/{pid}/stat"))
    }

    /// The same of each thread of a process; none of one that is gone.
    pub(crate) fn of_threads(pid: i32) -> impl Iterator<Item = Self> {
        let threads = fs::read_dir(format!("/proc/{pid}/task"));
        threads.into_iter().flatten().filter_map(|entry| {
            let stat = entry.ok()?.path().join("stat");
            Self::read(stat.to_str()?)
        })
    }

    fn read(path: &str) -> Option<Self> {
        // A line of at most 52 numbers, which the kernel gives with one read.
        let mut stat = [0; 2048];
        let mut file = File::open(path).ok()?;
        let length = file.read(&mut stat).ok()?;
        Self::parse(&stat[..length])
    }

    fn parse(stat: &[u8]) -> Option<Self> {
        // The name in parentheses may hold anything, parentheses and blanks too.
        let after_name = &stat[stat.iter().rposition(|&b| b == b')')? + 1..];
        let mut fields = std::str::from_utf8(after_name)
            .ok()?
            .split_ascii_whitespace();
        let state = fields.next()?;
        let flags: u32 = fields.nth(5)?.parse().ok()?;
        let start_time = fields.nth(12)?.parse().ok()?;
        Some(Self {
            dead: matches!(state, "Z" | "X" | "x"),
            uninterruptible: state == "D",
            exiting: flags & PF_EXITING != 0,
            start_time,
        })
    }
}

/// Flag of a process that exits (`linux/sched.h`).
const PF_EXITING: u32 = 4;

/// Whether a process will be dead in a moment: it exits, or SIGKILL is on its way to it.
pub(crate) fn is_ending(pid: i32) -> bool {
    let exiting = ProcessFacts::of(pid).is_none_or(|facts| facts.dead || facts.exiting);
    exiting || std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|s| has_kill(&s))
}

/// Whether SIGKILL is among the pending signals of `/proc/PID/status` (`proc_pid_status(5)`).
fn has_kill(status: &str) -> bool {
    let mask = |line: &str| {
        let digits = line
            .strip_prefix("SigPnd:")
            .or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(digits.trim(), 16).ok()
    };
    status
        .lines()
        .filter_map(mask)
        .any(|pending| pending & 1 << (libc::SIGKILL - 1) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_confuse_the_parser() {
        let stat = b"7 (a) Z (b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        let facts = ProcessFacts {
            uninterruptible: false,
            dead: false,
            exiting: false,
            start_time: 4711,
        };
        assert_eq!(ProcessFacts::parse(stat), Some(facts));
        assert_eq!(ProcessFacts::parse(b"7 (a"), None);
        assert_eq!(ProcessFacts::parse(b"7 (a) S 1"), None);
    }

    #[test]
    fn the_caller_is_alive() {
        let own = ProcessFacts::of(std::process::id() as i32).expect("exists");
        assert!(!own.dead && !own.exiting && own.start_time > 0);
        assert!(!is_ending(std::process::id() as i32));
    }

    #[test]
    fn a_process_that_exits_or_was_killed_is_ending() {
        let stat = b"7 (a) S 1 7 7 0 -1 4194564 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert!(ProcessFacts::parse(stat).is_some_and(|facts| facts.exiting));
        assert!(has_kill("Name:\ta\nShdPnd:\t0000000000000100\n"));
        assert!(has_kill(
            "SigPnd:\t0000000000000102\nShdPnd:\t0000000000000000\n"
        ));
        assert!(!has_kill(
            "SigPnd:\t0000000000000002\nSigBlk:\t0000000000000100\n"
        ));
    }
}
