//! Output in memory that its reader has not taken yet, and the account of what was dropped. No
//! system calls here.

use std::collections::VecDeque;

/// How far the end of a line that was cut is looked for, in bytes.
const LINE: usize = 4096;

/// A bounded queue of bytes, which has memory only while it holds some.
#[derive(Debug)]
pub(super) struct Backlog {
    bytes: VecDeque<u8>,
    limit: usize,
    newline: &'static str,
    /// Bytes that stood before the first one and are not told of yet.
    dropped: u64,
    /// What was taken last ended within a line.
    mid_line: bool,
}

impl Backlog {
    /// At most `limit` bytes of a stream whose lines end with `newline`.
    pub(super) fn new(limit: usize, newline: &'static str) -> Backlog {
        Backlog {
            bytes: VecDeque::new(),
            limit,
            newline,
            dropped: 0,
            mid_line: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes can be added.
    pub(super) fn room(&self) -> usize {
        self.limit - self.bytes.len()
    }

    /// Adds bytes, for which there must be room.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let length = self.bytes.len() + bytes.len();
        debug_assert!(length <= self.limit, "{length} bytes are too many");
        if length > self.bytes.capacity() {
            let capacity = length.next_power_of_two().min(self.limit).max(length);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend(bytes);
    }

    /// Makes room for `length` bytes by dropping the oldest. What is left begins with a line,
    /// unless the one that was cut is very long.
    pub(super) fn make_room(&mut self, length: usize) {
        let excess = length.saturating_sub(self.room()).min(self.bytes.len());
        if excess == 0 {
            return;
        }
        let from_last = self.bytes.range(excess - 1..).take(LINE);
        let rest_of_line = from_last.into_iter().position(|byte| *byte == b'\n');
        let cut = excess + rest_of_line.unwrap_or(0);
        self.bytes.drain(..cut);
        self.dropped += cut as u64;
    }

    /// The line that tells the reader what it will not get; it comes before the rest.
    pub(super) fn note(&self) -> Option<String> {
        let newline = self.newline;
        let start = if self.mid_line { newline } else { "" };
        let dropped = self.dropped;
        (dropped > 0).then(|| {
            format!("{start}xebec: {dropped} bytes of output dropped, nobody read them{newline}")
        })
    }

    /// The reader has been told.
    pub(super) fn noted(&mut self) {
        self.dropped = 0;
        self.mid_line = false;
    }

    /// The oldest bytes, not necessarily all.
    pub(super) fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    /// The first `length` bytes are somewhere else now.
    pub(super) fn taken(&mut self, length: usize) {
        if let Some(last) = self.bytes.drain(..length).next_back() {
            self.mid_line = last != b'\n';
        }
        if self.bytes.is_empty() {
            self.bytes = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(backlog: &mut Backlog) -> Vec<u8> {
        let mut rest = Vec::new();
        while !backlog.is_empty() {
            rest.extend(backlog.front());
            backlog.taken(backlog.front().len());
        }
        rest
    }

    #[test]
    fn bytes_come_out_in_order_and_memory_is_there_only_for_them() {
        let mut backlog = Backlog::new(100, "\n");
        assert_eq!((backlog.bytes.capacity(), backlog.room()), (0, 100));
        let mut sent = Vec::new();
        let mut got = Vec::new();
        for round in 0..50u8 {
            let chunk = vec![round; 1 + usize::from(round) % backlog.room()];
            backlog.push(&chunk);
            sent.extend(chunk);
            assert!(backlog.bytes.capacity() <= 100);
            let some = backlog.front().len().div_ceil(2);
            got.extend(&backlog.front()[..some]);
            backlog.taken(some);
        }
        got.extend(rest(&mut backlog));
        assert_eq!(got, sent);
        assert_eq!((backlog.bytes.capacity(), backlog.note()), (0, None));
    }

    #[test]
    fn what_is_dropped_is_the_oldest_to_the_end_of_its_line_and_told_once() {
        let mut backlog = Backlog::new(24, "\n");
        backlog.push(b"one\ntwo\nthree\nfour\n");
        backlog.taken(6);
        // "o\n" is left of a line whose beginning the reader has.
        backlog.make_room(14);
        backlog.push(b"five\nsix\nseven");
        let note = "\nxebec: 8 bytes of output dropped, nobody read them\n";
        assert_eq!(backlog.note().as_deref(), Some(note));
        backlog.noted();
        assert_eq!(backlog.note(), None);
        assert_eq!(rest(&mut backlog), b"four\nfive\nsix\nseven");
    }

    #[test]
    fn lines_are_not_looked_for_where_there_are_none_and_exact_cuts_lose_no_more() {
        let mut backlog = Backlog::new(3 * LINE, "\r\n");
        backlog.push(&[b'x'; 2 * LINE]);
        backlog.push(b"\n");
        backlog.make_room(LINE);
        assert_eq!(backlog.dropped, 1);
        backlog.noted();
        backlog.make_room(backlog.room());
        assert_eq!(backlog.note(), None);
        let mut backlog = Backlog::new(8, "\r\n");
        backlog.push(b"ab\ncd\nef");
        backlog.make_room(3);
        let note = "xebec: 3 bytes of output dropped, nobody read them\r\n";
        assert_eq!(backlog.note().as_deref(), Some(note));
        backlog.push(b"ghi");
        backlog.make_room(8);
        assert_eq!((backlog.dropped, backlog.is_empty()), (11, true));
    }
}
