//! Whether this host can do what the kernel back end needs: tried, not guessed from versions.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use super::image;
use crate::digest::Digest;
use crate::erofs;
use crate::index::{LayerBuilder, Tree};
use crate::keeper::group::Group;

/// Watches a file below `root` and mounts an image from there. The error says what is missing.
pub fn probe(root: &Path) -> Result<(), String> {
    fs::create_dir_all(root).map_err(|error| format!("{}: {error}", root.display()))?;
    let path = root.join("probe");
    let tried = watch(root, &path).and_then(|()| mount(&path));
    match fs::remove_file(&path) {
        Err(error) if tried.is_ok() => Err(format!("{}: {error}", path.display())),
        _ => tried,
    }
}

fn watch(root: &Path, path: &Path) -> Result<(), String> {
    fs::write(path, b"").map_err(|error| format!("{}: {error}", path.display()))?;
    // Gone at the end, and the watch with it: our own accesses would wait for our own answer.
    let group = Group::new()
        .map_err(|error| format!("no events before reads (Linux 6.14, CAP_SYS_ADMIN): {error}"))?;
    let directory = File::open(root).map_err(|error| format!("{}: {error}", root.display()))?;
    group.watch(directory.as_fd(), path).map_err(|error| {
        format!(
            "the file system of {} has no events before reads (ext4, xfs and btrfs have): {error}",
            root.display()
        )
    })
}

fn mount(path: &Path) -> Result<(), String> {
    let digest = Digest::of(b"probe");
    let layer = LayerBuilder::new(digest, digest, 0).finish();
    let tree = layer.and_then(|layer| Tree::merge(vec![Arc::new(layer)]));
    let image = tree.and_then(|tree| erofs::image(&tree));
    let image = image.map_err(|flaw| flaw.to_string())?;
    fs::write(path, image).map_err(|error| format!("{}: {error}", path.display()))?;
    image::detached(path, &[])
        .map(drop)
        .map_err(|error| format!("no EROFS mounts of files (Linux 6.12): {error}"))
}
