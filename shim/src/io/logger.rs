//! `binary://` loggers: a program that reads the container's output itself. One that dies while
//! the container still writes, or before it has read everything, is started again.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::task::{JoinHandle, spawn_local};

use super::Setting;
use super::keep::Keep;
use crate::error::{Context, Error, Result};
use crate::link::Link;
use crate::log;
use crate::supervisor::message::{Change, Request};
use crate::sys;
use crate::task::exits::Exits;

/// How long a logger may take to say that it is ready.
const READY: Duration = Duration::from_secs(10);
/// How long a logger may take to end after SIGTERM.
const TERM: Duration = Duration::from_secs(12);
/// Pauses before a logger that died is started again; one that lived longer than the longest
/// begins anew.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The pid of a logger that is no process at the moment.
const NONE: i32 = 0;

/// How to start a logger.
#[derive(Debug)]
pub(super) struct Plan {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    keep: Keep,
    link: Arc<Link>,
    exits: Rc<Exits>,
}

/// A logging program, whichever process it is now.
#[derive(Debug)]
pub(super) struct Logger {
    pid: Rc<Cell<i32>>,
    /// It has been told to end: do not start it again.
    ending: Rc<Cell<bool>>,
    watch: JoinHandle<()>,
}

impl Plan {
    pub(super) fn new(program: &Path, arguments: &[String], setting: &Setting, keep: Keep) -> Plan {
        Plan {
            program: program.to_owned(),
            arguments: arguments.to_vec(),
            environment: vec![
                ("CONTAINER_ID".into(), setting.id.clone()),
                ("CONTAINER_NAMESPACE".into(), setting.namespace.clone()),
            ],
            keep,
            link: Arc::clone(&setting.link),
            exits: Rc::clone(&setting.exits),
        }
    }

    /// Starts the program with the reading ends of stdout and stderr as descriptors 3 and 4, and
    /// waits until it closes descriptor 5.
    async fn launch(&self, outputs: &[OwnedFd; 2]) -> Result<i32> {
        let what = || format!("start logger {}", self.program.display());
        let (ready, ready_end) = io::pipe().context(what)?;
        let [stdout, stderr] = outputs;
        let copies = [stdout.try_clone(), stderr.try_clone(), Ok(ready_end.into())];
        let copies: Vec<OwnedFd> = copies
            .into_iter()
            .collect::<io::Result<_>>()
            .context(what)?;
        let request = Request::Program {
            program: self.program.clone(),
            arguments: self.arguments.clone(),
            environment: self.environment.clone(),
        };
        let key = self.keep.key().to_owned();
        let launched = self.link.launch(Some(key), request, &[], copies).await;
        let pid = launched.map_err(io::Error::other).context(what)?;
        let ready = super::watched(ready.into()).context(what)?;
        let closed = tokio::time::timeout(READY, ready.readable()).await;
        if let Ok(closed) = closed {
            drop(closed.context(what)?);
            return Ok(pid);
        }
        signal(pid, libc::SIGKILL);
        self.collect(pid).await;
        let text = format!(
            "logger {} was not ready in {READY:?}",
            self.program.display()
        );
        Err(Error::FailedPrecondition(text))
    }

    async fn collect(&self, pid: i32) {
        self.exits.wait(pid).await;
        self.exits.forget(pid);
        self.link.commit(vec![Change::Forget { pid }], Vec::new());
    }

    /// Starts the program again whenever it dies before its time.
    async fn keep_running(self, outputs: [OwnedFd; 2], pid: Rc<Cell<i32>>, ending: Rc<Cell<bool>>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let since = Instant::now();
            if pid.get() != NONE {
                self.collect(pid.get()).await;
                pid.set(NONE);
            }
            if since.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            loop {
                if ending.get() || is_at_end(&outputs) {
                    return self.keep.done();
                }
                let program = self.program.display();
                log::warn(format_args!(
                    "logger {program} died; the next one starts in {pause:?}"
                ));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                match self.launch(&outputs).await {
                    Ok(next) => {
                        pid.set(next);
                        break;
                    }
                    Err(error) => log::error(format_args!("{error}")),
                }
            }
        }
    }
}

impl Logger {
    /// Starts a logger that reads `outputs`.
    pub(super) async fn start(plan: Plan, outputs: [OwnedFd; 2]) -> Result<Logger> {
        let copies = outputs.iter().map(OwnedFd::try_clone);
        let copies = copies
            .collect::<io::Result<_>>()
            .context(|| "duplicate a stream".into())?;
        plan.keep.commit(copies);
        match plan.launch(&outputs).await {
            Ok(pid) => Ok(Logger::watch(plan, outputs, pid)),
            Err(error) => {
                plan.keep.done();
                Err(error)
            }
        }
    }

    /// Takes over the logger of an earlier worker; `record` is its pid. That worker may have been
    /// about to start one, or the next one.
    pub(super) fn inherit(plan: Plan, outputs: [OwnedFd; 2], record: &str) -> Logger {
        let pid = record.parse().ok();
        let pid = pid.filter(|pid| plan.exits.is_expected(*pid));
        Logger::watch(plan, outputs, pid.unwrap_or(NONE))
    }

    fn watch(plan: Plan, outputs: [OwnedFd; 2], pid: i32) -> Logger {
        let pid = Rc::new(Cell::new(pid));
        let ending = Rc::new(Cell::new(false));
        let running = plan.keep_running(outputs, Rc::clone(&pid), Rc::clone(&ending));
        let watch = spawn_local(running);
        Logger { pid, ending, watch }
    }

    /// The process that the logger is now, 0 if it is none.
    pub(super) fn pid(&self) -> i32 {
        self.pid.get()
    }

    /// Waits for the logger to see the end of its input, then makes it stop.
    pub(super) async fn end(mut self, patience: Duration) {
        for (limit, number) in [(patience, libc::SIGTERM), (TERM, libc::SIGKILL)] {
            if tokio::time::timeout(limit, &mut self.watch).await.is_ok() {
                return;
            }
            self.ending.set(true);
            signal(self.pid.get(), number);
        }
        // It ends with the process; a panic in it has been told.
        let _ = self.watch.await;
    }
}

/// Signals a logger that is not collected yet.
fn signal(pid: i32, number: i32) {
    if pid == NONE {
        return;
    }
    if let Err(error) = sys::signal(pid, number) {
        log::debug(format_args!("signal logger {pid}: {error}"));
    }
}

/// True if nobody can write to the pipes any more, and everything has been read.
fn is_at_end(outputs: &[OwnedFd; 2]) -> bool {
    outputs.iter().all(|output| {
        let mut polled = [PollFd::new(output, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut polled, Some(&now)).is_ok()
            && polled[0].revents().contains(PollFlags::HUP)
            && !polled[0].revents().contains(PollFlags::IN)
    })
}

#[cfg(test)]
mod tests {
    use super::is_at_end;
    use std::io::{Read, Write};

    #[test]
    fn a_pipe_is_at_its_end_when_nobody_writes_and_nothing_is_left() {
        let (out, out_end) = std::io::pipe().unwrap();
        let (err, err_end) = std::io::pipe().unwrap();
        let mut reader = out.try_clone().unwrap();
        let outputs = [out.into(), err.into()];
        { &out_end }.write_all(b"x").unwrap();
        drop(err_end);
        assert!(!is_at_end(&outputs), "somebody may still write");
        drop(out_end);
        assert!(!is_at_end(&outputs), "a byte has not been read");
        reader.read_exact(&mut [0]).unwrap();
        assert!(is_at_end(&outputs));
    }
}
