//! The process that outlives whoever started a host, and cleans up after it.
//!
//! The owner holds the write end of the keeper's standard input. Its end of file means that the
//! owner is done or dead; then the keeper kills the host's first process (the kernel ends the
//! rest of its pid namespace), removes its cgroups and its scratch directory, and exits. The
//! first process has the keeper's death as its own death signal.

use std::fs;
use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::cgroup::Hierarchy;
use super::native::plan::NativePlan;
use super::scratch::Scratch;
use super::vm::machine::MachinePlan;
use crate::command::exit_code;
use crate::error::{Error, Result};
use crate::paths::{self, Paths};
use crate::sys;

/// The hidden subcommand that [`keep`] is.
pub(crate) const KEEP: &str = "keep";

/// What a keeper is to start.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Directory of all hosts' scratch directories.
    pub(crate) hosts: PathBuf,
    /// The first process.
    pub(crate) payload: Payload,
}

/// Kinds of hosts.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Payload {
    /// Namespaces of this machine.
    Native(NativePlan),
    /// A QEMU process.
    Machine(MachinePlan),
}

/// One line from the keeper to the owner.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Started { pid: i32, scratch: PathBuf },
    Failed { reason: String },
    Ended { status: i32 },
}

/// The owner's side of a keeper; dropping it ends the host and waits until nothing is left.
#[derive(Debug)]
pub(crate) struct Keeper {
    process: Child,
    lifeline: Option<ChildStdin>,
    reports: BufReader<ChildStdout>,
    /// The host's first process, as this pid namespace numbers it.
    pub(crate) pid: i32,
    /// The host's scratch directory.
    pub(crate) scratch: PathBuf,
}

impl Keeper {
    /// Starts a keeper and, through it, the host.
    pub(crate) fn start(places: &Paths, host: &'static str, payload: Payload) -> Result<Self> {
        let failed = |reason: String| Error::Host { host, reason };
        paths::require_root()?;
        let program = paths::existing(places.program.clone(), "setup")?;
        // Its own process group keeps the terminal's Ctrl-C away from it.
        let mut process = Command::new(&program)
            .arg(KEEP)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::file("start", &program))?;
        let (Some(mut lifeline), Some(pipe)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(failed("its keeper has no pipes".into()));
        };
        let plan = Plan {
            hosts: places.hosts(),
            payload,
        };
        let mut line = serde_json::to_vec(&plan).map_err(|error| failed(error.to_string()))?;
        line.push(b'\n');
        lifeline
            .write_all(&line)
            .map_err(Error::system("write to the keeper"))?;
        let mut reports = BufReader::new(pipe);
        match read_report(&mut reports)? {
            Report::Started { pid, scratch } => Ok(Self {
                process,
                lifeline: Some(lifeline),
                reports,
                pid,
                scratch,
            }),
            Report::Failed { reason } => {
                drop(lifeline);
                process
                    .wait()
                    .map_err(Error::system("wait for the keeper"))?;
                Err(failed(reason))
            }
            Report::Ended { status } => Err(failed(format!("it ended with status {status}"))),
        }
    }

    /// Waits until the first process has ended by itself, at most `time`; its exit code.
    pub(crate) fn wait(&mut self, time: Duration) -> Result<Option<i32>> {
        let timeout = Timespec {
            tv_sec: time.as_secs() as i64,
            tv_nsec: time.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(self.reports.get_ref(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(errno) => return Err(Error::system("wait for a host")(errno)),
        }
        match read_report(&mut self.reports)? {
            Report::Ended { status } => Ok(Some(status)),
            report => Err(Error::invalid("the keeper's report", format!("{report:?}"))),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.lifeline.take();
        if let Err(error) = self.process.wait() {
            eprintln!("integration: wait for a host's keeper: {error}");
        }
    }
}

fn read_report(reports: &mut impl BufRead) -> Result<Report> {
    let mut line = String::new();
    reports
        .read_line(&mut line)
        .map_err(Error::system("read the keeper's report"))?;
    serde_json::from_str(&line).map_err(|error| Error::invalid("the keeper's report", error))
}

fn report(report: &Report) -> Result<()> {
    let line = serde_json::to_string(report).map_err(|error| Error::invalid("a report", error))?;
    let mut out = stdout().lock();
    // The owner may be gone already; then its pipe says so on the other side too.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    Ok(())
}

/// The keeper itself: reads its plan from standard input and stays until end of file.
pub(crate) fn keep() -> Result<()> {
    let mut line = String::new();
    stdin()
        .lock()
        .read_line(&mut line)
        .map_err(Error::system("read the plan"))?;
    let plan: Plan = serde_json::from_str(&line).map_err(|e| Error::invalid("the plan", e))?;
    match Site::start(&plan) {
        Ok((site, mut child)) => {
            let pid = child.id() as i32;
            report(&Report::Started {
                pid,
                scratch: site.scratch.path().to_owned(),
            })?;
            let ended = watch(&mut child);
            site.clear().and(ended)
        }
        Err(error) => report(&Report::Failed {
            reason: error.to_string(),
        }),
    }
}

/// Returns at end of file on standard input, with the child dead.
fn watch(child: &mut Child) -> Result<()> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())
        .map_err(Error::system("open a host's pidfd"))?;
    let input = stdin();
    let mut ended = false;
    loop {
        let mut fds = vec![PollFd::new(&input, PollFlags::IN)];
        if !ended {
            fds.push(PollFd::new(&pidfd, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(Error::system("watch a host")(errno)),
        }
        let owner_is_gone = !fds[0].revents().is_empty();
        if !ended && (owner_is_gone || !fds[1].revents().is_empty()) {
            if owner_is_gone {
                child.kill().map_err(Error::system("kill a host"))?;
            }
            let status = child.wait().map_err(Error::system("wait for a host"))?;
            ended = true;
            report(&Report::Ended {
                status: exit_code(status),
            })?;
        }
        if owner_is_gone {
            return Ok(());
        }
    }
}

/// Everything of a host that outlasts its processes.
struct Site {
    scratch: Scratch,
    hierarchy: Hierarchy,
}

impl Site {
    fn start(plan: &Plan) -> Result<(Self, Child)> {
        fs::create_dir_all(&plan.hosts).map_err(Error::file("create", &plan.hosts))?;
        sys::unshare(UnshareFlags::NEWNS).map_err(Error::system("unshare mounts"))?;
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .map_err(Error::errno("make private", Path::new("/")))?;
        let hierarchy = Hierarchy::mount(&plan.hosts.join(".cgroup"))?;
        let scratch = Scratch::create(&plan.hosts, |host| hierarchy.remove(host))?;
        let site = Self { scratch, hierarchy };
        let started = match &plan.payload {
            Payload::Native(native) => site
                .hierarchy
                .create(&site.scratch.name())
                .and_then(|group| native.launch(site.scratch.path(), &group)),
            Payload::Machine(machine) => machine.launch(site.scratch.path()),
        };
        match started {
            Ok(child) => Ok((site, child)),
            Err(error) => site.clear().and(Err(error)),
        }
    }

    fn clear(self) -> Result<()> {
        self.hierarchy.remove(&self.scratch.name())?;
        self.scratch.remove()
    }
}
