//! What becomes of clones when their server is killed: memory without a server reads as zeroes, so
//! they end first.
//!
//! The guard is the server's parent. It holds all descriptors that the server does, so that whoever
//! touches a missing page keeps waiting until the clone has been killed.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Signal, pidfd_send_signal};

use super::wire::{self, FDS_MAX, Kind};
use crate::error::{Error, Result};

/// A server's side: its line to the guard.
#[derive(Clone, Debug)]
pub(super) struct Line(Arc<Mutex<OwnedFd>>);

/// One clone of it.
#[derive(Debug)]
pub(super) struct Ward {
    line: Line,
    number: u64,
}

impl Line {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(Arc::new(Mutex::new(socket)))
    }

    pub(super) fn ward(&self, number: u64) -> Ward {
        let line = self.clone();
        Ward { line, number }
    }

    fn tell(&self, kind: Kind, number: u64, files: &[BorrowedFd<'_>]) -> Result<()> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(&socket, kind, number, files).map_err(Error::os("speak to the guard"))
    }
}

impl Ward {
    /// Has the guard hold these, of which the very first is init's.
    pub(super) fn keep(&self, files: &[BorrowedFd<'_>]) -> Result<()> {
        files
            .chunks(FDS_MAX)
            .try_for_each(|some| self.line.tell(Kind::Keep, self.number, some))
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        // Without a guard there is nobody who would hold anything.
        let _ = self.line.tell(Kind::Ended, self.number, &[]);
    }
}

/// Holds what it is told to until the server has closed its line; then kills what still depends on
/// it.
pub(super) fn watch(line: &OwnedFd) {
    let mut held: HashMap<u64, Vec<OwnedFd>> = HashMap::new();
    while let Ok(Some(packet)) = wire::receive(line) {
        match packet.kind {
            Kind::Keep => held.entry(packet.number).or_default().extend(packet.files),
            Kind::Ended => drop(held.remove(&packet.number)),
            Kind::Clone | Kind::Started | Kind::Done => {}
        }
    }
    for files in held.values() {
        if let Some(init) = files.first() {
            // One that has ended already needs it no more.
            let _ = pidfd_send_signal(init, Signal::KILL);
        }
    }
}
