//! The steps of an import, up to where a restore begins.

use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fchmod};
use rustix::io::Errno;
use xebec_proto::criu_images::{FileEntry, MountEntry};

use super::check::{Expected, check_images};
use super::config::{Made, Plan, Wishes, plan_config};
use super::cpu::{missing_features, processor_features};
use super::diff::{apply_diff, check_diff, delete_files};
use crate::archive::{CHECKPOINT, DELETED_FILES, DEVSHM, ROOTFS_DIFF, SPEC_DUMP, unpack};
use crate::beneath::{Beneath, Room};
use crate::error::{Error, Result};
use crate::files::Files;
use crate::images::{self, FILES, MOUNTS};
use crate::inspect::mounts_image;
use crate::metadata;
use crate::oci;

/// A bundle that is ready for a restore; removed with all that is in it unless it is kept.
#[derive(Debug)]
pub struct Bundle {
    room: Room,
}

impl Bundle {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.room.path()
    }

    /// CRIU's images.
    pub fn images(&self) -> PathBuf {
        self.path().join(CHECKPOINT)
    }

    /// Leaves what the running container needs where it is; its memory is not kept twice.
    ///
    /// # Errors
    /// The rest cannot be removed.
    pub fn keep(self) -> Result<()> {
        let images = self.images();
        fs::remove_dir_all(&images).map_err(Error::io("remove", images))?;
        for name in [ROOTFS_DIFF, DEVSHM] {
            let path = self.path().join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path)(e));
                }
                _ => {}
            }
        }
        self.room.keep();
        Ok(())
    }
}

/// Makes a bundle of an archive, which `file` names in errors: at `wishes.bundle`, where nothing may
/// be yet. The root file system gets the container's changes when all else has been checked.
///
/// # Errors
/// What must not be restored, or cannot be here; the bundle is gone then.
pub fn make_bundle(archive: File, file: &str, wishes: &Wishes) -> Result<Bundle> {
    let room = unpack_checkpoint(archive, file, &wishes.bundle)?;
    let files = Files::open(room.path())?.called(file);
    check_processor(&files)?;
    let missing = |name| Error::malformed(file, format!("{name} is missing"));
    let spec = metadata::spec_dump(&files)?.ok_or_else(|| missing(SPEC_DUMP))?;
    let plan = plan_config(&spec, wishes)?;
    let expected = Expected {
        destinations: plan.destinations.clone(),
        capabilities: plan.capabilities,
    };
    if !wishes.trusted {
        check_images(&files, &expected)?;
    }
    let root = Beneath::open(&wishes.rootfs)?;
    check_mountpoints(&files, &root)?;
    check_sources(&plan)?;
    let bundle = Bundle { room };
    write_bundle(&bundle, &plan)?;
    change_root(&files, &bundle, &root)?;
    Ok(bundle)
}

/// An archive may be one of an image layout, with the checkpoint in a layer.
fn unpack_checkpoint(archive: File, file: &str, bundle: &Path) -> Result<Room> {
    let room = Room::make(bundle)?;
    unpack(archive, file, &room)?;
    if !oci::is_layout(room.path()) {
        return Ok(room);
    }
    let layout = Room::make_in(bundle.parent().unwrap_or(Path::new(".")))?;
    let inner = oci::open_archive(room.path(), None)?;
    unpack(inner, file, &layout)?;
    drop(room);
    let path = layout.keep();
    fs::rename(&path, bundle).map_err(Error::io("rename", &path))?;
    Room::adopt(bundle)
}

/// Processes that were started with more than is here would die of it.
fn check_processor(files: &Files) -> Result<()> {
    let container = metadata::config_dump(files)?.unwrap_or_default();
    let path = "/proc/cpuinfo";
    let here = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let here = processor_features(&here);
    match missing_features(&container.processor_features, &here).as_slice() {
        [] => Ok(()),
        missing => {
            let reason = format!("this processor lacks {}", missing.join(", "));
            Err(Error::refused(files.shown(), "processorFeatures", reason))
        }
    }
}

