//! Directories below which names of others are followed, by descriptors and never through a link:
//! whatever an archive says, nothing outside is reached.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, open, openat2};
use rustix::io::{Errno, retry_on_intr};

use crate::error::{Error, Result};

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// A directory, held open.
#[derive(Debug)]
pub struct Beneath {
    path: PathBuf,
    root: OwnedFd,
    resolve: ResolveFlags,
}

impl Beneath {
    /// Opens a directory.
    ///
    /// # Errors
    /// It is not there, or not a directory.
    pub fn open(path: &Path) -> Result<Self> {
        let root = open(path, OFlags::RDONLY | DIRECTORY, Mode::empty())
            .map_err(Error::io("open", path))?;
        Ok(Self {
            path: path.to_owned(),
            root,
            resolve: ResolveFlags::BENEATH
                | ResolveFlags::NO_SYMLINKS
                | ResolveFlags::NO_MAGICLINKS
                | ResolveFlags::NO_XDEV,
        })
    }

    /// The directory's own path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens what is at `name`, which nothing of leads through a symlink or to another file system.
    pub(crate) fn open_at(
        &self,
        name: &Path,
        flags: OFlags,
        mode: Mode,
    ) -> rustix::io::Result<OwnedFd> {
        let open = || {
            openat2(
                &self.root,
                name,
                flags | OFlags::CLOEXEC,
                mode,
                self.resolve,
            )
        };
        // The kernel gives up when something is renamed meanwhile.
        loop {
            match retry_on_intr(open) {
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
    }

    /// The directory that is to hold `name`, made with its own parents where they are missing, and
    /// the last component of `name`.
    pub(crate) fn parent<'a>(
        &self,
        name: &'a Path,
        mode: Mode,
    ) -> rustix::io::Result<(OwnedFd, &'a OsStr)> {
        let last = name.file_name().ok_or(Errno::INVAL)?;
        let parent = match name.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        match self.open_at(parent, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => {
                let (above, own) = self.parent(parent, mode)?;
                match mkdirat(&above, own, mode) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                Ok((self.open_at(parent, flags, Mode::empty())?, last))
            }
            found => Ok((found?, last)),
        }
    }
}

/// A new directory for its owner only, which is removed with all that is in it unless it is kept.
#[derive(Debug)]
pub struct Room {
    beneath: Option<Beneath>,
}

impl Room {
    /// Makes the directory; its parent has to be there.
    ///
    /// # Errors
    /// There is something of this name, or it cannot be made.
    pub fn make(path: &Path) -> Result<Self> {
        mkdirat(CWD, path, Mode::RWXU).map_err(Error::io("mkdir", path))?;
        match Beneath::open(path) {
            Ok(beneath) => Ok(Self {
                beneath: Some(beneath),
            }),
            Err(error) => {
                // What is told is why it is of no use.
                let _ = fs::remove_dir(path);
                Err(error)
            }
        }
    }

    /// Takes over a directory that is there.
    pub(crate) fn adopt(path: &Path) -> Result<Self> {
        let beneath = Some(Beneath::open(path)?);
        Ok(Self { beneath })
    }

    /// Makes a directory of an unused name in `parent`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_in(parent: &Path) -> Result<Self> {
        let pid = std::process::id();
        for number in 0_u32.. {
            let path = parent.join(format!(".xebec-checkpoint-{pid}-{number}"));
            match Self::make(&path) {
                Err(Error::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::AlreadyExists => {}
                result => return result,
            }
        }
        Err(Error::io("mkdir", parent)(Errno::EXIST))
    }

    /// The directory.
    pub fn beneath(&self) -> &Beneath {
        // Taken only by `keep`, which consumes it.
        self.beneath.as_ref().expect("kept rooms are gone")
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        self.beneath().path()
    }

    /// Leaves the directory where it is.
    pub fn keep(mut self) -> PathBuf {
        let beneath = self.beneath.take().expect("kept rooms are gone");
        beneath.path
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(beneath) = &self.beneath {
            // Nobody is left to be told.
            let _ = fs::remove_dir_all(&beneath.path);
        }
    }
}
