//! `binary://` loggers: a program that reads the container's output itself.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use crate::error::{Context, Error, Result};
use crate::log;
use crate::sys;
use crate::task::exits::{self, Reaper};

/// How long a logger may take to say that it is ready.
const READY: Duration = Duration::from_secs(10);
/// How long a logger may take to end after SIGTERM.
const TERM: Duration = Duration::from_secs(12);

/// A running logging program.
#[derive(Debug)]
pub(super) struct Logger {
    pidfd: AsyncFd<OwnedFd>,
    pid: i32,
    reaper: Rc<Reaper>,
}

/// Starts `program` with the reading ends of stdout and stderr as descriptors 3 and 4, and
/// waits until it closes descriptor 5.
pub(super) async fn start(
    program: &Path,
    arguments: &[String],
    identity: (&str, &str),
    outputs: [OwnedFd; 2],
    reaper: &Rc<Reaper>,
) -> Result<Logger> {
    let what = || format!("start logger {}", program.display());
    let (ready, ready_end) = io::pipe().context(what)?;
    let (namespace, id) = identity;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("CONTAINER_ID", id)
        .env("CONTAINER_NAMESPACE", namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let [stdout, stderr] = outputs;
    sys::pass_fds(&mut command, vec![stdout, stderr, ready_end.into()]);
    let child = command.spawn().context(what)?;
    // The command owns the descriptors that the logger now has.
    drop(command);
    let pid = child.id() as i32;
    reaper.claim(pid);
    let logger = Logger {
        pidfd: exits::open(pid).context(what)?,
        pid,
        reaper: Rc::clone(reaper),
    };
    let ready = super::watched(ready.into()).context(what)?;
    let closed = async { ready.readable().await.map(drop) };
    let Ok(closed) = tokio::time::timeout(READY, closed).await else {
        logger.end(Duration::ZERO).await;
        let text = format!("logger {} was not ready in {READY:?}", program.display());
        return Err(Error::FailedPrecondition(text));
    };
    closed.context(what)?;
    Ok(logger)
}

impl Logger {
    /// Waits for the logger to see the end of its input, then makes it stop.
    pub(super) async fn end(self, patience: Duration) {
        let exited = exits::wait(&self.pidfd);
        tokio::pin!(exited);
        for (limit, signal) in [(patience, libc::SIGTERM), (TERM, libc::SIGKILL)] {
            if tokio::time::timeout(limit, &mut exited).await.is_ok() {
                return;
            }
            if let Err(error) = sys::send_signal(&self.pidfd, signal) {
                log::debug(format_args!("signal logger {}: {error}", self.pid));
            }
        }
        exited.await;
    }
}

impl Drop for Logger {
    /// Nobody waits for it any more: if it still runs it is collected as an orphan.
    fn drop(&mut self) {
        self.reaper.release(self.pid);
    }
}
