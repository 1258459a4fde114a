//! What outlives the worker, apart from processes: its records with their descriptors, and the
//! requests that have no answer yet. No system calls here.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use super::message::Change;

/// A record and the descriptors kept with it.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) record: String,
    pub(super) fds: Vec<OwnedFd>,
}

/// A request that a worker has got and not answered.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) frame: Vec<u8>,
    /// How many workers have got it.
    pub(super) attempt: u32,
}

/// Connection and stream of a request.
type Address = (u32, u32);

/// Records and open requests.
#[derive(Debug, Default)]
pub(super) struct Book {
    records: BTreeMap<String, Kept>,
    requests: BTreeMap<Address, Request>,
}

/// Changes that concern children.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Watches {
    pub(super) watch: Vec<i32>,
    pub(super) forget: Vec<i32>,
}

impl Book {
    /// Applies what a worker has committed, and returns the rest.
    pub(super) fn apply(&mut self, changes: Vec<Change>, fds: Vec<OwnedFd>) -> Watches {
        let mut fds = fds.into_iter();
        let mut watches = Watches::default();
        for change in changes {
            match change {
                Change::Put {
                    key,
                    record,
                    fds: number,
                } => {
                    let kept = self.records.entry(key).or_default();
                    kept.record = record;
                    if let Some(number) = number {
                        kept.fds = fds.by_ref().take(number).collect();
                    }
                }
                Change::Drop { prefix } => self.drop_below(&prefix),
                Change::TakeBack { .. } | Change::Release { .. } => {}
                Change::Watch { pid } => watches.watch.push(pid),
                Change::Forget { pid } => watches.forget.push(pid),
            }
        }
        watches
    }

    /// Keeps the pid of a launched process under `key`, with the descriptors that are kept there.
    pub(super) fn keep_pid(&mut self, key: String, pid: i32) {
        self.records.entry(key).or_default().record = pid.to_string();
    }

    fn drop_below(&mut self, prefix: &str) {
        let is_below = |(key, _): &(&String, &Kept)| key.starts_with(prefix);
        let from = prefix.to_owned();
        let doomed: Vec<String> = self
            .records
            .range(from..)
            .take_while(is_below)
            .map(|(key, _)| key.clone())
            .collect();
        for key in doomed {
            self.records.remove(&key);
        }
    }

    /// True without any record: there is no container.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// All records in the order of their keys.
    pub(super) fn records(&self) -> impl Iterator<Item = (&String, &Kept)> {
        self.records.iter()
    }

    /// Notes a request, which goes to the worker now if there is one.
    pub(super) fn asked(&mut self, connection: u32, frame: Vec<u8>, is_told: bool) {
        let attempt = u32::from(is_told);
        let request = Request { frame, attempt };
        self.requests
            .insert((connection, stream(&request.frame)), request);
    }

    /// The worker has answered with this frame; false if nobody waits for it.
    pub(super) fn answered(&mut self, connection: u32, frame: &[u8]) -> bool {
        self.requests.remove(&(connection, stream(frame))).is_some()
    }

    /// How many requests wait for their answers.
    pub(super) fn open_requests(&self) -> usize {
        self.requests.len()
    }

    /// A connection has ended, and nobody waits for its answers.
    pub(super) fn closed(&mut self, connection: u32) {
        self.requests.retain(|(open, _), _| *open != connection);
    }

    /// The open requests, which go to one more worker.
    pub(super) fn ask_again(&mut self) -> impl Iterator<Item = (u32, &Request)> {
        self.requests.iter_mut().map(|((connection, _), request)| {
            request.attempt += 1;
            (*connection, &*request)
        })
    }
}

/// The stream id in a ttrpc header.
fn stream(frame: &[u8]) -> u32 {
    let mut id = [0; 4];
    if let Some(bytes) = frame.get(4..8) {
        id.copy_from_slice(bytes);
    }
    u32::from_be_bytes(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, record: &str, fds: Option<usize>) -> Change {
        let (key, record) = (key.to_owned(), record.to_owned());
        Change::Put { key, record, fds }
    }

    fn fd() -> OwnedFd {
        std::io::pipe().unwrap().0.into()
    }

    fn kept(book: &Book) -> Vec<(&str, &str, usize)> {
        book.records()
            .map(|(key, kept)| (&**key, &*kept.record, kept.fds.len()))
            .collect()
    }

    #[test]
    fn a_record_changes_while_its_descriptors_stay_until_others_come() {
        let mut book = Book::default();
        book.apply(vec![put("a", "1", Some(2))], vec![fd(), fd()]);
        book.apply(vec![put("a", "2", None)], Vec::new());
        assert_eq!(kept(&book), [("a", "2", 2)]);
        book.apply(vec![put("a", "3", Some(0))], Vec::new());
        assert_eq!(kept(&book), [("a", "3", 0)]);
    }

    #[test]
    fn dropping_takes_what_is_below_a_prefix_and_nothing_beside_it() {
        let mut book = Book::default();
        let keys = ["p/c/", "p/c/x", "p/c1/", "s/c/out"];
        book.apply(keys.map(|key| put(key, "", None)).into(), Vec::new());
        let change = Change::Drop {
            prefix: "p/c/".into(),
        };
        let watches = book.apply(vec![change, Change::Forget { pid: 7 }], Vec::new());
        assert_eq!(kept(&book), [("p/c1/", "", 0), ("s/c/out", "", 0)]);
        assert_eq!((watches.watch, watches.forget), (vec![], vec![7]));
    }

    #[test]
    fn a_request_is_asked_again_until_it_is_answered_or_its_connection_ends() {
        let frame = |stream: u8| vec![0, 0, 0, 0, 0, 0, 0, stream, 1, 0];
        let mut book = Book::default();
        for (connection, stream) in [(1, 1), (1, 3), (2, 1)] {
            book.asked(connection, frame(stream), connection == 1);
        }
        assert!(book.answered(1, &frame(1)));
        assert!(!book.answered(1, &frame(1)));
        let again = |book: &mut Book| -> Vec<(u32, u32)> {
            book.ask_again()
                .map(|(connection, request)| (connection, request.attempt))
                .collect()
        };
        assert_eq!(again(&mut book), [(1, 2), (2, 1)]);
        book.closed(2);
        assert_eq!(again(&mut book), [(1, 3)]);
    }
}