/// CRIU follows links of the root file system to where it mounts: there must be none.
fn check_mountpoints(files: &Files, root: &Beneath) -> Result<()> {
    for name in files.images().filter_map(mounts_image) {
        for mount in images::read::<MountEntry>(files, name, &MOUNTS)? {
            let inside = Path::new(mount.mountpoint.trim_start_matches('/'));
            let found = root.open_at(inside, OFlags::PATH, Mode::empty());
            if !inside.as_os_str().is_empty() && matches!(found, Err(Errno::LOOP)) {
                let reason = "its mountpoint is reached through a symlink of the root file system";
                return Err(Error::refused(files.shown(), mount.mountpoint, reason));
            }
        }
    }
    Ok(())
}

/// What is bound from the host has to be there.
fn check_sources(plan: &Plan) -> Result<()> {
    let mounts = plan.config["mounts"].as_array().into_iter().flatten();
    for mount in mounts {
        let destination = mount["destination"].as_str().unwrap_or_default();
        let source = Path::new(mount["source"].as_str().unwrap_or_default());
        let is_made = plan.made.iter().any(|made| made.path() == source);
        if plan.destinations.contains(destination) && !is_made && !source.exists() {
            let reason = format!(
                "{}, which is bound there, is missing here",
                source.display()
            );
            return Err(Error::refused(SPEC_DUMP, destination, reason));
        }
    }
    Ok(())
}

fn write_bundle(bundle: &Bundle, plan: &Plan) -> Result<()> {
    let text = plan.config.to_string();
    write(&bundle.path().join("config.json"), text.as_bytes(), 0o600)?;
    for made in &plan.made {
        match made {
            Made::Shm(path) => {
                let mut builder = fs::DirBuilder::new();
                std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o1777);
                builder.create(path).map_err(Error::io("mkdir", path))?;
            }
            Made::File(path, source) => {
                // What the host has not is empty.
                let content = source.and_then(|source| fs::read(source).ok());
                write(path, &content.unwrap_or_default(), 0o644)?;
            }
        }
    }
    Ok(())
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let opened = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    opened
        .and_then(|mut file| file.write_all(content))
        .map_err(Error::io("write", path))
}

/// Gives the root file system's own directory the mode that it had: no image says which, and CRIU
/// restores nothing in a directory of another.
fn adapt_root_mode(files: &Files, root: &Beneath) -> Result<()> {
    let open_files = images::read::<FileEntry>(files, "files", &FILES)?;
    let mut regular = open_files.iter().filter_map(|file| file.reg.as_ref());
    let mode = regular
        .find(|file| file.name == "/")
        .and_then(|file| file.mode);
    match mode {
        Some(mode) => fchmod(root.fd(), Mode::from_raw_mode(mode & 0o7777))
            .map_err(Error::io("chmod", root.path())),
        None => Ok(()),
    }
}

/// Brings the root file system up to date, and `/dev/shm`.
fn change_root(files: &Files, bundle: &Bundle, root: &Beneath) -> Result<()> {
    let shm = bundle.path().join("shm");
    let shm = if shm.is_dir() {
        Some(Beneath::open(&shm)?)
    } else {
        None
    };
    let changes = [(ROOTFS_DIFF, Some(root)), (DEVSHM, shm.as_ref())];
    let present = || {
        changes
            .iter()
            .filter(|(name, _)| files.sizes().contains_key(*name))
    };
    for (name, _) in present() {
        check_diff(open(bundle, name)?, name)?;
    }
    let deleted = files.get(DELETED_FILES)?;
    adapt_root_mode(files, root)?;
    for (name, place) in present() {
        if let Some(place) = place {
            apply_diff(open(bundle, name)?, name, place)?;
        }
    }
    deleted.map_or(Ok(()), |list| delete_files(list, root))
}

fn open(bundle: &Bundle, name: &str) -> Result<impl Read> {
    let path = bundle.path().join(name);
    File::open(&path).map_err(Error::io("open", path))
}
