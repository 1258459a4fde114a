//! One stream: what can be moved from its source to its target without waiting, and what is then
//! to be waited for.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use super::store::Store;
use crate::supervisor::message::{Copying, Level, Opens};

/// Most bytes moved by one splice: the default capacity of a pipe.
const SPLICE: usize = 64 * 1024;
/// Buffer of the copies that cannot splice; a terminal delivers 4 KiB at most.
const BUFFER: usize = 4096;
/// Most moves until it is the others' turn.
pub(super) const MOVES: usize = 16;
/// How long the last of an output waits for its reader.
const UNREAD: Duration = Duration::from_secs(3);
/// First and longest pause between looks whether a reader has come.
const LOOKS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// A stream that is being copied.
#[derive(Debug)]
pub(super) struct Copy {
    from: OwnedFd,
    to: OwnedFd,
    /// Both are pipes.
    splices: bool,
    /// Which of them is a client's fifo.
    fifo: Option<Side>,
    /// That, if its reader had not come yet when it was opened.
    pub(super) late: Option<PathBuf>,
    /// Nothing is moved yet.
    pub(super) held: bool,
    /// The stream ends with what its source holds.
    closing: bool,
    /// Read, and not written yet.
    rest: Vec<u8>,
    /// What its reader has not taken is stored.
    store: Option<Box<Store>>,
    state: State,
}

#[derive(Debug)]
enum State {
    Waits(Wants),
    /// All is written; a reader of the fifo may come until then.
    Unread {
        until: Option<Instant>,
        next: Instant,
        pause: Duration,
    },
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}

/// What is to be waited for: bytes at the source, room at the target.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wants {
    pub(super) source: bool,
    pub(super) target: bool,
}

impl From<Side> for Wants {
    fn from(side: Side) -> Wants {
        Wants {
            source: side == Side::Source,
            target: side == Side::Target,
        }
    }
}

enum Moved {
    Some,
    End,
    Blocked(Side),
}

impl Copy {
    /// A stream from the one descriptor to the other, both non-blocking unless they are files.
    pub(super) fn new(from: OwnedFd, to: OwnedFd, copying: Copying) -> Self {
        Self {
            from,
            to,
            splices: copying.splices,
            fifo: copying.opens.map(|opens| match opens {
                Opens::Source(_) => Side::Source,
                Opens::Target(_) => Side::Target,
            }),
            late: None,
            held: copying.held,
            closing: false,
            rest: Vec::new(),
            store: copying.storing.map(Store::new).map(Box::new),
            // A fifo without a writer yet reads as if it were at its end; poll knows better.
            state: State::Waits(Side::Source.into()),
        }
    }

    /// What to poll.
    pub(super) fn polled(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let wants = match self.state {
            State::Waits(wants) if !self.held => Some(wants),
            _ => None,
        };
        let source = (self.from.as_fd(), PollFlags::IN);
        let target = (self.to.as_fd(), PollFlags::OUT);
        wants.into_iter().flat_map(move |wants| {
            let source = wants.source.then_some(source);
            source.into_iter().chain(wants.target.then_some(target))
        })
    }

    /// When to call [`Copy::look`].
    pub(super) fn wake(&self) -> Option<Instant> {
        match self.state {
            State::Unread { next, .. } => Some(next),
            State::Waits(_) | State::Over => None,
        }
    }

