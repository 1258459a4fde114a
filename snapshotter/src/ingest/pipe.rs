//! What is unpacked, on its way from one thread to the other in a few buffers that go round.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::unpack::Fault;
use crate::digest::{Digest, Hasher};

/// Bytes of a buffer: small enough to stay in the processor's cache between the threads.
const BUFFER: usize = 256 << 10;
/// Buffers that go round.
const BUFFERS: usize = 6;
/// Bytes that deflate data may refer back to.
const WINDOW: usize = 32 << 10;

/// A buffer and how much of it is filled.
type Filled = (Vec<u8>, usize);

/// The end that is written to.
pub(super) struct Outlet {
    buffer: Vec<u8>,
    filled: usize,
    /// The last bytes of the buffers before this one.
    tail: Vec<u8>,
    full: SyncSender<Filled>,
    empty: Receiver<Vec<u8>>,
}

/// The end that is read from.
pub(crate) struct Inlet {
    buffer: Vec<u8>,
    filled: usize,
    at: usize,
    full: Receiver<Filled>,
    empty: Sender<Vec<u8>>,
    hasher: Hasher,
}

pub(super) fn pipe() -> (Outlet, Inlet) {
    let (full, filled) = sync_channel(BUFFERS);
    let (returned, empty) = channel();
    for _ in 1..BUFFERS {
        // Both ends are in this function.
        let _ = returned.send(vec![0; BUFFER]);
    }
    let outlet = Outlet {
        buffer: vec![0; BUFFER],
        filled: 0,
        tail: Vec::new(),
        full,
        empty,
    };
    let inlet = Inlet {
        buffer: Vec::new(),
        filled: 0,
        at: 0,
        full: filled,
        empty: returned,
        hasher: Hasher::new(),
    };
    (outlet, inlet)
}

impl Outlet {
    /// Where the next bytes go; never empty.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled..]
    }

    /// Says that `count` bytes of the room are filled.
    pub(super) fn wrote(&mut self, count: usize) -> Result<(), Fault> {
        self.filled += count;
        if self.filled < self.buffer.len() {
            return Ok(());
        }
        self.tail.clear();
        self.tail
            .extend_from_slice(&self.buffer[self.buffer.len() - WINDOW..]);
        let next = self.empty.recv().map_err(|_| Fault::Closed)?;
        self.ship(next)
    }

    /// Writes all of `bytes`.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            let room = self.room();
            let count = bytes.len().min(room.len());
            room[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            self.wrote(count)?;
        }
        Ok(())
    }

    /// Sends what is there without waiting for more.
    pub(super) fn flush(&mut self) -> Result<(), Fault> {
        if self.filled == 0 {
            return Ok(());
        }
        self.ship(Vec::new())
    }

    fn ship(&mut self, next: Vec<u8>) -> Result<(), Fault> {
        let full = (std::mem::replace(&mut self.buffer, next), self.filled);
        self.filled = 0;
        self.full.send(full).map_err(|_| Fault::Closed)
    }

    /// The last bytes written, at most `len` and 32 KiB.
    pub(super) fn last(&self, len: u64) -> Vec<u8> {
        let len = len.min(WINDOW as u64) as usize;
        let here = len.min(self.filled);
        let before = (len - here).min(self.tail.len());
        let tail = &self.tail[self.tail.len() - before..];
        [tail, &self.buffer[self.filled - here..self.filled]].concat()
    }
}

impl Inlet {
    /// The digest of all that has been received.
    pub(super) fn digest(self) -> Digest {
        self.hasher.finish()
    }
}

impl Read for Inlet {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.filled {
            let Ok((next, filled)) = self.full.recv() else {
                return Ok(0);
            };
            let used = std::mem::replace(&mut self.buffer, next);
            (self.at, self.filled) = (0, filled);
            self.hasher.update(&self.buffer[..filled]);
            if !used.is_empty() {
                // The writer may have ended; it then needs no buffers.
                let _ = self.empty.send(used);
            }
        }
        let count = buffer.len().min(self.filled - self.at);
        buffer[..count].copy_from_slice(&self.buffer[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
