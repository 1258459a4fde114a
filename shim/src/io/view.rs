//! Streams seen from outside, for who wants to know why nothing comes through.

use serde::Serialize;

use crate::supervisor::message::Level;

/// One stream as it is now.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct View {
    /// Which one.
    kind: &'static str,
    /// It is being copied.
    open: bool,
    /// Bytes written into it that the shim has not taken yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    unread: Option<u64>,
    /// Bytes that the shim has passed on, and nobody has read yet; absent where they go to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    untaken: Option<u64>,
}

impl View {
    /// The stream under `key`, which has a level while it is open.
    pub(super) fn new(key: &str, level: Option<&Level>) -> View {
        let name = key.rsplit('/').next().unwrap_or(key);
        View {
            kind: kind(name),
            open: level.is_some(),
            unread: level.and_then(|level| level.unread),
            untaken: level.and_then(|level| level.untaken),
        }
    }
}

/// What people call it; `name` is the one under which it is kept.
fn kind(name: &str) -> &'static str {
    match name {
        super::STDIN => "stdin",
        super::STDOUT => "stdout",
        super::STDERR => "stderr",
        super::TERMINAL => "terminal",
        super::TERMINAL_STDIN => "terminal input",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_shows_what_waits_on_both_sides_until_its_end() {
        let level = Level {
            unread: Some(3),
            untaken: None,
        };
        let view = |key, level, kind, open, unread| {
            let expected = View {
                kind,
                open,
                unread,
                untaken: None,
            };
            assert_eq!(View::new(key, level), expected);
        };
        view("c/p//out", Some(&level), "stdout", true, Some(3));
        view("c/p/x/tty", None, "terminal", false, None);
    }
}