    /// True when nothing is left to be done.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// The source, which is a terminal's master if that is copied from.
    pub(super) fn source(&self) -> BorrowedFd<'_> {
        self.from.as_fd()
    }

    /// The client's fifo, which is left of a stream that nobody copies any more.
    pub(super) fn into_fifo(self) -> Option<OwnedFd> {
        self.fifo.map(|side| match side {
            Side::Source => self.from,
            Side::Target => self.to,
        })
    }

    /// Moves what waits in an output that was held; for the last time.
    pub(super) fn give_last(mut self) -> io::Result<()> {
        if std::mem::take(&mut self.held) && self.awaits_reader() {
            return self.proceed(Instant::now());
        }
        Ok(())
    }

    fn awaits_reader(&self) -> bool {
        self.fifo == Some(Side::Target)
    }

    /// What waits in it.
    pub(super) fn level(&self) -> Level {
        let is_pipe = self.splices || self.awaits_reader();
        let waiting = |fd: &OwnedFd| rustix::io::ioctl_fionread(fd).ok();
        Level {
            unread: waiting(&self.from),
            untaken: is_pipe.then(|| waiting(&self.to)).flatten(),
        }
    }

    /// Ends the stream once what its source holds right now is through.
    pub(super) fn close(&mut self, now: Instant) -> io::Result<()> {
        self.closing = true;
        self.proceed(now)
    }

    /// Moves what can be moved; after an error the stream is over.
    pub(super) fn proceed(&mut self, now: Instant) -> io::Result<()> {
        if !matches!(self.state, State::Waits(_)) {
            return Ok(());
        }
        self.state = State::Over;
        let wants = match &mut self.store {
            Some(store) => store.exchange(self.from.as_fd(), self.to.as_fd())?,
            None => self.advance()?.map(Wants::from),
        };
        if let Some(wants) = wants {
            self.state = State::Waits(wants);
        } else if self.awaits_reader() {
            // What is stored waits as long as the container is there.
            self.state = State::Unread {
                until: self.store.is_none().then_some(now + UNREAD),
                next: now,
                pause: LOOKS.0,
            };
            return self.look(now);
        }
        Ok(())
    }

    /// Looks whether the last bytes have been read. A client may be slow to open its end of the
    /// fifo, and until then what that holds goes with our descriptor of it.
    pub(super) fn look(&mut self, now: Instant) -> io::Result<()> {
        let State::Unread { until, next, pause } = self.state else {
            return Ok(());
        };
        if now < next {
            return Ok(());
        }
        self.state = State::Over;
        if rustix::io::ioctl_fionread(&self.to)? == 0 {
            return Ok(());
        }
        if until.is_some_and(|until| now >= until) {
            let text = "its last bytes are still unread";
            return Err(io::Error::new(ErrorKind::TimedOut, text));
        }
        self.state = State::Unread {
            until,
            next: now + pause,
            pause: (pause * 2).min(LOOKS.1),
        };
        Ok(())
    }

    /// What is to be waited for, nothing at the end.
    fn advance(&mut self) -> io::Result<Option<Side>> {
        for _ in 0..MOVES {
            if self.closing && self.rest.is_empty() && rustix::io::ioctl_fionread(&self.from)? == 0
            {
                return Ok(None);
            }
            let moved = if self.splices {
                self.splice()
            } else {
                self.carry()
            };
            match moved? {
                Moved::Some => {}
                Moved::End => return Ok(None),
                Moved::Blocked(side) => return Ok(Some(side)),
            }
        }
        Ok(Some(Side::Source))
    }

    /// Moves bytes from pipe to pipe without copying them through this process.
    fn splice(&self) -> io::Result<Moved> {
        let (from, to) = (&self.from, &self.to);
        match rustix::pipe::splice(from, None, to, None, SPLICE, SpliceFlags::NONBLOCK) {
            Ok(0) => Ok(Moved::End),
            Ok(_) | Err(Errno::INTR) => Ok(Moved::Some),
            // One of the two would block: bytes waiting at the source tell that it is the target.
            Err(Errno::AGAIN) if rustix::io::ioctl_fionread(from)? > 0 => {
                Ok(Moved::Blocked(Side::Target))
            }
            Err(Errno::AGAIN) => Ok(Moved::Blocked(Side::Source)),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves bytes through a buffer. The end of a terminal is EIO.
    fn carry(&mut self) -> io::Result<Moved> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            return self.write(&rest);
        }
        let mut buffer = [0; BUFFER];
        match rustix::io::read(&self.from, &mut buffer) {
            Ok(0) | Err(Errno::IO) => Ok(Moved::End),
            Ok(read) => self.write(&buffer[..read]),
            Err(Errno::INTR) => Ok(Moved::Some),
            Err(Errno::AGAIN) => Ok(Moved::Blocked(Side::Source)),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<Moved> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.to, bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.rest = bytes.to_vec();
                    return Ok(Moved::Blocked(Side::Target));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Moved::Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, Timespec};
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    fn spliced() -> Copying {
        Copying {
            splices: true,
            ..Copying::default()
        }
    }

    fn carried() -> Copying {
        Copying::default()
    }

    fn pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        (reader.into(), writer.into())
    }

    fn watched(fd: OwnedFd) -> OwnedFd {
        rustix::io::ioctl_fionbio(&fd, true).unwrap();
        fd
    }

    fn blocking(fd: OwnedFd) -> File {
        rustix::io::ioctl_fionbio(&fd, false).unwrap();
        File::from(fd)
    }

    /// Copies until the stream is over.
    fn run(copy: &mut Copy) -> io::Result<()> {
        while !copy.is_over() {
            let polled = copy.polled();
            let mut polled: Vec<_> = polled
                .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags))
                .collect();
            if !polled.is_empty() {
                rustix::event::poll(&mut polled, None).unwrap();
                drop(polled);
                copy.proceed(Instant::now())?;
            } else if let Some(wake) = copy.wake() {
                std::thread::sleep(wake.saturating_duration_since(Instant::now()));
                copy.look(Instant::now())?;
            }
        }
        Ok(())
    }

    fn is_ready(copy: &Copy) -> bool {
        let (fd, flags) = copy.polled().next().unwrap();
        let mut polled = [PollFd::from_borrowed_fd(fd, flags)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut polled, Some(&now)).unwrap() > 0
    }

    #[test]
    fn more_than_a_pipe_holds_comes_through_in_order() {
        for copying in [spliced(), carried()] {
            let (source, feed) = pipe();
            let (drain, sink) = pipe();
            let sent: Vec<u8> = (0..2_000_000u32).map(|n| n as u8).collect();
            let expected = sent.clone();
            let writer = std::thread::spawn(move || File::from(feed).write_all(&sent).unwrap());
            let reader = std::thread::spawn(move || {
                let mut got = Vec::new();
                blocking(drain).read_to_end(&mut got).unwrap();
                got
            });
            run(&mut Copy::new(source, watched(sink), copying)).unwrap();
            writer.join().unwrap();
            assert!(reader.join().unwrap() == expected);
        }
    }

    #[test]
    fn a_file_gets_appended_to() {
        let mut file = tempfile::tempfile().unwrap();
        let (source, feed) = pipe();
        File::from(feed).write_all(b"two lines\nof text\n").unwrap();
        let target = file.try_clone().unwrap().into();
        run(&mut Copy::new(source, target, carried())).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "two lines\nof text\n");
    }

    #[test]
    fn a_stream_shows_what_waits_on_both_sides() {
        let (source, mut feed) = io::pipe().unwrap();
        let (_drain, mut sink) = io::pipe().unwrap();
        feed.write_all(b"abc").unwrap();
        sink.write_all(b"de").unwrap();
        let copy = Copy::new(source.into(), sink.into(), spliced());
        let level = copy.level();
        assert_eq!((level.unread, level.untaken), (Some(3), Some(2)));
        let copy = Copy::new(copy.from, tempfile::tempfile().unwrap().into(), carried());
        let level = copy.level();
        assert_eq!((level.unread, level.untaken), (Some(3), None));
    }

    #[test]
    fn a_full_target_is_waited_for_and_not_the_source() {
        let (source, feed) = pipe();
        let (_drain, sink) = pipe();
        let mut feed = File::from(feed);
        let mut copy = Copy::new(source, watched(sink), spliced());
        for _ in 0..2 {
            feed.write_all(&vec![0; 64 * 1024]).unwrap();
            copy.proceed(Instant::now()).unwrap();
        }
        assert!(
            !is_ready(&copy),
            "there is no room, and it is not waited for"
        );
    }

    #[test]
    fn a_fifo_stays_until_a_reader_has_come_or_nobody_believes_in_one() {
        let awaiting = || Copying {
            opens: Some(Opens::Target("/fifo".into())),
            ..spliced()
        };
        let (source, feed) = pipe();
        let (drain, sink) = pipe();
        File::from(feed).write_all(b"last words").unwrap();
        let mut copy = Copy::new(source, watched(sink), awaiting());
        copy.proceed(Instant::now()).unwrap();
        assert!(!copy.is_over(), "what nobody has read is gone");
        let late = copy.look(Instant::now() + UNREAD).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::TimedOut);

        let (source, feed) = pipe();
        File::from(feed).write_all(b" indeed").unwrap();
        let mut copy = Copy::new(source, copy.to, awaiting());
        // The fifo is open for reading here, too: nobody's leaving breaks it.
        let reader = drain.try_clone().unwrap();
        std::thread::spawn(move || blocking(reader).read_exact(&mut [0; 17]).unwrap());
        run(&mut copy).unwrap();
        drop(drain);
    }

    #[test]
    fn the_rest_of_a_pipe_is_moved_without_waiting_for_its_end() {
        let (source, feed) = pipe();
        let (drain, sink) = pipe();
        let mut feed = File::from(feed);
        feed.write_all(b"left over").unwrap();
        let mut copy = Copy::new(source, watched(sink), spliced());
        copy.close(Instant::now()).unwrap();
        assert!(copy.is_over());
        drop(copy);
        let mut text = String::new();
        blocking(drain).read_to_string(&mut text).unwrap();
        assert_eq!(text, "left over");
    }
}
