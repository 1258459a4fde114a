//! containerd's own suites of tests, of its clients and of CRI: programs that know nothing of us.

use std::fs;
use std::path::PathBuf;

use super::{mirror, rootfs};
use crate::command;
use crate::error::{Error, Result};
use crate::hash;
use crate::hosts::scratch::remove_tree;
use crate::lock::Lock;
use crate::paths::{Paths, existing};
use crate::progress::Step;

const SCRIPT: &str = include_str!("suites.sh");

/// Go, containerd's sources with their tests, and what the tests need beside what those need.
const PACKAGES: &str = "--include=golang-go,golang-github-containerd-containerd-dev,\
    golang-github-stretchr-testify-dev,golang-github-google-go-cmp-dev,\
    golang-github-vishvananda-netlink-dev,golang-github-vishvananda-netns-dev,\
    golang-golang-x-mod-dev,golang-github-kubernetes-cri-api-dev";

/// The directory of `client.test` and `cri.test`, or an error that says how to get it.
pub fn find(paths: &Paths) -> Result<PathBuf> {
    existing(directory(paths), "setup --suites")
}

fn directory(paths: &Paths) -> PathBuf {
    let key = hash::key(&[SCRIPT, PACKAGES, rootfs::SUITE].concat());
    paths.cache.join(format!("suites-{key}"))
}

/// Builds them unless they are there: some minutes, and 3 GB for as long. Nothing is installed.
pub(super) fn build(paths: &Paths) -> Result<()> {
    let finished = directory(paths);
    let _one_at_a_time = Lock::take(&paths.cache.join(".suites.lock"))?;
    if finished.exists() {
        return Ok(());
    }
    let step = Step::begin("build containerd's suites of tests");
    let [unpacked, building] =
        ["unpacked", "building"].map(|state| paths.cache.join(format!(".{state}-suites")));
    for remains in [&unpacked, &building] {
        remove_tree(remains)?;
    }
    let (from, to) = (unpacked.to_string_lossy(), building.to_string_lossy());
    let mirror = mirror::find()?;
    let mut arguments = vec!["--variant=extract"];
    arguments.extend(rootfs::OPTIONS);
    arguments.extend([PACKAGES, rootfs::SUITE, &from, &mirror]);
    rootfs::debootstrap(paths, &arguments, "suites", &step)?;
    fs::create_dir(&building).map_err(Error::file("create", &building))?;
    let mut make = rootfs::contained(paths, &["sh", "-c", SCRIPT, "sh", &from, &to]);
    let log = paths.cache.join("logs/suites-build.log");
    command::follow(&mut make, &log, |line| step.detail(line))?;
    remove_tree(&unpacked)?;
    fs::rename(&building, &finished).map_err(Error::file("rename", &building))?;
    step.done(&finished.to_string_lossy());
    Ok(())
}
