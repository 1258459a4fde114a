//! Memory that is there before anything of a container goes on, put there by several threads.
//!
//! CRIU reads the pages of a process in one thread, and each of them costs a fault and a page of zeroes
//! first: nine tenths of a restore of hundreds of megabytes. Told that a server has them, it leaves them
//! out and hands over a descriptor for each process. When all else is there, the pages are copied
//! through these, and the descriptors closed: from then on this is memory like any other.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::num::NonZero;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::process::Process;
use super::reception::Reception;
use super::socket::Socket;
use super::source::Images;
use super::space::Space;
use crate::error::{Error, Result};
use crate::sys::userfault::{self, Mapping};
use crate::template::PAGE;

/// Less than this is not worth the threads.
const WORTH: u64 = 16 << 20;
/// What a thread copies at a time.
const PART: u64 = 2 << 20;
/// More threads than this wait for memory, and for each other.
const THREADS_MAX: usize = 4;
const IMAGE: (&str, &str) = ("mm-", ".img");

/// The pages of processes, by their pids in their namespace, and where they go.
type Memories = HashMap<i32, (Mapping, Space)>;

/// Who fills the memory of what CRIU restores.
pub(crate) struct Filler {
    /// A byte tells the thread to fill, and the end of it that nothing comes.
    command: Option<PipeWriter>,
    thread: Option<JoinHandle<Result<()>>>,
    /// What CRIU connects to, which nobody needs afterwards.
    _socket: Socket,
}

impl Filler {
    /// Stands by for a restore of `images` for which CRIU works in the directory `work`; none where
    /// CRIU had better do it: there is too little memory, some of it is not in these images, or this
    /// is not allowed.
    ///
    /// # Errors
    /// An image of pages is cut off, or the socket or the thread cannot be made.
    pub(crate) fn prepare(images: &Path, work: &Path) -> Result<Option<Self>> {
        let Some(memories) = memories(images)? else {
            return Ok(None);
        };
        if !userfault::is_allowed() {
            return Ok(None);
        }
        let Some((socket, listener)) = Socket::claim(work)? else {
            return Ok(None);
        };
        let (heard, command) = pipe().map_err(Error::os("pipe"))?;
        let filling = Filling {
            command: heard,
            reception: Reception::new(listener),
            memories,
            processes: Vec::new(),
        };
        let thread = thread::Builder::new()
            .spawn(|| filling.attend())
            .map_err(Error::os("start a thread"))?;
        Ok(Some(Self {
            command: Some(command),
            thread: Some(thread),
            _socket: socket,
        }))
    }

