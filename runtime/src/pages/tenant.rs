//! One clone: its processes' faults are answered from its images, in one thread, until it ends.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Signal, pidfd_send_signal};

use super::guard::Ward;
use super::source::Images;
use super::space::Space;
use super::wire::{self, Kind};
use crate::error::{Error, Result};
use crate::sys::userfault::{self, Event, Mapping};
use crate::template::{HotRun, PAGE};

/// As much as is copied for one fault, if it lies together: what is near is needed soon.
const WINDOW: u64 = 16 * PAGE;
/// As much as is given unasked before somebody who waits is looked after.
const UNASKED: u64 = 32 * PAGE;
/// What CRIU says when all processes run.
const RESTORED: i32 = 0x5253_5446;
const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};
/// Waiting for events that the kernel has announced, before what they held up is tried again.
const SOON: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// A clone whose memory is served.
pub(super) struct Tenant {
    /// The launch that has asked for it, until that ends.
    caller: Option<OwnedFd>,
    /// What CRIU connects to, and its connection then.
    listener: Option<OwnedFd>,
    criu: Option<OwnedFd>,
    /// A process that CRIU has named, before its descriptor has come.
    named: Option<i32>,
    images: Images,
    processes: Vec<Process>,
    /// A descriptor of init.
    init: Option<OwnedFd>,
    ward: Ward,
}

/// One address space.
struct Process {
    uffd: OwnedFd,
    space: Space,
    source: Arc<Mapping>,
    /// Pages that could not be given yet.
    waiting: VecDeque<u64>,
    /// Pages that it has not asked for yet, and will.
    hot: Option<Hot>,
    is_gone: bool,
}

/// What is left of a process's hot pages, and where they begin in their file.
struct Hot {
    source: Mapping,
    runs: VecDeque<HotRun>,
    at: u64,
}

/// Who has something to say.
enum Voice {
    Caller,
    Listener,
    Criu,
    Init,
    Process(usize),
}

impl Tenant {
    pub(super) fn new(caller: OwnedFd, listener: OwnedFd, images: Images, ward: Ward) -> Self {
        Self {
            caller: Some(caller),
            listener: Some(listener),
            criu: None,
            named: None,
            images,
            processes: Vec::new(),
            init: None,
            ward,
        }
    }

    /// Serves until the clone has ended, or its launch has failed. One that cannot be served is
    /// killed before its memory is let go of, which would read as zeroes then.
    pub(super) fn serve(mut self) -> Result<()> {
        let served = self.attend();
        if let (Err(_), Some(init)) = (&served, &self.init) {
            // It may have ended by itself.
            let _ = pidfd_send_signal(init, Signal::KILL);
            let _ = poll(&mut [PollFd::new(init, PollFlags::IN)], None);
        }
        served
    }

    fn attend(&mut self) -> Result<()> {
        loop {
            for voice in self.listen()? {
                match voice {
                    Voice::Init => return Ok(()),
                    Voice::Caller if !self.hear_caller()? => return Ok(()),
                    Voice::Caller => {}
                    Voice::Listener => self.hear_listener()?,
                    Voice::Criu => self.hear_criu()?,
                    Voice::Process(index) => self.hear_process(index)?,
                }
            }
            for process in &mut self.processes {
                process.give_waiting()?;
                if self.init.is_some() {
                    process.give_unasked()?;
                }
            }
            self.processes.retain(|process| !process.is_gone);
        }
    }

