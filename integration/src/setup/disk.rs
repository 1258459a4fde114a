//! The disk of the VM host: the root file system as an ext4 image.

use std::fs;
use std::path::{Path, PathBuf};

use super::rootfs;
use crate::command::{DEADLINE, check};
use crate::error::{Error, Result};
use crate::hosts::leash;
use crate::lock::Lock;
use crate::paths::{Paths, existing};
use crate::progress::Step;

/// Sparse: only what the root file system has takes space.
const SIZE: u64 = 6 << 30;

/// The finished image, or an error that says how to get it.
pub fn find(paths: &Paths) -> Result<PathBuf> {
    existing(image(paths), "setup --vm")
}

fn image(paths: &Paths) -> PathBuf {
    paths.cache.join(format!("disk-{}.img", rootfs::key()))
}

/// Makes it from the root file system unless it is there.
pub fn build(paths: &Paths) -> Result<()> {
    let finished = image(paths);
    let root = rootfs::find(paths)?;
    let _one_at_a_time = Lock::take(&paths.cache.join(".disk.lock"))?;
    if finished.exists() {
        return Ok(());
    }
    let step = Step::begin("make the disk of the VM host");
    let building = paths.cache.join(".building-disk.img");
    make_ext4(&paths.program, &building, SIZE, "xebec-root", &root)?;
    fs::rename(&building, &finished).map_err(Error::file("rename", &building))?;
    step.done(&finished.to_string_lossy());
    Ok(())
}

/// An ext4 image of `size` bytes with the content of a directory.
pub(crate) fn make_ext4(
    program: &Path,
    image: &Path,
    size: u64,
    label: &str,
    content: &Path,
) -> Result<()> {
    let file = fs::File::create(image).map_err(Error::file("create", image))?;
    file.set_len(size).map_err(Error::file("resize", image))?;
    let argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-d"];
    let mut command = leash::command(program, &argv);
    check(command.arg(content).arg(image), DEADLINE).map(drop)
}