    /// Fills what CRIU has left out, when all else is there and no process has gone on.
    ///
    /// # Errors
    /// An image cannot be read, or a process has ended.
    pub(crate) fn finish(mut self) -> Result<()> {
        if let Some(mut command) = self.command.take() {
            // Whoever does not listen any more has a reason, which comes now.
            let _ = command.write_all(&[1]);
        }
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        let ended = self.thread.take().map(JoinHandle::join);
        ended.map_or(Ok(()), |ended| {
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        drop(self.command.take());
        // The restore has failed for a reason of its own.
        let _ = self.join();
    }
}

/// What can be left to us; none if that is too little, or not all of it is in these images.
fn memories(path: &Path) -> Result<Option<Memories>> {
    let directory = File::open(path).map_err(Error::file("open", path))?;
    let images = Images {
        directory: directory.into(),
        hot: false,
    };
    let mut memories = Memories::new();
    for entry in fs::read_dir(path).map_err(Error::file("read", path))? {
        let name = entry.map_err(Error::file("read", path))?.file_name();
        let name = name.to_str().and_then(|name| name.strip_prefix(IMAGE.0));
        let pid = name.and_then(|name| name.strip_suffix(IMAGE.1)?.parse().ok());
        let Some(pid) = pid else { continue };
        let Some(memory) = images.left_out(pid)? else {
            // CRIU finds out what is wrong with it, or where the rest is.
            return Ok(None);
        };
        memories.insert(pid, memory);
    }
    let spaces = memories.values().map(|(_, space)| space.size());
    Ok((spaces.sum::<u64>() >= WORTH).then_some(memories))
}

/// What the thread has.
struct Filling {
    command: PipeReader,
    reception: Reception,
    memories: Memories,
    processes: Vec<Process>,
}

impl Filling {
    /// Receives processes, and gives what is touched while they are made, until it is told to fill.
    fn attend(mut self) -> Result<()> {
        loop {
            let (told, announced, spoken) = self.listen()?;
            if spoken && let Some((pid, uffd)) = self.reception.hear()? {
                self.add(pid, uffd)?;
            }
            for index in announced {
                self.processes[index].hear()?;
            }
            for process in &mut self.processes {
                process.give_waiting()?;
            }
            if told {
                let mut byte = [0];
                let length = self.command.read(&mut byte);
                return match length.map_err(Error::os("read a pipe"))? {
                    0 => Ok(()),
                    _ => fill(&self.processes),
                };
            }
        }
    }

    /// Waits; whether it is told to fill, which processes have announced something, and whether CRIU
    /// has.
    fn listen(&self) -> Result<(bool, Vec<usize>, bool)> {
        let uffds = self.processes.iter().map(|process| process.uffd.as_fd());
        let others = [Some(self.command.as_fd()), self.socket()];
        let files = uffds.chain(others.into_iter().flatten());
        let mut all: Vec<_> = files
            .map(|file| PollFd::from_borrowed_fd(file, PollFlags::IN))
            .collect();
        rustix::io::retry_on_intr(|| poll(&mut all, None)).map_err(Error::os("poll"))?;
        let heard: Vec<_> = all.iter().map(|one| !one.revents().is_empty()).collect();
        let (processes, others) = heard.split_at(self.processes.len());
        let announced = processes.iter().zip(0..);
        let announced = announced.filter_map(|(heard, index)| heard.then_some(index));
        Ok((others[0], announced.collect(), others.get(1) == Some(&true)))
    }

    fn socket(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.reception.socket().map(OwnedFd::as_fd)
    }

    fn add(&mut self, pid: i32, uffd: OwnedFd) -> Result<()> {
        let memory = self.memories.remove(&pid);
        let (source, space) = memory.ok_or_else(|| {
            Error::Criu(format!(
                "it restores a process {pid} without an image of memory"
            ))
        })?;
        self.processes
            .push(Process::new(uffd, space, Arc::new(source)));
        Ok(())
    }
}

/// Pages that one thread copies.
struct Part<'a> {
    process: &'a Process,
    to: u64,
    from: u64,
    length: u64,
}

/// Copies all that is left of these processes' memory.
fn fill(processes: &[Process]) -> Result<()> {
    let parts: Vec<_> = processes.iter().flat_map(parts_of).collect();
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            part.copy().map_err(Error::os("fill memory"))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let helpers = 1..threads.min(THREADS_MAX).min(parts.len().max(1));
        let helpers: Vec<_> = helpers.map(|_| scope.spawn(work)).collect();
        let own = work();
        let joined = helpers.into_iter().map(|helper| {
            let ended = helper.join();
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        joined.fold(own, Result::and)
    })
}

fn parts_of(process: &Process) -> impl Iterator<Item = Part<'_>> {
    process.space.pieces().flat_map(move |(to, from, length)| {
        let begins = (0..length).step_by(PART as usize);
        begins.map(move |at| Part {
            process,
            to: to + at,
            from: from + at,
            length: PART.min(length - at),
        })
    })
}

impl Part<'_> {
    fn copy(&self) -> std::result::Result<(), Errno> {
        let (uffd, source) = (self.process.uffd.as_fd(), &self.process.source);
        source.populate(self.from, self.length);
        let (mut done, mut step) = (0, self.length);
        while done < self.length {
            let length = step.min(self.length - done);
            match userfault::copy(uffd, self.to + done, (source, self.from + done, length)) {
                Ok(copied) => {
                    done += copied;
                    step = self.length;
                }
                // It was touched while the process was made.
                Err(Errno::EXIST) => done += PAGE,
                Err(Errno::AGAIN) => {}
                // Not all of it is one area, or the end of it cannot be read: as far as it goes.
                Err(Errno::NOENT | Errno::FAULT) if length > PAGE => step = PAGE,
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}
