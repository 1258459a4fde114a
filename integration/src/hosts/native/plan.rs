//! What a native host consists of, and the way from its keeper to its first process.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys;

/// The hidden subcommand that is a native host's first process.
pub(crate) const INIT: &str = "init";

/// What the first process says once everything is mounted.
pub(crate) const READY: &str = "ready";

/// The pieces of a native host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NativePlan {
    /// The forky root file system: the read-only lower layer of every host's root.
    pub(crate) rootfs: PathBuf,
    /// What else of this machine is visible.
    pub(crate) binds: Vec<Bind>,
    /// Symbolic links: (where it is, what it points to).
    pub(crate) links: Vec<(PathBuf, PathBuf)>,
}

/// A file or directory of this machine that is visible in the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Bind {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) writable: bool,
}

/// What the first process is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InitPlan {
    pub(crate) native: NativePlan,
    pub(crate) scratch: PathBuf,
    pub(crate) cgroup: PathBuf,
}

impl NativePlan {
    /// Starts the first process in a new pid namespace and waits until its mounts are there.
    pub(crate) fn launch(&self, scratch: &Path, cgroup: &Path) -> Result<Child> {
        sys::unshare(UnshareFlags::NEWPID).map_err(Error::system("unshare the pid namespace"))?;
        let mut child = Command::new("/proc/self/exe")
            .arg(INIT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::system("start a host's first process"))?;
        let answer = self.instruct(&mut child, scratch, cgroup);
        if answer.is_err() {
            child.kill().map_err(Error::system("kill a host"))?;
            child.wait().map_err(Error::system("wait for a host"))?;
        }
        answer.map(|()| child)
    }

    fn instruct(&self, child: &mut Child, scratch: &Path, cgroup: &Path) -> Result<()> {
        let plan = InitPlan {
            native: self.clone(),
            scratch: scratch.to_owned(),
            cgroup: cgroup.to_owned(),
        };
        let mut line =
            serde_json::to_vec(&plan).map_err(|error| Error::invalid("the plan", error))?;
        line.push(b'\n');
        // The pipe stays open in `child`: its end of file tells the first process to go.
        if let Some(pipe) = &mut child.stdin {
            pipe.write_all(&line)
                .map_err(Error::system("instruct a host's first process"))?;
        }
        let mut answer = String::new();
        if let Some(pipe) = child.stdout.take() {
            let read = BufReader::new(pipe).read_line(&mut answer);
            read.map_err(Error::system("hear from a host's first process"))?;
        }
        match answer.trim_end() {
            READY => Ok(()),
            "" => Err(Error::Host {
                host: "native",
                reason: "its first process died".into(),
            }),
            reason => Err(Error::Host {
                host: "native",
                reason: reason.into(),
            }),
        }
    }
}
