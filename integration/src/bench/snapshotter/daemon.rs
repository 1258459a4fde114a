//! Snapshotters beside ours on the same node.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::command;
use crate::error::{Error, Result};

const DEADLINE: Duration = Duration::from_secs(20);

/// A running daemon; it ends with this.
pub(super) struct Process(Child);

impl Process {
    /// Starts it and waits until it listens on `socket`.
    pub(super) fn start(name: &'static str, argv: &[&str], socket: &str) -> Result<Self> {
        let path = format!("/var/log/{name}.log");
        let file = Path::new(&path);
        let log = File::create(file).map_err(Error::file("create", file))?;
        let errors = log.try_clone().map_err(Error::file("open", file))?;
        let process = Command::new(argv[0])
            .args(&argv[1..])
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(Error::system(format!("start {}", argv[0])))?;
        let daemon = Self(process);
        let end = Instant::now() + DEADLINE;
        while UnixStream::connect(socket).is_err() {
            if Instant::now() > end {
                return Err(Error::NotReady {
                    service: name,
                    seconds: DEADLINE.as_secs(),
                    log: fs::read_to_string(file).unwrap_or_default(),
                });
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The host that this runs in is thrown away; what does not end goes with it.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        if !command::wait(&mut self.0, DEADLINE).is_ok_and(|status| status.is_some()) {
            let _ = self.0.kill();
        }
    }
}

/// What containerd has to be told of a snapshotter beside its own.
pub(super) fn proxy(name: &str, socket: &str, root: &str) -> String {
    format!(
        "[proxy_plugins.{name}]\ntype = 'snapshot'\naddress = '{socket}'\n\
         [proxy_plugins.{name}.exports]\nroot = '{root}'\n\
         enable_remote_snapshot_annotations = 'true'\n"
    )
}

/// Detaches every mount below a directory, the last one first.
pub(super) fn unmount_below(dir: &str) -> Result<()> {
    let list = Path::new("/proc/self/mounts");
    let mounts = fs::read_to_string(list).map_err(Error::file("read", list))?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let points: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    for point in points.into_iter().rev().map(Path::new) {
        unmount(point, UnmountFlags::DETACH).map_err(Error::errno("unmount", point))?;
    }
    Ok(())
}
