//! Copying between containers' streams and their targets. It goes on whatever becomes of the
//! worker, and nobody else holds the descriptors: the end of one is seen by whom it concerns.

mod backlog;
mod copy;
mod spill;
mod store;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::message::{Copying, Levels, Opens};
use crate::io::terminal;
use crate::log;
use copy::Copy;

/// How long readers of an output that is over may come late, and how often is looked for them.
const LATE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// All streams, and the fifos of outputs that ended before somebody read them.
#[derive(Debug, Default)]
pub(super) struct Copier {
    copies: BTreeMap<u32, (String, Copy)>,
    next: u32,
    unread: Vec<Unread>,
    taken_back: Vec<TakenBack>,
}

/// The fifo of a stream that will be made again.
#[derive(Debug)]
struct TakenBack {
    key: String,
    _fifo: OwnedFd,
    until: Instant,
}

/// A fifo whose reader would wait in its open for ever, as there is no writer any more.
#[derive(Debug)]
struct Unread {
    fifo: PathBuf,
    until: Instant,
    next: Instant,
}

impl Unread {
    /// Shows the end to those who read meanwhile; false when nobody will any more.
    fn look(&mut self, now: Instant) -> bool {
        if now < self.next {
            return true;
        }
        self.next = now + PAUSE;
        let is_gone = open_writer(&self.fifo).is_err_and(|error| error != Errno::NXIO);
        !is_gone && now < self.until
    }
}

/// Opens the fifo of an output. It is opened for reading too: then a reader that goes away leaves
/// the container waiting, not killed by SIGPIPE, and another reader may come. The second value is
/// true if no reader was there yet.
fn open_output(fifo: &Path) -> rustix::io::Result<(OwnedFd, bool)> {
    // Keeps such a reader from seeing an end.
    let writer = open_writer(fifo);
    let output = open(fifo, OFlags::RDWR)?;
    Ok((output, matches!(writer, Err(Errno::NXIO))))
}

/// Opens a fifo for writing if somebody reads it; else `NXIO`.
fn open_writer(fifo: &Path) -> rustix::io::Result<OwnedFd> {
    open(fifo, OFlags::WRONLY)
}

/// Opens a fifo, never waiting for its other side.
fn open(fifo: &Path, access: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(fifo, flags, Mode::empty())
}

impl Copier {
    /// Begins to copy; `fds` are the source and the target but for the one that is to be opened.
    /// The key of a stream that cannot be copied: it is over.
    pub(super) fn add(
        &mut self,
        key: String,
        copying: Copying,
        fds: Vec<OwnedFd>,
    ) -> Option<String> {
        match begin(copying, fds) {
            Ok(copy) => {
                self.taken_back.retain(|fifo| fifo.key != key);
                self.copies.insert(self.next, (key, copy));
                self.next = self.next.wrapping_add(1);
                None
            }
            Err(error) => {
                log::error(format_args!("open stream {key}: {error}"));
                Some(key)
            }
        }
    }

    /// Begins to move what goes through the held streams whose keys begin so.
    pub(super) fn release(&mut self, prefix: &str) {
        let copies = self.copies.values_mut();
        copies
            .filter(|(key, _)| key.starts_with(prefix))
            .for_each(|(_, copy)| copy.held = false);
    }

    /// Forgets every stream whose key begins so. What a creation that failed has said is moved first.
    pub(super) fn drop_below(&mut self, prefix: &str) {
        let doomed = self
            .copies
            .extract_if(.., |_, (key, _)| key.starts_with(prefix));
        for (_, (key, copy)) in doomed {
            if let Err(error) = copy.give_last() {
                log::error(format_args!("copy stream {key}: {error}"));
            }
        }
    }

    /// The same for streams that will be made again: at the other sides of their fifos no end is
    /// seen until then.
    pub(super) fn take_back(&mut self, prefix: &str) {
        let until = Instant::now() + LATE;
        let doomed = self
            .copies
            .extract_if(.., |_, (key, _)| key.starts_with(prefix));
        self.taken_back
            .extend(doomed.filter_map(|(_, (key, copy))| {
                Some(TakenBack {
                    key,
                    _fifo: copy.into_fifo()?,
                    until,
                })
            }));
    }

    /// The keys of the streams that are open.
    pub(super) fn keys(&self) -> impl Iterator<Item = &String> {
        self.copies.values().map(|(key, _)| key)
    }

    /// What waits in the streams that are open.
    pub(super) fn levels(&self) -> Levels {
        let levels = self.copies.values();
        levels
            .map(|(key, copy)| (key.clone(), copy.level()))
            .collect()
    }

