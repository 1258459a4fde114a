//! Unpacks layers into a directory, for a trial.
//!
//! An image is not to be trusted: paths are resolved as if the directory were the root. What a trial
//! does not need (devices, time stamps) is left out.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bstr::{BString, ByteSlice};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags};
use rustix::io::Errno;

use crate::convert::spool::Spool;
use crate::convert::tar::TarEntry;
use crate::error::{Error, Result};
use crate::formats::estargz::toc::EntryType;

/// Bytes copied at once.
const PIECE: u64 = 1 << 20;

/// Puts a layer upon what is in `tree`; `what` names it in errors.
pub(super) fn apply(tree: &Path, spool: &Spool, what: &str) -> Result<()> {
    let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(tree, open, Mode::empty()).map_err(Error::io("open", tree))?;
    let target = Target { root };
    let mut own = BTreeSet::new();
    for entry in &spool.entries {
        let of_entry = |errno: io::Error| {
            let path = PathBuf::from(format!("{} of layer {what}", entry.name));
            Error::io("unpack", &path)(errno)
        };
        target.add(entry, &spool.file, &mut own).map_err(of_entry)?;
    }
    Ok(())
}

struct Target {
    root: OwnedFd,
}

impl Target {
    /// Adds an entry; `own` has the names that the layer has added so far, which whiteouts spare.
    fn add(&self, entry: &TarEntry, data: &File, own: &mut BTreeSet<BString>) -> io::Result<()> {
        let (parent, name) = split(&entry.name);
        if name == b".wh..wh..opq" {
            return self.clear(parent, own);
        }
        if name.starts_with(b".wh..wh.") {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return match self.directory(parent, false) {
                Ok(parent) => remove(&parent, hidden),
                Err(Errno::NOENT) => Ok(()),
                Err(errno) => Err(errno.into()),
            };
        }
        own.insert(entry.name.clone());
        if name.is_empty() {
            return set_owner(&self.root, &self.root, b"", entry);
        }
        let parent = self.directory(parent, true)?;
        match entry.kind {
            EntryType::Dir => {
                let mode = Mode::from_raw_mode(0o755);
                match rustix::fs::mkdirat(&parent, name, mode) {
                    Err(Errno::EXIST) if !is_directory(&parent, name) => {
                        remove(&parent, name)?;
                        rustix::fs::mkdirat(&parent, name, mode)?;
                    }
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            EntryType::Reg => {
                remove(&parent, name)?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let mode = Mode::from_raw_mode(0o600);
                let file = File::from(rustix::fs::openat(&parent, name, flags, mode)?);
                copy(data, entry, &file)?;
                set_owner(&parent, &parent, name, entry)?;
                return set_xattrs(&file, entry);
            }
            EntryType::Symlink => {
                remove(&parent, name)?;
                rustix::fs::symlinkat(entry.link.as_slice(), &parent, name)?;
            }
            EntryType::Hardlink => {
                remove(&parent, name)?;
                let (dir, target) = split(&entry.link);
                let dir = self.directory(dir, false)?;
                rustix::fs::linkat(&dir, target, &parent, name, AtFlags::empty())?;
                return Ok(());
            }
            // The runtime gives the container the devices that it may have.
            _ => return Ok(()),
        }
        set_owner(&parent, &parent, name, entry)
    }

    /// A directory, with links in its path followed inside the tree only.
    fn directory(&self, path: &[u8], create: bool) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
            Err(Errno::NOENT) if create && path != b"." => {
                let (above, name) = split(path);
                let parent = self.directory(above, true)?;
                match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve),
                    // A link to what is not there: it is made where the link leads. Links in a
                    // circle are another error.
                    Err(Errno::EXIST) => {
                        let link = rustix::fs::readlinkat(&parent, name, Vec::new())?;
                        let link = link.to_bytes().trim_end_with(|c| c == '/');
                        match link.strip_prefix(b"/") {
                            Some(absolute) => self.directory(absolute, true),
                            None => self.directory(&[above, b"/", link].concat(), true),
                        }
                    }
                    Err(errno) => Err(errno),
                }
            }
            opened => opened,
        }
    }

    /// Removes what lower layers have in a directory.
    fn clear(&self, path: &[u8], own: &BTreeSet<BString>) -> io::Result<()> {
        let dir = match self.directory(path, false) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        for entry in fs::read_dir(proc_path(&dir, b""))? {
            let name = entry?.file_name();
            let name = name.as_bytes();
            let full = if path.is_empty() {
                name.to_vec()
            } else {
                [path, b"/", name].concat()
            };
            if !own.contains(full.as_bstr()) {
                remove(&dir, name)?;
            }
        }
        Ok(())
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.rsplit_once_str("/").unwrap_or((b"", path))
}

