//! What a runtime's commands do to containers of the benchmark's bundles.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::bundle::Bundles;
use super::contest::one;
use super::measure::{in_path, output, version, wall_ms};
use super::suite::OURS;
use crate::error::Result;

/// Runtimes in the order of the table.
pub const RUNTIMES: &[&str] = &[OURS, "runc", "crun"];

/// The bundles, and for each runtime a container that lives as long as the suite.
pub struct Containers {
    bundles: Bundles,
}

impl Containers {
    /// Makes them; containerd must be running, because the spec is the one it writes.
    pub fn start() -> Result<Self> {
        let containers = Self {
            bundles: Bundles::create()?,
        };
        for runtime in present() {
            // Not `output`: the container would hold the other end of its pipe.
            wall_ms(&containers.create(runtime, &["run", "-d"], &target(runtime)))?;
        }
        Ok(containers)
    }

    /// The root file system that all bundles share.
    pub fn rootfs(&self) -> PathBuf {
        self.bundles.rootfs()
    }

    /// The bundle that runs `/bin/true`.
    pub fn short(&self) -> PathBuf {
        self.bundles.short()
    }

    /// `run` of /bin/true, in full.
    pub fn run_command(&self, runtime: &str, id: &str) -> Vec<String> {
        words(&[runtime, "run", "-b", &self.short().to_string_lossy(), id])
    }

    /// A command that makes the container `id` of the bundle that sleeps.
    pub fn create(&self, runtime: &str, command: &[&str], id: &str) -> Vec<String> {
        let bundle = self.bundles.long();
        let bundle = bundle.to_string_lossy();
        words(&[&[runtime], command, &["-b", &bundle, id]].concat())
    }

    /// `run` of /bin/true.
    pub fn run(&self, runtime: &str, round: u32) -> Result<Vec<f64>> {
        let id = format!("bench-run-{runtime}-{round}");
        one(wall_ms(&self.run_command(runtime, &id)))
    }

    /// The sum of `create`, `start` and `delete -f`, and each of them.
    pub fn lifecycle(&self, runtime: &str, round: u32) -> Result<Vec<f64>> {
        let id = format!("bench-life-{runtime}-{round}");
        let create = wall_ms(&self.create(runtime, &["create"], &id))?;
        let start = wall_ms(&[runtime, "start", &id])?;
        let delete = wall_ms(&[runtime, "delete", "-f", &id])?;
        Ok(vec![create + start + delete, create, start, delete])
    }
}

/// `exec` of /bin/true in the runtime's own long-lived container.
pub fn exec(runtime: &str) -> Result<Vec<f64>> {
    one(wall_ms(&[runtime, "exec", &target(runtime), "/bin/true"]))
}

/// `state` of that container.
pub fn state(runtime: &str) -> Result<Vec<f64>> {
    one(wall_ms(&[runtime, "state", &target(runtime)]))
}

/// What each runtime says of its version, in one line.
pub fn versions() -> BTreeMap<String, String> {
    present()
        .map(|name| (name.to_owned(), version(&[name, "--version"])))
        .collect()
}

impl Drop for Containers {
    fn drop(&mut self) {
        // The host that this runs in is thrown away; what cannot be removed goes with it.
        for runtime in present() {
            let _ = output(&[runtime, "delete", "-f", &target(runtime)]);
        }
    }
}

fn present() -> impl Iterator<Item = &'static str> {
    RUNTIMES.iter().copied().filter(|r| in_path(r).is_some())
}

/// Name of a runtime's container; runtimes share the cgroup tree, so that names must differ.
fn target(runtime: &str) -> String {
    format!("bench-exec-{runtime}")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