    /// Waits for somebody to say something.
    fn listen(&self) -> Result<Vec<Voice>> {
        let others = [
            (&self.caller, Voice::Caller),
            (&self.listener, Voice::Listener),
            (&self.criu, Voice::Criu),
            (&self.init, Voice::Init),
        ];
        let others = others
            .into_iter()
            .filter_map(|(file, voice)| Some((file.as_ref()?, voice)));
        let processes = self.processes.iter().enumerate();
        let processes = processes.map(|(index, one)| (&one.uffd, Voice::Process(index)));
        let (files, voices): (Vec<_>, Vec<_>) = processes.chain(others).unzip();
        let watched = files
            .into_iter()
            .map(|file| PollFd::new(file, PollFlags::IN));
        let mut all: Vec<_> = watched.collect();
        let is_waiting = self.processes.iter().any(|one| !one.waiting.is_empty());
        let is_hot = self.init.is_some() && self.processes.iter().any(|one| one.hot.is_some());
        let limit = match (is_waiting, is_hot) {
            (true, _) => Some(&SOON),
            (false, true) => Some(&NOW),
            (false, false) => None,
        };
        match poll(&mut all, limit) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(Error::os("poll")(errno)),
        }
        let heard = all.iter().map(|one| !one.revents().is_empty());
        let heard: Vec<bool> = heard.collect();
        let heard = voices.into_iter().zip(heard);
        Ok(heard
            .filter_map(|(voice, heard)| heard.then_some(voice))
            .collect())
    }

    /// Whether the clone goes on: its launch says that it runs, or goes away before.
    fn hear_caller(&mut self) -> Result<bool> {
        let Some(caller) = &self.caller else {
            return Ok(true);
        };
        let packet = wire::receive(caller).map_err(Error::os("listen to the launch"))?;
        let Some(packet) = packet else {
            self.caller = None;
            return Ok(self.init.is_some());
        };
        let (Kind::Started, Some(init)) = (packet.kind, packet.files.into_iter().next()) else {
            return Err(Error::os("listen to the launch")(Errno::PROTO));
        };
        let uffds = self.processes.iter().map(|process| process.uffd.as_fd());
        let all: Vec<_> = std::iter::once(init.as_fd()).chain(uffds).collect();
        self.ward.keep(&all)?;
        wire::send(caller, Kind::Done, 0, &[]).map_err(Error::os("answer the launch"))?;
        self.init = Some(init);
        Ok(true)
    }

    fn hear_listener(&mut self) -> Result<()> {
        let Some(listener) = self.listener.take() else {
            return Ok(());
        };
        let connection = accept_with(&listener, SocketFlags::CLOEXEC);
        self.criu = Some(connection.map_err(Error::os("accept criu"))?);
        Ok(())
    }

    /// CRIU names each process, and sends the descriptor of its memory with a byte that means
    /// nothing.
    fn hear_criu(&mut self) -> Result<()> {
        let Some(criu) = &self.criu else {
            return Ok(());
        };
        let mut bytes = [0; 4];
        let expected = if self.named.is_some() { 1 } else { 4 };
        let heard = wire::receive_into(criu.as_fd(), &mut bytes[..expected]);
        let (length, files) = heard.map_err(Error::os("listen to criu"))?;
        if length == 0 {
            self.criu = None;
            return Ok(());
        }
        if length != expected {
            return Err(Error::os("listen to criu")(Errno::PROTO));
        }
        match (self.named.take(), i32::from_ne_bytes(bytes)) {
            (Some(pid), _) => {
                let uffd = files.into_iter().next();
                let uffd = uffd.ok_or_else(|| Error::os("listen to criu")(Errno::PROTO))?;
                self.add(pid, uffd)?;
            }
            (None, RESTORED) => self.criu = None,
            // A zombie has no memory.
            (None, pid) => self.named = (pid > 0).then_some(pid),
        }
        Ok(())
    }

    fn add(&mut self, pid: i32, uffd: OwnedFd) -> Result<()> {
        let nonblocking = || {
            let flags = rustix::fs::fcntl_getfl(&uffd)?;
            rustix::fs::fcntl_setfl(&uffd, flags | rustix::fs::OFlags::NONBLOCK)
        };
        nonblocking().map_err(Error::os("fcntl"))?;
        let (source, space) = self.images.memory(pid)?;
        let hot = self.images.hot(pid)?;
        let mut process = Process::new(uffd, space, Arc::new(source));
        process.hot = hot.map(|(source, runs)| Hot {
            source,
            runs: runs.into(),
            at: 0,
        });
        self.processes.push(process);
        Ok(())
    }

    fn hear_process(&mut self, index: usize) -> Result<()> {
        let child = match self.processes.get_mut(index) {
            Some(process) => process.hear()?,
            None => None,
        };
        if let Some(child) = child {
            // Before anything of it is served: it depends on us like the others.
            if self.init.is_some() {
                self.ward.keep(&[child.uffd.as_fd()])?;
            }
            self.processes.push(child);
        }
        Ok(())
    }
}

