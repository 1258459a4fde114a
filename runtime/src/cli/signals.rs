//! Names of signals as `kill` takes them.

use xebec_runtime::{Error, Result};

const NAMES: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// First and last real-time signal that the C library leaves to programs.
const REAL_TIME: (i32, i32) = (34, 64);

/// Reads `15`, `TERM`, `SIGTERM`, `sigterm`, `RTMIN+3` or `SIGRTMAX-1`.
pub(super) fn parse(text: &str) -> Result<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = name
        .parse()
        .ok()
        .or_else(|| by_name(name))
        .or_else(|| real_time(name));
    match number {
        Some(n) if (0..=REAL_TIME.1).contains(&n) => Ok(n),
        _ => Err(Error::InvalidArgument(format!("unknown signal {text:?}"))),
    }
}

fn by_name(name: &str) -> Option<i32> {
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

fn real_time(name: &str) -> Option<i32> {
    let (first, last) = REAL_TIME;
    match name {
        "RTMIN" => return Some(first),
        "RTMAX" => return Some(last),
        _ => {}
    }
    let number = if let Some(up) = name.strip_prefix("RTMIN+") {
        first.checked_add(up.parse().ok()?)?
    } else {
        last.checked_sub(name.strip_prefix("RTMAX-")?.parse().ok()?)?
    };
    (first..=last).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn names_and_numbers_of_signals_are_understood() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("RTMIN+2", 36),
            ("SIGRTMAX", 64),
            ("0", 0),
        ] {
            assert_eq!(parse(text).ok(), Some(number), "{text}");
        }
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in ["", "65", "-1", "NOPE", "RTMIN+31", "RTMAX-31", "RTMIN--1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
