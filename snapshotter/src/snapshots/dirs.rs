//! The directories of ordinary layers: `ROOT/snapshots/ID/{fs,work}`.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use super::record::{Kind, SnapshotId};
use crate::error::{Error, Result};

/// User and group id on the host.
pub type Owner = (u32, u32);

/// All layer directories under one root.
#[derive(Debug)]
pub struct LayerDirs {
    root: PathBuf,
}

impl LayerDirs {
    /// Opens the directory `root`, or creates it for its owner alone.
    pub fn open(root: PathBuf) -> Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder
            .mode(0o700)
            .recursive(true)
            .create(&root)
            .map_err(Error::io("create", &root))?;
        Ok(Self { root })
    }

    /// The files of snapshot `id`.
    pub fn upper(&self, id: SnapshotId) -> PathBuf {
        self.path(id).join("fs")
    }

    /// Overlayfs's scratch directory of snapshot `id`.
    pub fn work(&self, id: SnapshotId) -> PathBuf {
        self.path(id).join("work")
    }

    /// Makes the directories of a new snapshot; `owner` becomes that of its root directory.
    pub fn create(&self, id: SnapshotId, kind: Kind, owner: Option<Owner>) -> Result<()> {
        let path = self.path(id);
        // Left by a transaction that did not commit: the number was not used up.
        delete(&path)?;
        let made = self.fill(&path, id, kind, owner);
        if made.is_err() {
            delete(&path)?;
        }
        made
    }

    fn fill(&self, path: &Path, id: SnapshotId, kind: Kind, owner: Option<Owner>) -> Result<()> {
        make_dir(path, 0o700)?;
        let upper = self.upper(id);
        make_dir(&upper, 0o755)?;
        if kind == Kind::Active {
            make_dir(&self.work(id), 0o711)?;
        }
        if let Some((uid, gid)) = owner {
            lchown(&upper, Some(uid), Some(gid)).map_err(Error::io("chown", &upper))?;
        }
        Ok(())
    }

    /// Whatever is in the root and belongs to none of `ids`.
    pub fn orphans(&self, ids: &HashSet<SnapshotId>) -> Result<Vec<PathBuf>> {
        let mut orphans = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(Error::io("read", &self.root))? {
            let entry = entry.map_err(Error::io("read", &self.root))?;
            let id = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if !id.is_some_and(|id| ids.contains(&SnapshotId(id))) {
                orphans.push(entry.path());
            }
        }
        Ok(orphans)
    }

    fn path(&self, id: SnapshotId) -> PathBuf {
        self.root.join(id.to_string())
    }
}

/// Makes one directory with exactly this mode, whatever the umask: it may become a container's `/`.
fn make_dir(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir(path).map_err(Error::io("create", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::io("chmod", path))
}

/// Deletes a tree; one that is not there is deleted already.
///
/// A mount that someone left inside is detached first: what is mounted there is not ours.
pub fn delete(path: &Path) -> Result<()> {
    if !path.try_exists().map_err(Error::io("stat", path))? {
        return Ok(());
    }
    let table = Path::new("/proc/self/mountinfo");
    let mountinfo = fs::read(table).map_err(Error::io("read", table))?;
    for point in mounts_below(&mountinfo, path).iter().rev() {
        tracing::warn!(path = %point.display(), "detaching a mount inside a removed layer");
        unmount(point, UnmountFlags::DETACH).map_err(Error::io("unmount", point))?;
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            fs::remove_file(path).map_err(Error::io("delete", path))
        }
        // Somebody else deletes the same tree.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("delete", path)(error)),
        Ok(()) => Ok(()),
    }
}

/// Mount points at or below `dir`, in the order in which they were mounted (proc(5)).
fn mounts_below(mountinfo: &[u8], dir: &Path) -> Vec<PathBuf> {
    mountinfo
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsString::from_vec(unescape(field))))
        .filter(|point| point.starts_with(dir))
        .collect()
}

/// Blanks, tabs, newlines and backslashes stand in mountinfo as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn dirs() -> (tempfile::TempDir, LayerDirs) {
        let dir = tempfile::tempdir().unwrap();
        let dirs = LayerDirs::open(dir.path().join("snapshots")).unwrap();
        (dir, dirs)
    }

    #[test]
    fn only_an_active_snapshot_has_a_work_directory() {
        let (_dir, dirs) = dirs();
        dirs.create(SnapshotId(1), Kind::Active, None).unwrap();
        dirs.create(SnapshotId(2), Kind::View, None).unwrap();
        assert!(dirs.work(SnapshotId(1)).is_dir());
        assert!(!dirs.work(SnapshotId(2)).exists());
        let mode = fs::metadata(dirs.upper(SnapshotId(2))).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }

    #[test]
    fn what_an_aborted_transaction_left_is_replaced() {
        let (_dir, dirs) = dirs();
        dirs.create(SnapshotId(1), Kind::Active, None).unwrap();
        fs::write(dirs.upper(SnapshotId(1)).join("old"), "").unwrap();
        dirs.create(SnapshotId(1), Kind::Active, None).unwrap();
        assert_eq!(fs::read_dir(dirs.upper(SnapshotId(1))).unwrap().count(), 0);
    }

    #[test]
    fn orphans_are_all_that_no_snapshot_owns() {
        let (_dir, dirs) = dirs();
        for id in 1..4 {
            dirs.create(SnapshotId(id), Kind::View, None).unwrap();
        }
        fs::write(dirs.root.join("stray"), "").unwrap();
        let mut orphans = dirs
            .orphans(&[SnapshotId(2), SnapshotId(9)].into())
            .unwrap();
        orphans.sort();
        assert_eq!(
            orphans,
            ["1", "3", "stray"].map(|name| dirs.root.join(name))
        );
    }

    #[test]
    fn deleting_twice_is_no_error() {
        let (_dir, dirs) = dirs();
        dirs.create(SnapshotId(1), Kind::Active, None).unwrap();
        for _ in 0..2 {
            delete(&dirs.path(SnapshotId(1))).unwrap();
        }
    }

    #[test]
    fn a_stray_file_is_deleted_like_a_tree() {
        let (_dir, dirs) = dirs();
        let stray = dirs.root.join("stray");
        fs::write(&stray, "x").unwrap();
        delete(&stray).unwrap();
        assert!(!stray.exists());
    }

    #[test]
    fn mounts_inside_a_directory_are_found_by_their_unescaped_path() {
        let mountinfo = b"24 1 0:22 / /r/1 rw - tmpfs t rw\n\
            25 24 0:23 / /r/1/fs/a\\040b rw - tmpfs t rw\n\
            26 1 0:24 / /r/10 rw - tmpfs t rw\n";
        let below = mounts_below(mountinfo, Path::new("/r/1"));
        assert_eq!(below, [Path::new("/r/1"), Path::new("/r/1/fs/a b")]);
    }
}
