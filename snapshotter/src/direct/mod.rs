//! Lazy images that are mounted by command rather than for a container: `image mount`.
//!
//! The command plays containerd's part against the running daemon: it prepares the layers of the
//! image by its snapshots API and mounts a view of them. The names of these snapshots begin with
//! [`PREFIX`]. containerd must not see them: its collector removes what it has no record of.
//!
//! Only what can be read lazily is mounted, and nothing is unpacked here.

mod client;
mod plan;

use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, UnmountFlags, mount as system_mount, mount_bind_recursive, mount_remount, unmount,
};
use serde_json::Value;
use xebec_proto::types::Mount;

use self::client::Client;
use self::plan::{options, steps, view_of};
use crate::digest::Digest;
use crate::discover::Image;
use crate::error::{Error, Result};

pub use self::plan::PREFIX;

/// Largest configuration of an image.
const MAX_CONFIG: u64 = 4 << 20;

/// Mounts `image` read-only at `dir`, by the daemon at `socket`. What is mounted there by this
/// already stays, if it is the same image.
pub fn mount(socket: &Path, image: &Image, dir: &Path) -> Result<()> {
    let dir = real(dir)?;
    let client = Client::connect(socket)?;
    let steps = steps(
        image.reference(),
        image.digest(),
        image.manifest(),
        &diff_ids(image)?,
    )?;
    let (key, top) = (view_of(&dir), steps.last().map(|step| step.name.clone()));
    let mounts = match client.parent(&key)? {
        Some(parent) if Some(&parent) != top.as_ref() => {
            return Err(Error::FailedPrecondition(format!(
                "another image is mounted at {}",
                dir.display()
            )));
        }
        Some(_) if is_mount_point(&dir)? => return Ok(()),
        // The mount went with the last boot, or with whoever was killed before it.
        Some(_) => client.mounts(&key)?,
        None => {
            for (number, step) in steps.iter().enumerate() {
                if let Err(error) = client.prepare(step) {
                    client.forget(steps[..number].iter().rev().map(|step| &*step.name));
                    return Err(error);
                }
            }
            client.view(&key, top.as_deref().unwrap_or_default())?
        }
    };
    mounts
        .iter()
        .try_for_each(|mount| attach(mount, &dir))
        .inspect_err(|_| {
            let _ = unmount(&dir, UnmountFlags::DETACH);
            client.forget(std::iter::once(&*key));
        })
}

/// Takes away what [`mount()`] has mounted at `dir`, and the layers that nothing else needs.
pub fn unmount_at(socket: &Path, dir: &Path) -> Result<()> {
    let dir = real(dir)?;
    let client = Client::connect(socket)?;
    let key = view_of(&dir);
    let Some(top) = client.parent(&key)? else {
        return Err(Error::NotFound(format!(
            "image mounted at {}",
            dir.display()
        )));
    };
    match unmount(&dir, UnmountFlags::empty()) {
        // Not mounted since the last boot.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(Error::io("unmount", &dir)(errno)),
    }
    client.remove(&key)?;
    client.remove_chain(top)
}

fn real(dir: &Path) -> Result<std::path::PathBuf> {
    let path = dir.canonicalize().map_err(Error::io("resolve", dir))?;
    if !path.is_dir() {
        return Err(Error::io("mount an image at", &path)(Errno::NOTDIR));
    }
    Ok(path)
}

/// The digests of the unpacked layers, bottom first, as the image's configuration has them.
fn diff_ids(image: &Image) -> Result<Vec<Digest>> {
    let config = &image.manifest().config;
    let what = format!("configuration {} of {}", config.digest, image.reference());
    let malformed = |reason: String| Error::Malformed {
        what: what.clone(),
        reason,
    };
    if config.size > MAX_CONFIG {
        return Err(malformed(format!("is larger than {MAX_CONFIG} bytes")));
    }
    let bytes = image.blob(config)?.read_range(0, config.size)?;
    config.digest.verify(&bytes, &what)?;
    let config: Value =
        serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
    let ids = config
        .pointer("/rootfs/diff_ids")
        .cloned()
        .unwrap_or_default();
    serde_json::from_value(ids).map_err(|error| malformed(format!("rootfs.diff_ids: {error}")))
}

/// Whether something is mounted at `dir` itself.
fn is_mount_point(dir: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| {
        let found = path.symlink_metadata().map_err(Error::io("stat", path))?;
        Ok::<_, Error>(found.dev())
    };
    Ok(match dir.parent() {
        Some(parent) => device(dir)? != device(parent)?,
        None => true,
    })
}

/// Makes one mount of a snapshot, which is read-only.
fn attach(mount: &Mount, dir: &Path) -> Result<()> {
    let made = match &*mount.r#type {
        "bind" => mount_bind_recursive(&*mount.source, dir)
            .and_then(|()| mount_remount(dir, MountFlags::BIND | MountFlags::RDONLY, "")),
        kind => {
            let data = std::ffi::CString::new(options(&mount.options));
            let data = data.map_err(|_| Error::Internal("options of a mount".to_owned()))?;
            system_mount(&*mount.source, dir, kind, MountFlags::RDONLY, &*data)
        }
    };
    made.map_err(Error::io("mount an image at", dir))
}
