//! Metadata images on disk, and mounting them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::super::LayerId;
use super::super::layers::Layers;
use crate::digest::Hasher;
use crate::erofs;
use crate::error::{Error, Result};
use crate::index::Tree;

/// What `statfs` says of an EROFS mount.
const EROFS_MAGIC: u32 = 0xE0F5_E1E2;
/// Part of an image's name, raised when the same index gives another image.
const EDITION: u8 = 1;

/// The images of chains, each beside its top layer and gone with it.
#[derive(Default)]
pub(super) struct Images {
    /// Those that a power failure could still tear, under the name that they have until then.
    unsynced: Mutex<Vec<PathBuf>>,
}

impl Images {
    /// Calls `mount` with the path of the image of `tree`, which is made if it is not there.
    pub(super) fn with<T>(
        &self,
        layers: &Layers,
        chain: &[LayerId],
        tree: &Tree,
        mount: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<T> {
        let Some(top) = chain.last() else {
            return Err(Error::InvalidArgument("a chain of no layers".to_owned()));
        };
        let path = path_of(layers, *top, tree);
        if path.exists() {
            return mount(&path);
        }
        let image = erofs::image(tree).map_err(|flaw| flaw.of(top))?;
        let fresh = path.with_extension("new");
        // Never written over: what is there may be mounted.
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &fresh)(error));
            }
            _ => {}
        }
        let mut file = File::create_new(&fresh).map_err(Error::io("create", &fresh))?;
        file.write_all(&image).map_err(Error::io("write", &fresh))?;
        let mounted = mount(&fresh);
        // Only now: it gets its other name at any moment.
        self.unsynced().push(fresh);
        mounted
    }

    /// Makes new images survive a power failure, and only then gives them the name under which
    /// they are found again.
    pub(super) fn sync(&self) {
        let fresh = std::mem::take(&mut *self.unsynced());
        for path in fresh {
            let synced = File::open(&path)
                .and_then(|file| file.sync_all())
                .and_then(|()| fs::rename(&path, path.with_extension("")));
            match synced {
                // The layer is gone, and the image with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "an image will be made again");
                }
                Ok(()) => {}
            }
        }
    }

    fn unsynced(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a chain's image is. Its name is made of what the layers' indexes are, to the byte, since it
/// refers to places in their segments.
fn path_of(layers: &Layers, top: LayerId, tree: &Tree) -> PathBuf {
    let mut name = Hasher::new();
    name.update(&[EDITION]);
    for layer in tree.layers() {
        name.update(layer.checksum());
    }
    layers.beside(top, &format!("tree-{}", name.finish().hex()))
}

/// Mounts an image at `path`, which is made.
pub(super) fn mount(image: &Path, devices: &[PathBuf], path: &Path) -> Result<()> {
    let mount = detached(image, devices).map_err(Error::io("mount", image))?;
    fs::create_dir_all(path).map_err(Error::io("create", path))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mount, "", CWD, path, flags).map_err(Error::io("mount on", path))
}

/// A mount of an image that is nowhere yet.
pub(super) fn detached(image: &Path, devices: &[PathBuf]) -> io::Result<std::os::fd::OwnedFd> {
    let fs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "source", image)?;
    for device in devices {
        fsconfig_set_string(&fs, "device", device)?;
    }
    fsconfig_set_flag(&fs, "ro")?;
    fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    Ok(fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Whether an image is mounted at `path`.
pub(super) fn is_mounted(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u32 == EROFS_MAGIC)
}
