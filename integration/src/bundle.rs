//! OCI bundles for direct use of a runtime: static busybox as the root file system, and a
//! config.json that the test decides on.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::hosts::NativeHost;

/// Where busybox-static puts its program.
const BUSYBOX: &str = "/usr/bin/busybox";
/// Commands of busybox that exist in a bundle.
const APPLETS: &[&str] = &[
    "sh", "true", "false", "sleep", "cat", "echo", "ls", "id", "stty", "tty", "hostname", "mount",
];

/// Makes a root file system of busybox at `rootfs`.
pub fn make_rootfs(rootfs: &Path, busybox: &Path) -> Result<()> {
    for directory in ["bin", "proc", "sys", "dev", "run", "tmp", "etc"] {
        let directory = rootfs.join(directory);
        fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
    }
    fs::copy(busybox, rootfs.join("bin/busybox")).map_err(Error::file("copy", busybox))?;
    for applet in APPLETS {
        let link = rootfs.join("bin").join(applet);
        symlink("busybox", &link).map_err(Error::file("create", &link))?;
    }
    Ok(())
}

/// Path of busybox on a host.
pub fn busybox() -> &'static Path {
    Path::new(BUSYBOX)
}

/// A bundle on a host.
#[derive(Debug)]
pub struct Bundle<'a> {
    host: &'a NativeHost,
    path: PathBuf,
    /// config.json, to be changed before [`Bundle::write`].
    pub config: Value,
}

impl<'a> Bundle<'a> {
    /// Makes a bundle at `path` of the host with what `xebec spec` writes, without a terminal.
    pub fn create(host: &'a NativeHost, path: impl Into<PathBuf>, args: &[&str]) -> Result<Self> {
        let path = path.into();
        make_rootfs(&host.path(path.join("rootfs")), &host.path(BUSYBOX))?;
        let directory = path.to_string_lossy().into_owned();
        host.check(&["xebec", "spec", "--bundle", &directory])?;
        let text = host.read_file(path.join("config.json"))?;
        let mut config: Value = serde_json::from_str(&text)
            .map_err(|e| Error::invalid("config.json of `xebec spec`", e))?;
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(args);
        config["root"]["readonly"] = json!(false);
        let bundle = Self { host, path, config };
        bundle.write()?;
        Ok(bundle)
    }

    /// Writes config.json.
    pub fn write(&self) -> Result<()> {
        self.host
            .write_file(self.path.join("config.json"), self.config.to_string())
    }

    /// The bundle's directory in the host.
    pub fn path(&self) -> &str {
        self.path.to_str().unwrap_or_default()
    }
}
