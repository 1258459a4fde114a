//! A second daemon of ours on the same node, whose mounts are all by FUSE.

use std::fs;
use std::path::Path;

use super::daemon::{Process, proxy, unmount_below};
use crate::error::{Error, Result};

/// Its name in containerd.
pub(super) const NAME: &str = "xebec-fuse";
/// Where it listens.
pub(super) const ADDRESS: &str = "/run/xebec-fuse/snapshotter.sock";
/// Its configuration file.
const CONFIG: &str = "/etc/xebec/fuse.toml";
const ROOT: &str = "/var/lib/xebec-fuse";

/// What containerd has to be told of it.
pub(super) fn containerd() -> String {
    proxy(NAME, ADDRESS, ROOT)
}

/// Starts it on a node that knows nothing of it yet.
pub(super) fn start() -> Result<Process> {
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
    let argv = ["xebec-snapshotter", "serve", "--config", CONFIG];
    Process::start(NAME, &argv, ADDRESS)
}
