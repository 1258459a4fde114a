//! The bundle all contestants run: static busybox under containerd's own default spec (its
//! capabilities, seccomp profile, masked paths and devices), with a cgroup namespace added.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::measure::output;
use crate::bundle::{busybox, make_rootfs};
use crate::error::{Error, Result};

/// Bundles that share one root filesystem; removed when dropped.
pub struct Bundles {
    dir: tempfile::TempDir,
}

impl Bundles {
    /// Makes the root filesystem and a bundle for each command.
    ///
    /// `containerd` must be running: the spec is the one it writes for a container of `ctr`.
    pub fn create() -> Result<Self> {
        let dir = tempfile::tempdir().map_err(Error::system("create a directory of bundles"))?;
        let bundles = Self { dir };
        make_rootfs(&bundles.rootfs(), busybox())?;
        let spec = containerd_spec(&bundles.rootfs())?;
        bundles.add("true", &spec, &["/bin/true"])?;
        bundles.add("sleep", &spec, &["/bin/sleep", "100000"])?;
        Ok(bundles)
    }

    /// The directory that all bundles share as their root filesystem.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// The bundle that runs `/bin/true`.
    pub fn short(&self) -> PathBuf {
        self.dir.path().join("true")
    }

    /// The bundle that sleeps until it is killed.
    pub fn long(&self) -> PathBuf {
        self.dir.path().join("sleep")
    }

    fn add(&self, name: &str, spec: &Value, args: &[&str]) -> Result<()> {
        let bundle = self.dir.path().join(name);
        fs::create_dir(&bundle).map_err(Error::file("create", &bundle))?;
        let mut spec = spec.clone();
        spec["process"]["args"] = json!(args);
        let file = bundle.join("config.json");
        fs::write(&file, spec.to_string()).map_err(Error::file("write", &file))
    }
}

/// What containerd writes for a container made from `rootfs` with its default seccomp profile.
pub(super) fn containerd_spec(rootfs: &Path) -> Result<Value> {
    let rootfs = rootfs.to_string_lossy();
    let id = "xebec-bench-spec";
    output(&[
        "ctr",
        "containers",
        "create",
        "--seccomp",
        "--rootfs",
        &rootfs,
        id,
        "/bin/true",
    ])?;
    let spec = output(&["ctr", "containers", "info", "--spec", id]);
    output(&["ctr", "containers", "rm", id])?;
    let spec = serde_json::from_str(&spec?)
        .map_err(|e| Error::invalid("output of `ctr containers info --spec`", e))?;
    Ok(for_all_runtimes(spec))
}

/// Adds a cgroup namespace and leaves the cgroup's path to each runtime, so that ids decide it.
fn for_all_runtimes(mut spec: Value) -> Value {
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("cgroupsPath");
        if let Some(Value::Array(namespaces)) = linux.get_mut("namespaces") {
            namespaces.retain(|ns| ns["type"] != "cgroup");
            namespaces.push(json!({ "type": "cgroup" }));
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_runtime_gets_a_cgroup_namespace_and_no_fixed_path() {
        let spec = json!({ "linux": {
            "cgroupsPath": "/default/x",
            "namespaces": [{ "type": "pid" }, { "type": "cgroup", "path": "/x" }]
        }});
        let linux = &for_all_runtimes(spec)["linux"];
        assert_eq!(linux["cgroupsPath"], Value::Null);
        assert_eq!(
            linux["namespaces"],
            json!([{ "type": "pid" }, { "type": "cgroup" }])
        );
    }
}