    /// Number and descriptor of each stream that waits, and what for.
    pub(super) fn polled(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>, PollFlags)> {
        self.copies.iter().flat_map(|(number, (_, copy))| {
            let polled = copy.polled();
            polled.map(|(fd, flags)| (*number, fd, flags))
        })
    }

    /// When to call [`Copier::look`].
    pub(super) fn wake(&self) -> Option<Instant> {
        let copies = self.copies.values().filter_map(|(_, copy)| copy.wake());
        let unread = self.unread.iter().map(|late| late.next);
        let taken_back = self.taken_back.iter().map(|fifo| fifo.until);
        copies.chain(unread).chain(taken_back).min()
    }

    /// Moves what can be moved of one stream; its key if that is over.
    pub(super) fn proceed(&mut self, number: u32) -> Option<String> {
        self.with(number, Copy::proceed)
    }

    /// Ends an input once what has been written to it so far is through; its key if it has ended.
    pub(super) fn close(&mut self, key: &str) -> Option<String> {
        self.with(self.number(key)?, Copy::close)
    }

    /// Sets the size of the terminal that a stream comes from.
    pub(super) fn resize(&self, key: &str, columns: u16, rows: u16) {
        let copy = self.number(key).and_then(|number| self.copies.get(&number));
        let Some((_, copy)) = copy else { return };
        if let Err(error) = terminal::resize(copy.source(), columns, rows) {
            log::error(format_args!("resize terminal {key}: {error}"));
        }
    }

    /// Looks for readers that come late; the keys of streams that are over now.
    pub(super) fn look(&mut self, now: Instant) -> Vec<String> {
        self.unread.retain_mut(|fifo| fifo.look(now));
        self.taken_back.retain(|fifo| now < fifo.until);
        let due = |(number, (_, copy)): (&u32, &(String, Copy))| {
            copy.wake()
                .is_some_and(|wake| wake <= now)
                .then_some(*number)
        };
        let due: Vec<u32> = self.copies.iter().filter_map(due).collect();
        let over = due.into_iter().map(|number| self.with(number, Copy::look));
        over.collect::<Vec<_>>().into_iter().flatten().collect()
    }

    fn number(&self, key: &str) -> Option<u32> {
        let mut copies = self.copies.iter();
        copies
            .find(|(_, (other, _))| other == key)
            .map(|(number, _)| *number)
    }

    /// Takes a step of one stream, and lets go of it at its end.
    fn with(
        &mut self,
        number: u32,
        step: fn(&mut Copy, Instant) -> io::Result<()>,
    ) -> Option<String> {
        let now = Instant::now();
        let (key, copy) = self.copies.get_mut(&number)?;
        match step(copy, now) {
            // The container closed its standard input before the client did.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => log::error(format_args!("copy stream {key}: {error}")),
            Ok(()) => {}
        }
        if !copy.is_over() {
            return None;
        }
        let (key, copy) = self.copies.remove(&number)?;
        self.unread.extend(copy.late.map(|fifo| Unread {
            fifo,
            until: now + LATE,
            next: now,
        }));
        Some(key)
    }
}