/// A path by which the standard library reaches what a descriptor stands for.
fn proc_path(dir: &OwnedFd, name: &[u8]) -> PathBuf {
    let mut path = OsString::from(format!("/proc/self/fd/{}/", dir.as_raw_fd()));
    path.push(OsStr::from_bytes(name));
    path.into()
}

fn is_directory(parent: &OwnedFd, name: &[u8]) -> bool {
    fs::symlink_metadata(proc_path(parent, name)).is_ok_and(|metadata| metadata.is_dir())
}

/// Removes a name and all below it, if it is there.
fn remove(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let removed = if is_directory(parent, name) {
        fs::remove_dir_all(proc_path(parent, name))
    } else {
        rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(io::Error::from)
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn copy(data: &File, entry: &TarEntry, to: &File) -> io::Result<()> {
    let mut buffer = vec![0; PIECE.min(entry.size) as usize];
    let mut done = 0;
    while done < entry.size {
        let piece = &mut buffer[..PIECE.min(entry.size - done) as usize];
        data.read_exact_at(piece, entry.data_at + done)?;
        to.write_all_at(piece, done)?;
        done += piece.len() as u64;
    }
    Ok(())
}

/// Owner first: a change of it takes set-uid bits away.
fn set_owner(dir: &OwnedFd, parent: &OwnedFd, name: &[u8], entry: &TarEntry) -> io::Result<()> {
    let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (uid, gid) = (Uid::from_raw(id(entry.uid)?), Gid::from_raw(id(entry.gid)?));
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), flags)?;
    if entry.kind != EntryType::Symlink {
        let mode = Mode::from_raw_mode(entry.mode as u32);
        // A name that was made just now, by us and no link.
        let name = if name.is_empty() { b"." } else { name };
        rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
    }
    Ok(())
}

fn set_xattrs(file: &File, entry: &TarEntry) -> io::Result<()> {
    for (name, value) in &entry.xattrs {
        match rustix::fs::fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
            // A trial runs without attributes that this file system does not have.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::spool::spool;

    /// A layer of lines: `d NAME`, `f NAME CONTENT`, `l NAME TARGET`, `h NAME TARGET`.
    fn layer(lines: &[(char, &str, &str)]) -> Spool {
        let mut builder = tar::Builder::new(Vec::new());
        for &(kind, name, text) in lines {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o4711);
            let ids = (rustix::process::getuid(), rustix::process::getgid());
            header.set_uid(ids.0.as_raw().into());
            header.set_gid(ids.1.as_raw().into());
            header.set_size(0);
            match kind {
                'd' => {
                    header.set_entry_type(tar::EntryType::Directory);
                    builder.append_data(&mut header, name, io::empty()).unwrap();
                }
                'f' => {
                    header.set_size(text.len() as u64);
                    builder
                        .append_data(&mut header, name, text.as_bytes())
                        .unwrap();
                }
                kind => {
                    header.set_entry_type(if kind == 'l' {
                        tar::EntryType::Symlink
                    } else {
                        tar::EntryType::Link
                    });
                    builder.append_link(&mut header, name, text).unwrap();
                }
            }
        }
        let archive = builder.into_inner().unwrap();
        spool(&archive[..], &std::env::temp_dir(), "x").unwrap()
    }

    #[test]
    fn layers_are_put_upon_each_other_and_whiteouts_take_away() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        let base = layer(&[
            ('f', "deep/dir/file", "1"),
            ('f', "gone", "2"),
            ('f', "old/a", "3"),
            ('h', "hard", "deep/dir/file"),
            ('d', "was-dir", ""),
        ]);
        let top = layer(&[
            ('f', ".wh.gone", ""),
            ('f', "old/b", "4"),
            ('f', "old/.wh..wh..opq", ""),
            ('f', "was-dir", "5"),
            ('f', ".wh.never", ""),
        ]);
        apply(tree, &base, "base").unwrap();
        apply(tree, &top, "top").unwrap();
        let read = |name: &str| fs::read_to_string(tree.join(name)).unwrap();
        assert_eq!(read("deep/dir/file") + &read("hard"), "11");
        assert_eq!(read("old/b") + &read("was-dir"), "45");
        assert!(!tree.join("gone").exists() && !tree.join("old/a").exists());
        let mode = fs::metadata(tree.join("hard")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&mode) & 0o7777, 0o4711);
    }

    #[test]
    fn links_lead_nowhere_but_into_the_tree() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = outside.path().to_str().unwrap();
        let evil = layer(&[
            ('l', "out", path),
            ('l', "up", "../../../../../../../.."),
            ('f', "out/file", "evil"),
            ('f', "up/above", "evil"),
            ('f', "up/.wh.keep", ""),
        ]);
        fs::write(outside.path().join("keep"), "x").unwrap();
        apply(dir.path(), &evil, "evil").unwrap();
        let names: Vec<_> = fs::read_dir(outside.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert!(dir.path().join("above").exists());
    }
}
