//! The product's release binaries, as a host uses them, and what benchmarks start beside them.

use std::process::Command;

use crate::command;
use crate::error::Result;
use crate::paths::{PRODUCT, Paths};
use crate::progress::Step;

/// The packages of all of them.
const PACKAGES: [&str; 4] = [
    "xebec-runtime",
    "xebec-shim",
    "xebec-snapshotter",
    "bench-programs",
];
/// What tests start beside the product; the other programs take minutes to link.
const OF_TESTS: &str = "posix-reads";

/// Builds them, those of benchmarks only if they are asked for; quick when nothing has changed.
pub fn build(paths: &Paths, benchmarks: bool) -> Result<()> {
    let step = Step::begin("build the release binaries");
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--release"])
        .current_dir(&paths.repository);
    cargo.args(PACKAGES.iter().flat_map(|package| ["-p", package]));
    if !benchmarks {
        let programs = PRODUCT.iter().chain([&OF_TESTS]);
        cargo.args(programs.flat_map(|program| ["--bin", program]));
    }
    // Cargo ends with the terminal's Ctrl-C by itself and leaves nothing half done.
    let log = paths.cache.join("logs/cargo.log");
    command::follow(&mut cargo, &log, |line| step.detail(line))?;
    step.done(&paths.binaries.to_string_lossy());
    Ok(())
}