impl Process {
    fn new(uffd: OwnedFd, space: Space, source: Arc<Mapping>) -> Self {
        Self {
            uffd,
            space,
            source,
            waiting: VecDeque::new(),
            hot: None,
            is_gone: false,
        }
    }

    /// Takes one event; a child that it made.
    fn hear(&mut self) -> Result<Option<Self>> {
        let event = match userfault::read_event(self.uffd.as_fd()) {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(None),
            Err(errno) => return Err(Error::os("read a page fault")(errno)),
        };
        match event {
            Event::Fault(address) => self.waiting.push_back(address & !(PAGE - 1)),
            Event::Fork(uffd) => {
                let (space, source) = (self.space.clone(), Arc::clone(&self.source));
                return Ok(Some(Self::new(uffd, space, source)));
            }
            Event::Remap { from, to, length } => self.space.remap(from, to, length),
            Event::Gone { start, end } => self.space.forget(start, end),
            Event::Other => {}
        }
        Ok(None)
    }

    /// Gives all pages that somebody waits for, as long as nothing is announced that comes first.
    fn give_waiting(&mut self) -> Result<()> {
        while let Some(&page) = self.waiting.front() {
            match give(self.uffd.as_fd(), page, (&self.space, &self.source)) {
                Ok(()) => drop(self.waiting.pop_front()),
                // An event has to be read before.
                Err(Errno::AGAIN) => break,
                Err(Errno::SRCH) => {
                    self.is_gone = true;
                    break;
                }
                Err(errno) => return Err(Error::os("give a page")(errno)),
            }
        }
        Ok(())
    }
}

impl Process {
    /// Gives some hot pages, if nothing is announced that comes first.
    fn give_unasked(&mut self) -> Result<()> {
        let Some(hot) = &mut self.hot else {
            return Ok(());
        };
        let Some(run) = hot.runs.front_mut() else {
            self.hot = None;
            return Ok(());
        };
        let length = (run.pages * PAGE).min(UNASKED);
        let is_there = |(stored, together)| stored == run.stored && together >= length;
        let given = if self.space.at(run.address).is_some_and(is_there) {
            userfault::copy(
                self.uffd.as_fd(),
                run.address,
                (&hot.source, hot.at, length),
            )
        } else {
            // It has been moved or forgotten.
            Ok(PAGE)
        };
        let done = match given {
            Ok(done) => done,
            // It was asked for.
            Err(Errno::EXIST) => PAGE,
            Err(Errno::AGAIN) => return Ok(()),
            // Whoever asks for them finds out why.
            Err(Errno::NOENT | Errno::FAULT) => length,
            Err(Errno::SRCH) => {
                self.is_gone = true;
                return Ok(());
            }
            Err(errno) => return Err(Error::os("give a page")(errno)),
        };
        hot.at += done;
        run.address += done;
        run.stored += done;
        run.pages -= done / PAGE;
        if run.pages == 0 {
            hot.runs.pop_front();
        }
        Ok(())
    }
}

/// Gives the page at `page`, and some that follow it.
fn give(
    uffd: BorrowedFd<'_>,
    page: u64,
    (space, source): (&Space, &Mapping),
) -> std::result::Result<(), Errno> {
    let given = match space.at(page) {
        None => userfault::zero(uffd, page, PAGE),
        Some((stored, together)) => {
            let length = together.min(WINDOW);
            match userfault::copy(uffd, page, (source, stored, length)) {
                // They are not all of one area, or the last of them cannot be read.
                Err(Errno::NOENT | Errno::FAULT) if length > PAGE => {
                    userfault::copy(uffd, page, (source, stored, PAGE))
                }
                given => given,
            }
        }
    };
    match given {
        // Of an area that is gone, who waited finds that out.
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::EXIST) => userfault::wake(uffd, page, PAGE),
        // It cannot be read: whoever needs it must not get anything else.
        Err(Errno::FAULT) => userfault::poison(uffd, page, PAGE).map(drop),
        Err(errno) => Err(errno),
    }
}
