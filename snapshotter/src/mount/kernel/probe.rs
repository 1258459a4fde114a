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
use crate::rootless::in_user_namespace;

/// Watches a file below `root` and mounts an image from there. The error says what is missing.
///
/// The file stays: what was found to work must not fail at a later start because the disk is full.
pub fn probe(root: &Path) -> Result<(), String> {
    if in_user_namespace() {
        return Err("in a user namespace there are no events before reads".to_owned());
    }
    fs::create_dir_all(root).map_err(|error| format!("{}: {error}", root.display()))?;
    let path = root.join("probe");
    let image = image()?;
    if !fs::read(&path).is_ok_and(|known| known == image) {
        fs::write(&path, image).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let tried = watch(root, &path).and_then(|()| mount(&path));
    if tried.is_err()
        && let Err(error) = fs::remove_file(&path)
    {
        tracing::warn!(path = %path.display(), %error, "a file of no use stays");
    }
    tried
}

fn watch(root: &Path, path: &Path) -> Result<(), String> {
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

/// The image of a tree with nothing in it.
fn image() -> Result<Vec<u8>, String> {
    let digest = Digest::of(b"probe");
    let layer = LayerBuilder::new(digest, digest, 0).finish();
    let tree = layer.and_then(|layer| Tree::merge(vec![Arc::new(layer)]));
    let image = tree.and_then(|tree| erofs::image(&tree));
    image.map_err(|flaw| flaw.to_string())
}

fn mount(path: &Path) -> Result<(), String> {
    image::detached(path, &[])
        .map(drop)
        .map_err(|error| format!("no EROFS mounts of files (Linux 6.12): {error}"))
}
