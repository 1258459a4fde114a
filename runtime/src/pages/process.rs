//! One address space: its faults are answered from an image, and it is followed when it changes.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::space::Space;
use crate::error::{Error, Result};
use crate::sys::userfault::{self, Event, Mapping};
use crate::template::{HotRun, PAGE};

/// As much as is copied for one fault, if it lies together: what is near is needed soon.
const WINDOW: u64 = 16 * PAGE;
/// As much as is given unasked before somebody who waits is looked after.
const UNASKED: u64 = 32 * PAGE;

/// One address space.
pub(super) struct Process {
    pub(super) uffd: OwnedFd,
    pub(super) space: Space,
    pub(super) source: Arc<Mapping>,
    /// Pages that could not be given yet.
    pub(super) waiting: VecDeque<u64>,
    /// Pages that it has not asked for yet, and will.
    pub(super) hot: Option<Hot>,
    pub(super) is_gone: bool,
}

/// What is left of a process's hot pages, and where they begin in their file.
pub(super) struct Hot {
    pub(super) source: Mapping,
    pub(super) runs: VecDeque<HotRun>,
    pub(super) at: u64,
}

impl Process {
    pub(super) fn new(uffd: OwnedFd, space: Space, source: Arc<Mapping>) -> Self {
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
    pub(super) fn hear(&mut self) -> Result<Option<Self>> {
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
    pub(super) fn give_waiting(&mut self) -> Result<()> {
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

    /// Gives some hot pages, if nothing is announced that comes first.
    pub(super) fn give_unasked(&mut self) -> Result<()> {
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