/// Opens what is to be opened of a stream.
fn begin(copying: Copying, fds: Vec<OwnedFd>) -> io::Result<Copy> {
    let mut fds = fds.into_iter();
    let mut come = || {
        let absent = || io::Error::other("a descriptor did not come along");
        fds.next().ok_or_else(absent)
    };
    let mut late = None;
    let (from, to) = match &copying.opens {
        Some(Opens::Source(fifo)) => (open(fifo, OFlags::RDONLY)?, come()?),
        Some(Opens::Target(fifo)) => {
            let (target, is_late) = open_output(fifo)?;
            late = is_late.then(|| fifo.clone());
            (come()?, target)
        }
        None => (come()?, come()?),
    };
    let mut copy = Copy::new(from, to, copying);
    copy.late = late;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write as _;

    fn copying(opens: Option<Opens>) -> Copying {
        Copying {
            splices: true,
            opens,
            ..Copying::default()
        }
    }

    fn fifo(directory: &tempfile::TempDir) -> PathBuf {
        let fifo = directory.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        fifo
    }

    fn pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = io::pipe().unwrap();
        (reader.into(), writer.into())
    }

    #[test]
    fn a_stream_is_told_of_once_at_its_end_and_never_when_it_was_dropped() {
        let mut copier = Copier::default();
        let (kept, kept_end) = pipe();
        let (dropped, _dropped_end) = pipe();
        for (key, from) in [("c/p//out", kept), ("c/p/x/out", dropped)] {
            copier.add(key.to_owned(), copying(None), vec![from, pipe().1]);
        }
        copier.drop_below("c/p/x/");
        assert_eq!(copier.keys().collect::<Vec<_>>(), ["c/p//out"]);
        let [(number, ..)] = copier.polled().collect::<Vec<_>>()[..] else {
            panic!("not one stream");
        };
        drop(kept_end);
        assert_eq!(copier.proceed(number).as_deref(), Some("c/p//out"));
        assert_eq!(copier.proceed(number), None);
        assert_eq!((copier.keys().count(), copier.wake()), (0, None));
    }

    #[test]
    fn the_reader_of_a_stream_that_is_made_again_sees_no_end_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = fifo(&directory);
        let mut copier = Copier::default();
        let add = |copier: &mut Copier, path: &Path| {
            let copying = Copying {
                held: true,
                ..copying(Some(Opens::Target(path.to_owned())))
            };
            let (source, end) = pipe();
            let over = copier.add("c/p//out".to_owned(), copying, vec![source]);
            (over, File::from(end))
        };
        let (_, end) = add(&mut copier, &fifo);
        let reading = fifo.clone();
        let reader = std::thread::spawn(move || std::fs::read(reading).unwrap());
        // Its creation ends before it is taken back.
        drop(end);
        assert_eq!(copier.polled().count(), 0, "a held stream's end is noticed");
        copier.take_back("c/");
        copier.drop_below("c/");
        assert_eq!(copier.keys().count(), 0);
        assert!(copier.wake().is_some(), "for ever");
        let (_, mut end) = add(&mut copier, &fifo);
        assert!(copier.taken_back.is_empty());
        end.write_all(b"all").unwrap();
        drop(end);
        copier.release("c/p//");
        while copier.proceed(1).is_none() && copier.look(Instant::now()).is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(reader.join().unwrap(), b"all");
        let (over, _) = add(&mut copier, &directory.path().join("no/such"));
        assert_eq!(over.as_deref(), Some("c/p//out"));
    }

    #[test]
    fn what_a_creation_that_failed_has_said_is_heard() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = fifo(&directory);
        let reading = fifo.clone();
        let reader = std::thread::spawn(move || std::fs::read(reading).unwrap());
        let there = loop {
            if let Ok(writer) = open_writer(&fifo) {
                break writer;
            }
            std::thread::yield_now();
        };
        let mut copier = Copier::default();
        let copying = Copying {
            held: true,
            ..copying(Some(Opens::Target(fifo)))
        };
        let (source, end) = pipe();
        copier.add("c/p//out".to_owned(), copying, vec![source]);
        drop(there);
        File::from(end).write_all(b"no such program").unwrap();
        copier.drop_below("c/");
        assert_eq!(reader.join().unwrap(), b"no such program");
    }

    #[test]
    fn who_writes_to_a_stream_that_is_made_again_sees_no_end_and_is_heard_whole() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = fifo(&directory);
        let mut copier = Copier::default();
        let add = |copier: &mut Copier| {
            let copying = Copying {
                held: true,
                ..copying(Some(Opens::Source(fifo.clone())))
            };
            let (end, target) = pipe();
            assert_eq!(
                copier.add("c/p//in".to_owned(), copying, vec![target]),
                None
            );
            File::from(end)
        };
        let first = add(&mut copier);
        let mut client = File::options().write(true).open(&fifo).unwrap();
        client.write_all(b"typed ").unwrap();
        assert_eq!(copier.polled().count(), 0, "a held stream is moved");
        copier.take_back("c/");
        drop(first);
        client.write_all(b"early").unwrap();
        let end = add(&mut copier);
        drop(client);
        copier.release("c/p//");
        assert_eq!(copier.polled().count(), 1);
        assert_eq!(copier.proceed(1).as_deref(), Some("c/p//in"));
        assert_eq!(io::read_to_string(end).unwrap(), "typed early");
    }

    #[test]
    fn a_reader_that_comes_after_the_end_of_a_silent_output_sees_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = fifo(&directory);
        let mut copier = Copier::default();
        let (silent, end) = pipe();
        let copying = copying(Some(Opens::Target(fifo.clone())));
        copier.add("out".into(), copying, vec![silent]);
        drop(end);
        assert_eq!(copier.proceed(0).as_deref(), Some("out"));
        let reading = fifo.clone();
        let reader = std::thread::spawn(move || std::fs::read(reading).unwrap());
        while !reader.is_finished() {
            let wake = copier.wake().expect("readers are looked for");
            std::thread::sleep(wake.saturating_duration_since(Instant::now()));
            assert!(copier.look(Instant::now()).is_empty());
        }
        assert!(reader.join().unwrap().is_empty());
        std::fs::remove_file(fifo).unwrap();
        copier.look(Instant::now() + PAUSE);
        assert_eq!(copier.wake(), None, "a fifo that is gone is looked for");
    }
}
