//! The Debian forky root file system that both hosts run on.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::mirror;
use crate::command;
use crate::error::{Error, Result};
use crate::hash;
use crate::hosts::leash;
use crate::hosts::vm::guest;
use crate::lock::Lock;
use crate::paths::{Paths, existing};
use crate::progress::Step;

/// Debian's suite: its containerd is 2.1, its kernel has every cgroup controller.
pub(super) const SUITE: &str = "forky";

/// What a container host has, the peers, and what tests look at it with.
const PACKAGES: &[&str] = &[
    "systemd systemd-sysv dbus udev kmod",
    KERNEL,
    "containerd runc crun criu containernetworking-plugins docker-registry skopeo umoci",
    "iproute2 iptables erofs-utils fuse3 busybox-static ca-certificates apache2-utils",
    "procps curl jq strace",
    // Clients of a runtime, and what they need for users who are not root.
    "podman buildah docker.io netavark aardvark-dns catatonit passt uidmap fuse-overlayfs",
    "dbus-user-session libpam-systemd nftables",
    // Labels: the parsers and a policy for the VM, whose kernel has both security modules.
    "apparmor selinux-policy-default selinux-utils policycoreutils",
];
const KERNEL: &str = if cfg!(target_arch = "aarch64") {
    "linux-image-cloud-arm64"
} else {
    "linux-image-cloud-amd64"
};

const VARIANT: &str = "--variant=minbase";
/// Options of mmdebstrap. The mirror's release file of this suite may be past its date.
pub(super) const OPTIONS: &[&str] = &[
    "--aptopt=Apt::Install-Recommends \"false\"",
    "--aptopt=Acquire::Check-Valid-Until \"false\"",
];

/// Debian starts these by itself; on a test host, tests do.
const MASKED_UNITS: [&str; 8] = [
    "containerd.service",
    "docker-registry.service",
    "docker.service",
    "docker.socket",
    "podman-auto-update.timer",
    "podman-restart.service",
    "apparmor.service",
    "selinux-autorelabel-mark.service",
];

/// The finished root file system, or an error that says how to get it.
pub fn find(paths: &Paths) -> Result<PathBuf> {
    existing(directory(paths), "setup")
}

/// Changes whenever the recipe does.
pub(super) fn key() -> String {
    let parts = [
        PACKAGES,
        &[VARIANT],
        OPTIONS,
        &MASKED_UNITS,
        &[SUITE, guest::UNIT],
    ];
    hash::key(&(parts.concat().join("\n") + "\n"))
}

fn directory(paths: &Paths) -> PathBuf {
    paths.cache.join(format!("rootfs-{}", key()))
}

/// Builds it unless it is there. A run that was killed leaves nothing that a later one would use.
pub fn build(paths: &Paths) -> Result<()> {
    let finished = directory(paths);
    let _one_at_a_time = Lock::take(&paths.cache.join(".rootfs.lock"))?;
    if finished.exists() {
        return Ok(());
    }
    let step = Step::begin("build the root file system of the hosts");
    let building = paths.cache.join(".building-rootfs");
    if building.exists() {
        fs::remove_dir_all(&building).map_err(Error::file("delete", &building))?;
    }
    let include = format!("--include={}", PACKAGES.join(" ").replace(' ', ","));
    let mirror = mirror::find()?;
    let target = building.to_string_lossy();
    let mut arguments = vec![VARIANT];
    arguments.extend(OPTIONS);
    arguments.extend([include.as_str(), SUITE, &target, &mirror]);
    debootstrap(paths, &arguments, "rootfs", &step)?;
    configure(&building)?;
    fs::rename(&building, &finished).map_err(Error::file("rename", &building))?;
    step.done(&finished.to_string_lossy());
    Ok(())
}

/// Runs mmdebstrap, [`contained`].
pub(crate) fn debootstrap(paths: &Paths, arguments: &[&str], log: &str, step: &Step) -> Result<()> {
    let mut command = contained(paths, &[&["mmdebstrap", "--mode=root"], arguments].concat());
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    let log = paths.cache.join("logs").join(format!("{log}.log"));
    command::follow(&mut command, &log, |line| step.detail(line))
}

/// A command in namespaces that end, with every mount and process, when this process does.
pub(super) fn contained(paths: &Paths, argv: &[&str]) -> Command {
    let mut contained = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    .to_vec();
    contained.extend(argv);
    leash::command(&paths.program, &contained)
}

fn configure(root: &Path) -> Result<()> {
    let units = root.join("etc/systemd/system");
    for unit in MASKED_UNITS {
        let path = units.join(unit);
        symlink("/dev/null", &path).map_err(Error::file("link", &path))?;
    }
    let unit = units.join(guest::UNIT_NAME);
    fs::write(&unit, guest::UNIT).map_err(Error::file("write", &unit))?;
    let wants = units.join("multi-user.target.wants");
    fs::create_dir_all(&wants).map_err(Error::file("create", &wants))?;
    let wanted = wants.join(guest::UNIT_NAME);
    symlink(format!("../{}", guest::UNIT_NAME), &wanted).map_err(Error::file("link", &wanted))
}
