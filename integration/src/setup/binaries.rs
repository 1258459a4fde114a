//! The product's release binaries, as a host uses them, and what benchmarks start beside them.

use std::process::Command;

use crate::command;
use crate::error::Result;
use crate::paths::Paths;
use crate::progress::Step;

/// Builds them; quick when nothing has changed.
pub fn build(paths: &Paths) -> Result<()> {
    let step = Step::begin("build the release binaries");
    let mut cargo = Command::new("cargo");
    cargo.args([
        "build",
        "--release",
        "-p",
        "xebec-runtime",
        "-p",
        "xebec-shim",
    ]);
    cargo
        .args(["-p", "xebec-snapshotter", "-p", "bench-programs"])
        .current_dir(&paths.repository);
    // Cargo ends with the terminal's Ctrl-C by itself and leaves nothing half done.
    let log = paths.cache.join("logs/cargo.log");
    command::follow(&mut cargo, &log, |line| step.detail(line))?;
    step.done(&paths.binaries.to_string_lossy());
    Ok(())
}
