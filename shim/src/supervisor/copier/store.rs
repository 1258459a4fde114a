//! Output that its reader does not take at once is stored, in memory or in a file, within limits:
//! whoever writes it need not wait.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::backlog::Backlog;
use super::copy::{MOVES, Wants};
use super::spill::{Place, Spill};
use crate::io::overflow::Policy;
use crate::log;
use crate::supervisor::message::Storing;

/// Most bytes read at once.
const CHUNK: usize = 16 * 1024;

/// The output of one stream that its reader has not taken yet: what the file holds, then what is
/// in memory.
#[derive(Debug)]
pub(super) struct Store {
    policy: Policy,
    backlog: Backlog,
    place: Place,
    spill: Option<Spill>,
    /// The source has not come to its end.
    is_open: bool,
    /// The log says that the container waits.
    waits: bool,
}

impl Store {
    pub(super) fn new(storing: Storing) -> Store {
        let newline = if storing.is_terminal { "\r\n" } else { "\n" };
        let overflow = storing.overflow;
        Store {
            policy: overflow.policy,
            backlog: Backlog::new(overflow.buffer, newline),
            place: Place::new(storing.file, overflow.spill),
            spill: None,
            is_open: true,
            waits: false,
        }
    }

    /// Moves what can be moved from a pipe or terminal to fifo `to`: what is then to be waited for,
    /// nothing at the end.
    pub(super) fn exchange(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
    ) -> io::Result<Option<Wants>> {
        for _ in 0..MOVES {
            let flushed = !self.is_empty() && is_done(self.flush(to))?;
            let room = self.room();
            let filled = room > 0 && is_done(self.fill(from, room))?;
            if !flushed && !filled {
                break;
            }
        }
        let wants = Wants {
            source: self.room() > 0,
            target: !self.is_empty(),
        };
        Ok((wants.target || self.is_open).then_some(wants))
    }

    fn is_empty(&self) -> bool {
        self.spill.is_none() && self.backlog.is_empty()
    }

    /// How many bytes may come now. An empty store has room until the source's end.
    fn room(&mut self) -> usize {
        if !self.is_open {
            return 0;
        }
        if self.policy == Policy::Spill && self.spill.is_none() && self.backlog.room() == 0 {
            self.begin_to_spill();
        }
        let room = match &self.spill {
            _ if self.policy == Policy::Drop => CHUNK,
            None => self.backlog.room(),
            Some(spill) if self.backlog.is_empty() => self.place.room(spill),
            // The file takes no more, and order must be kept.
            Some(_) => 0,
        };
        if room == 0 && self.spill.is_some() && !self.waits {
            self.waits = true;
            let path = self.place.path().display();
            log::warn(format_args!("{path} is full: the container waits"));
        }
        room.min(CHUNK)
    }

    /// Adds as many bytes as there was room for.
    fn put(&mut self, bytes: &[u8]) {
        if self.policy == Policy::Drop {
            self.backlog.make_room(bytes.len());
        }
        self.backlog.push(bytes);
        self.pour();
    }

    fn begin_to_spill(&mut self) {
        match self.place.begin(self.backlog.front()) {
            Ok((spill, written)) => {
                self.backlog.taken(written);
                self.spill = Some(spill);
                self.pour();
            }
            Err(error) => {
                self.policy = Policy::Block;
                let path = self.place.path().display();
                log::error(format_args!("{path}: {error}: the container waits"));
            }
        }
    }

    /// Moves what is in memory to the file, if there is one.
    fn pour(&mut self) {
        let Some(spill) = &mut self.spill else {
            return;
        };
        while !self.backlog.is_empty() {
            let front = self.backlog.front();
            let length = front.len().min(self.place.room(spill));
            match spill.append(&front[..length]) {
                Ok(0) => return,
                Ok(written) => self.backlog.taken(written),
                Err(error) => {
                    let path = self.place.path().display();
                    log::error(format_args!("write {path}: {error}"));
                    return;
                }
            }
        }
    }

    /// Hands on to the reader what comes next.
    fn flush(&mut self, to: impl AsFd) -> Result<(), Errno> {
        if let Some(spill) = &self.spill {
            if spill.replay(to)? == 0 {
                self.spill
                    .take()
                    .into_iter()
                    .for_each(|it| self.place.end(it));
                self.waits = false;
            }
            return Ok(());
        }
        if let Some(note) = self.backlog.note() {
            // A pipe takes a line whole or not at all.
            rustix::io::write(&to, note.as_bytes())?;
            self.backlog.noted();
        }
        let written = rustix::io::write(&to, self.backlog.front())?;
        self.backlog.taken(written);
        Ok(())
    }

