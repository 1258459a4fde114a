//! One clone: its processes' faults are answered from its images, in one thread, until it ends.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::guard::Ward;
use super::process::{Hot, Process};
use super::reception::Reception;
use super::source::Images;
use super::wire::{self, Kind};
use crate::error::{Error, Result};

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
    reception: Reception,
    images: Images,
    processes: Vec<Process>,
    /// A descriptor of init.
    init: Option<OwnedFd>,
    ward: Ward,
}

/// Who has something to say.
enum Voice {
    Caller,
    Criu,
    Init,
    Process(usize),
}

impl Tenant {
    pub(super) fn new(caller: OwnedFd, listener: OwnedFd, images: Images, ward: Ward) -> Self {
        Self {
            caller: Some(caller),
            reception: Reception::new(listener),
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
            (self.caller.as_ref(), Voice::Caller),
            (self.reception.socket(), Voice::Criu),
            (self.init.as_ref(), Voice::Init),
        ];
        let others = others
            .into_iter()
            .filter_map(|(file, voice)| Some((file?, voice)));
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

    fn hear_criu(&mut self) -> Result<()> {
        match self.reception.hear()? {
            Some((pid, uffd)) => self.add(pid, uffd),
            None => Ok(()),
        }
    }

    fn add(&mut self, pid: i32, uffd: OwnedFd) -> Result<()> {
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
