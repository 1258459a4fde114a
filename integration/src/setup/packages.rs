//! Debian packages of this machine itself, installed only if missing.

use std::path::Path;
use std::process::Command;

use crate::command;
use crate::error::Result;
use crate::progress::Step;
use std::time::Duration;

/// (a file that shows that it is there, the package that has it)
const NATIVE: [(&str, &str); 1] = [("/usr/bin/mmdebstrap", "mmdebstrap")];
const VM: [(&str, &str); 3] = [
    (qemu().0, qemu().1),
    ("/usr/sbin/mke2fs", "e2fsprogs"),
    ("/usr/share/seabios/bios-256k.bin", "seabios"),
];
const DEADLINE: Duration = Duration::from_mins(20);

const fn qemu() -> (&'static str, &'static str) {
    if cfg!(target_arch = "aarch64") {
        ("/usr/bin/qemu-system-aarch64", "qemu-system-arm")
    } else {
        ("/usr/bin/qemu-system-x86_64", "qemu-system-x86")
    }
}

/// Installs what is missing for the native host and, on demand, for the VM; and cargo-nextest.
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
    let nextest = ["nextest", "--version"];
    let there = command::output(Command::new("cargo").args(nextest), command::DEADLINE)?;
    if !there.success() {
        let step = Step::begin("build cargo-nextest");
        command::check(
            // The workspace's configuration must not reach into another crate's build.
            Command::new("cargo")
                .args(["install", "--locked", "cargo-nextest"])
                .current_dir("/"),
            DEADLINE,
        )?;
        step.done("");
    }
    Ok(())
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(["-qq", "-o", "Acquire::Check-Valid-Until=false"])
        .args(arguments);
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    command::check(&mut apt, DEADLINE).map(drop)
}
