//! A non-blocking stream of ttrpc frames, both for containerd's connections to the shim and for
//! the shim's own to containerd.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use crate::ttrpc::frame::Splitter;

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// One connection.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) socket: UnixStream,
    input: Splitter,
    output: Vec<u8>,
}

/// What a read brought.
#[derive(Debug)]
pub(super) struct Arrived {
    /// Complete frames.
    pub(super) frames: Vec<Vec<u8>>,
    /// The other side has closed the connection.
    pub(super) ended: bool,
}

impl Stream {
    /// Takes over a connected, non-blocking socket.
    pub(super) fn new(socket: UnixStream) -> Stream {
        Stream {
            socket,
            input: Splitter::default(),
            output: Vec::new(),
        }
    }

    /// Reads once.
    pub(super) fn read(&mut self) -> io::Result<Arrived> {
        let mut chunk = [0; CHUNK];
        let read = match self.socket.read(&mut chunk) {
            Err(error) if is_transient(&error) => {
                return Ok(Arrived {
                    frames: Vec::new(),
                    ended: false,
                });
            }
            result => result?,
        };
        Ok(Arrived {
            frames: self.input.feed(&chunk[..read]),
            ended: read == 0,
        })
    }

    /// Sends a frame, or keeps it until there is room.
    pub(super) fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.output.extend_from_slice(frame);
        self.flush()
    }

    /// Sends what there is room for.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.output.len() {
            match self.socket.write(&self.output[sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(more) => sent += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.output.drain(..sent);
        self.output.shrink_to(CHUNK);
        Ok(())
    }

    /// True while something waits for room.
    pub(super) fn is_full(&self) -> bool {
        !self.output.is_empty()
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
