//! CRIU's connection: it names each process whose memory it leaves alone, and hands it over.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use super::wire;
use crate::error::{Error, Result};

/// What CRIU says when all processes run.
const RESTORED: i32 = 0x5253_5446;

/// What CRIU connects to, and its connection then.
pub(super) struct Reception {
    listener: Option<OwnedFd>,
    criu: Option<OwnedFd>,
    /// A process that CRIU has named, before its descriptor has come.
    named: Option<i32>,
}

impl Reception {
    pub(super) fn new(listener: OwnedFd) -> Self {
        Self {
            listener: Some(listener),
            criu: None,
            named: None,
        }
    }

    /// What has something to say, as long as anything can come.
    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.listener.as_ref().or(self.criu.as_ref())
    }

    /// Hears what the socket has announced: a process, by its pid in its namespace, and its memory.
    pub(super) fn hear(&mut self) -> Result<Option<(i32, OwnedFd)>> {
        if let Some(listener) = self.listener.take() {
            let connection = accept_with(&listener, SocketFlags::CLOEXEC);
            self.criu = Some(connection.map_err(Error::os("accept criu"))?);
            return Ok(None);
        }
        let failed = |errno| Error::os("listen to criu")(errno);
        let Some(criu) = &self.criu else {
            return Ok(None);
        };
        let mut bytes = [0; 4];
        // With a descriptor comes a byte that means nothing.
        let expected = if self.named.is_some() { 1 } else { 4 };
        let (length, files) =
            wire::receive_into(criu.as_fd(), &mut bytes[..expected]).map_err(failed)?;
        if length == 0 {
            self.criu = None;
            return Ok(None);
        }
        if length != expected {
            return Err(failed(Errno::PROTO));
        }
        match (self.named.take(), i32::from_ne_bytes(bytes)) {
            (Some(pid), _) => {
                let uffd = files
                    .into_iter()
                    .next()
                    .ok_or_else(|| failed(Errno::PROTO))?;
                let nonblocking = || fcntl_setfl(&uffd, fcntl_getfl(&uffd)? | OFlags::NONBLOCK);
                nonblocking().map_err(Error::os("fcntl"))?;
                return Ok(Some((pid, uffd)));
            }
            (None, RESTORED) => self.criu = None,
            // A zombie has no memory.
            (None, pid) => self.named = (pid > 0).then_some(pid),
        }
        Ok(None)
    }
}
