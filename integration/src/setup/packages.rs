//! Debian packages of this machine itself, installed only if missing.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::command;
use crate::error::Result;
use crate::progress::Step;

/// (a file that shows that it is there, the package that has it)
const NATIVE: [(&str, &str); 1] = [("/usr/bin/mmdebstrap", "mmdebstrap")];
const VM: [(&str, &str); 4] = [
    (qemu().0, qemu().1),
    ("/usr/sbin/mke2fs", "e2fsprogs"),
    ("/usr/share/seabios/bios-256k.bin", "seabios"),
    // A test's program of this C library.
    ("/usr/bin/musl-gcc", "musl-tools"),
];
const DEADLINE: Duration = Duration::from_mins(20);

const fn qemu() -> (&'static str, &'static str) {
    if cfg!(target_arch = "aarch64") {
        ("/usr/bin/qemu-system-aarch64", "qemu-system-arm")
    } else {
        ("/usr/bin/qemu-system-x86_64", "qemu-system-x86")
    }
}

/// Installs what is missing for the native host; with `vm`, for the VM host and tests too.
pub fn install(vm: bool) -> Result<()> {
    let wanted = NATIVE.iter().chain(vm.then_some(&VM).into_iter().flatten());
    let missing: Vec<_> = wanted
        .filter(|(file, _)| !Path::new(file).exists())
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        let step = Step::begin(format!("install {}", missing.join(" ")));
        apt(&["update"])?;
        apt(&[
            ["install", "-y", "--no-install-recommends"].as_slice(),
            &missing,
        ]
        .concat())?;
        step.done("");
    }
    if vm { install_nextest() } else { Ok(()) }
}

fn install_nextest() -> Result<()> {
    let version = ["nextest", "--version"];
    if command::output(Command::new("cargo").args(version), command::DEADLINE)?.success() {
        return Ok(());
    }
    let step = Step::begin("build cargo-nextest");
    let mut cargo = Command::new("cargo");
    cargo.args(["install", "--locked", "cargo-nextest"]);
    // A quick build matters more than a quick program; and the workspace's own configuration
    // must not reach into it, hence the directory.
    cargo.args(["--config", "profile.release.lto=false"]);
    cargo
        .args(["--config", "profile.release.opt-level=1"])
        .current_dir("/");
    command::check(&mut cargo, DEADLINE)?;
    step.done("");
    Ok(())
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(["-qq", "-o", "Acquire::Check-Valid-Until=false"])
        .args(arguments);
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    command::check(&mut apt, DEADLINE).map(drop)
}