    /// Takes what a source has ready.
    fn fill(&mut self, from: impl AsFd, room: usize) -> Result<(), Errno> {
        let mut chunk = [0; CHUNK];
        match rustix::io::read(from, &mut chunk[..room]) {
            // EIO is the end of a terminal.
            Ok(0) | Err(Errno::IO) => self.is_open = false,
            Ok(read) => self.put(&chunk[..read]),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// False if a step would have to wait.
fn is_done(step: Result<(), Errno>) -> io::Result<bool> {
    match step {
        Ok(()) | Err(Errno::INTR) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::overflow::Overflow;
    use rustix::event::{PollFd, PollFlags};
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::path::PathBuf;
    use std::thread::JoinHandle;

    const KIB: usize = 1024;

    /// A container that writes into a pipe, the fifo that nobody reads yet, and what is between.
    struct World {
        directory: tempfile::TempDir,
        store: Store,
        source: OwnedFd,
        container: JoinHandle<()>,
        fifo: File,
        reader: File,
    }

    impl World {
        fn new(policy: Policy, buffer: usize, spill: usize, sent: &[u8]) -> World {
            let directory = tempfile::tempdir().unwrap();
            let (source, mut feed) = io::pipe().unwrap();
            let (reader, fifo) = io::pipe().unwrap();
            for fd in [source.as_fd(), fifo.as_fd()] {
                rustix::io::ioctl_fionbio(fd, true).unwrap();
            }
            let storing = Storing {
                overflow: Overflow {
                    policy,
                    buffer,
                    spill: spill as u64,
                },
                file: directory.path().join("out.spill"),
                is_terminal: false,
            };
            let sent = sent.to_vec();
            World {
                directory,
                store: Store::new(storing),
                source: source.into(),
                container: std::thread::spawn(move || feed.write_all(&sent).unwrap()),
                fifo: File::from(OwnedFd::from(fifo)),
                reader: File::from(OwnedFd::from(reader)),
            }
        }

        fn file(&self) -> PathBuf {
            self.directory.path().join("out.spill")
        }

        fn spilled(&self) -> Option<u64> {
            self.file().metadata().ok().map(|metadata| metadata.len())
        }

        fn exchange(&mut self) -> Option<Wants> {
            let moved = self.store.exchange(self.source.as_fd(), self.fifo.as_fd());
            moved.unwrap()
        }

        /// Goes on while nobody reads, until `condition`.
        fn run_until(&mut self, condition: impl Fn(&World) -> bool) {
            while !condition(self) {
                assert!(self.exchange().is_some(), "copied without a reader");
                std::thread::yield_now();
            }
        }

        /// Takes everything that comes, from now to the end.
        fn read_late(mut self) -> Vec<u8> {
            let mut reader = self.reader.try_clone().unwrap();
            let reading = std::thread::spawn(move || {
                let mut got = Vec::new();
                reader.read_to_end(&mut got).unwrap();
                got
            });
            while let Some(wants) = self.exchange() {
                let mut polled = Vec::new();
                for (fd, flags, wanted) in [
                    (self.source.as_fd(), PollFlags::IN, wants.source),
                    (self.fifo.as_fd(), PollFlags::OUT, wants.target),
                ] {
                    polled.extend(wanted.then(|| PollFd::from_borrowed_fd(fd, flags)));
                }
                rustix::event::poll(&mut polled, None).unwrap();
            }
            assert_eq!(self.spilled(), None);
            self.container.join().unwrap();
            drop(self.fifo);
            reading.join().unwrap()
        }
    }

    /// Numbered lines, `length` bytes of them.
    fn lines(length: usize) -> Vec<u8> {
        let lines = (0..).flat_map(|number| format!("line {number:06}\n").into_bytes());
        lines.take(length).collect()
    }

    fn has_written(world: &World) -> bool {
        world.container.is_finished()
    }

    #[test]
    fn nobody_waits_with_drop_and_the_reader_gets_the_newest_and_is_told_of_the_rest() {
        let sent = lines(KIB * KIB);
        let mut world = World::new(Policy::Drop, 64 * KIB, 64 * KIB, &sent);
        world.run_until(has_written);
        let text = String::from_utf8(world.read_late()).unwrap();
        let (notes, kept): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| line.starts_with("xebec: "));
        let told = notes.iter().map(|note| {
            let (number, rest) = note["xebec: ".len()..].split_once(' ').unwrap();
            assert_eq!(rest, "bytes of output dropped, nobody read them");
            number.parse::<usize>().unwrap()
        });
        let notes_length: usize = notes.iter().map(|note| note.len() + 1).sum();
        let lost = told.sum::<usize>() + text.len() - notes_length;
        // One newline more, if the fifo had been full in the middle of a line.
        assert!(
            (sent.len()..=sent.len() + notes.len()).contains(&lost),
            "{notes:?}"
        );
        assert!(lost > 512 * KIB && kept[0] == "line 000000", "{notes:?}");
        let newest = &sent[sent.len() - 40 * KIB..];
        assert!(text.as_bytes().ends_with(newest), "the newest are missing");
    }

    #[test]
    fn every_byte_comes_late_and_in_order_from_memory_or_a_file() {
        for (policy, buffer, spills) in [
            (Policy::Block, 1024 * KIB, false),
            (Policy::Spill, 64 * KIB, true),
            (Policy::Spill, 1024 * KIB, false),
        ] {
            let sent = lines(800 * KIB);
            let mut world = World::new(policy, buffer, 1024 * KIB, &sent);
            world.run_until(has_written);
            assert_eq!(world.spilled() > Some(300 * 1024), spills, "{policy:?}");
            let got = world.read_late();
            assert!(got == sent, "{policy:?}: {} bytes", got.len());
        }
    }

    #[test]
    fn a_full_file_makes_the_container_wait_and_loses_nothing() {
        let sent = lines(KIB * KIB);
        let mut world = World::new(Policy::Spill, 64 * KIB, 128 * KIB, &sent);
        world.run_until(|world| world.spilled() == Some(128 * 1024));
        let wants = world.exchange().unwrap();
        assert!(wants.target, "nobody waits for the reader");
        assert!(!has_written(&world), "there was no room for all");
        assert!(world.read_late() == sent);
    }

    #[test]
    fn a_file_that_cannot_be_made_makes_the_container_wait() {
        let sent = lines(KIB * KIB);
        let mut world = World::new(Policy::Spill, 64 * KIB, 128 * KIB, &sent);
        std::fs::create_dir(world.file()).unwrap();
        world.run_until(|world| world.store.policy == Policy::Block);
        assert!(!has_written(&world), "there was no room for all");
        let file = world.file();
        std::fs::remove_dir(file).unwrap();
        assert!(world.read_late() == sent);
    }
}
