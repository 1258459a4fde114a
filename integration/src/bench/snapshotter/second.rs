//! A second daemon of ours on the same node, whose mounts are all by FUSE.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::node::Node;
use crate::command;
use crate::error::{Error, Result};

/// Its name in containerd.
pub(super) const NAME: &str = "xebec-fuse";
/// Where it listens.
pub(super) const ADDRESS: &str = "/run/xebec-fuse/snapshotter.sock";
/// Its configuration file.
pub(super) const CONFIG: &str = "/etc/xebec/fuse.toml";
const ROOT: &str = "/var/lib/xebec-fuse";
const LOG: &str = "/var/log/xebec-fuse.log";
const DEADLINE: Duration = Duration::from_secs(20);

/// The running daemon; it ends with this.
pub(super) struct Second(Child);

/// What containerd has to be told of it.
pub(super) fn containerd() -> String {
    format!(
        "[proxy_plugins.{NAME}]\ntype = 'snapshot'\naddress = '{ADDRESS}'\n\
         [proxy_plugins.{NAME}.exports]\nroot = '{ROOT}'\n\
         enable_remote_snapshot_annotations = 'true'\n"
    )
}

impl Second {
    /// Starts it on a node that knows nothing of it yet.
    pub(super) fn start(node: &Node) -> Result<Self> {
        let root = Path::new(ROOT);
        if root.exists() {
            // The keeper of an earlier one has kept its trees.
            unmount_below(ROOT)?;
            fs::remove_dir_all(root).map_err(Error::file("delete", root))?;
        }
        let config = format!(
            "address = \"{ADDRESS}\"\nroot = \"{ROOT}\"\nmount = \"fuse\"\n\
             [registry]\nhosts_dir = \"/etc/containerd/certs.d\"\n"
        );
        fs::write(CONFIG, config).map_err(Error::file("write", Path::new(CONFIG)))?;
        let log = File::create(LOG).map_err(Error::file("create", Path::new(LOG)))?;
        let errors = log
            .try_clone()
            .map_err(Error::file("open", Path::new(LOG)))?;
        let process = Command::new("xebec-snapshotter")
            .args(["serve", "--config", CONFIG])
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(Error::system("start the second daemon"))?;
        let second = Self(process);
        let end = Instant::now() + DEADLINE;
        while UnixStream::connect(ADDRESS).is_err() {
            if Instant::now() > end {
                return Err(Error::NotReady {
                    service: NAME,
                    seconds: DEADLINE.as_secs(),
                    log: fs::read_to_string(LOG).unwrap_or_default() + &node.log(),
                });
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(second)
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }
}

/// Detaches every mount below a directory, the last one first.
fn unmount_below(dir: &str) -> Result<()> {
    let list = Path::new("/proc/self/mounts");
    let mounts = fs::read_to_string(list).map_err(Error::file("read", list))?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let points: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    for point in points.into_iter().rev().map(Path::new) {
        unmount(point, UnmountFlags::DETACH).map_err(Error::errno("unmount", point))?;
    }
    Ok(())
}

impl Drop for Second {
    fn drop(&mut self) {
        // The host that this runs in is thrown away; what does not end goes with it.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        if !command::wait(&mut self.0, DEADLINE).is_ok_and(|status| status.is_some()) {
            let _ = self.0.kill();
        }
    }
}
