//! Opening and making paths inside the root.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat_raw};
use rustix::io::Errno;

/// What a path shall be, and be made as when it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Directory,
    File,
}

/// Longest path, with its zero byte.
const PATH_MAX: usize = 4096;
/// How often a path is tried while others rename on it: nobody can hold a launch up for ever.
const ATTEMPTS: usize = 10_000;
/// As many symlinks as the kernel follows.
const MAX_LINKS: usize = 40;
/// Permissions of directories that are made.
const MADE: Mode = Mode::from_raw_mode(0o755);
/// Permissions of a file that is made to be mounted over.
const MADE_FILE: Mode = Mode::from_raw_mode(0o644);

/// Opens an existing path (`O_PATH` added to `flags`), never leaving `root`.
pub(crate) fn open_inside(
    root: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
    plain: bool,
) -> Result<OwnedFd, Errno> {
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if plain {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    let path = if path.is_empty() { c"." } else { path };
    for _ in 0..ATTEMPTS {
        // EAGAIN says that something was renamed meanwhile and the check could not be made.
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens the place of a mount as an `O_PATH` descriptor, making it when it is missing.
pub(crate) fn open_target(
    root: BorrowedFd<'_>,
    path: &CStr,
    want: Want,
    plain: bool,
) -> Result<OwnedFd, Errno> {
    let flags = match want {
        Want::Directory => OFlags::PATH | OFlags::DIRECTORY,
        Want::File => OFlags::PATH,
    };
    match open_inside(root, path, flags, plain) {
        Err(Errno::NOENT) => {
            if !make_last(root, path, want)? {
                make(root, path, want)?;
            }
            open_inside(root, path, flags, plain)
        }
        result => result,
    }
}

/// Makes the last component of `path` in a directory that is there already; tells whether that
/// was all that was missing.
fn make_last(root: BorrowedFd<'_>, path: &CStr, want: Want) -> Result<bool, Errno> {
    let bytes = path.to_bytes_with_nul();
    let name_at = name_at(bytes);
    let name = CStr::from_bytes_with_nul(&bytes[name_at..]).map_err(|_| Errno::INVAL)?;
    let holder;
    let dir = if name_at == 0 {
        root
    } else {
        let mut parent = PathBuffer::new(&bytes[..name_at - 1])?;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        holder = match open_inside(root, parent.prefix(parent.len)?, flags, false) {
            Ok(parent) => parent,
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(errno),
        };
        holder.as_fd()
    };
    match make_one(dir, name, want) {
        Ok(()) => Ok(true),
        // A symlink that leads to nothing, or a path that ends in no name.
        Err(Errno::EXIST | Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Where the last component begins.
fn name_at(path: &[u8]) -> usize {
    path.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1)
}

/// Opens the directory that holds the last component, making it when it is missing; returns that
/// component too.
pub(crate) fn open_parent<'p>(
    root: BorrowedFd<'_>,
    path: &'p CStr,
) -> Result<(OwnedFd, &'p CStr), Errno> {
    let bytes = path.to_bytes_with_nul();
    let name_at = name_at(bytes);
    let name = CStr::from_bytes_with_nul(&bytes[name_at..]).map_err(|_| Errno::INVAL)?;
    let mut parent = PathBuffer::new(&bytes[..name_at.saturating_sub(1)])?;
    let parent = open_target(root, parent.prefix(parent.len)?, Want::Directory, false)?;
    Ok((parent, name))
}

/// Makes every missing component of `path`, following symlinks that lead to nothing as a write
/// through them would.
fn make(root: BorrowedFd<'_>, path: &CStr, want: Want) -> Result<(), Errno> {
    let mut buffer = PathBuffer::new(path.to_bytes())?;
    let mut links = 0;
    let mut at = 0;
    let mut parent: Option<OwnedFd> = None;
    while let Some((start, end)) = buffer.component(at) {
        let last = buffer.component(end).is_none();
        let kind = if last { want } else { Want::Directory };
        let flags = if kind == Want::Directory {
            OFlags::PATH | OFlags::DIRECTORY
        } else {
            OFlags::PATH
        };
        match open_inside(root, buffer.prefix(end)?, flags, false) {
            Ok(found) => {
                parent = Some(found);
                at = end;
            }
            Err(Errno::NOENT) => {
                let dir = parent.as_ref().map_or(root, |fd| fd.as_fd());
                if buffer.follow_link(dir, start, end)? {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    (at, parent) = (0, None);
                } else {
                    match make_one(dir, buffer.slice(start, end)?, kind) {
                        // Somebody else may have been faster; what counts is that it can be
                        // opened afterwards.
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno),
                    }
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Makes a directory, or an empty file, in `dir`; neither may be there yet.
pub(super) fn make_one(dir: BorrowedFd<'_>, name: &CStr, want: Want) -> Result<(), Errno> {
    match want {
        Want::Directory => mkdirat(dir, name, MADE),
        Want::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(dir, name, flags, MADE_FILE).map(drop)
        }
    }
}

/// A path that can be cut and rewritten without allocating.
struct PathBuffer {
    bytes: [u8; PATH_MAX],
    len: usize,
    /// Where a zero byte stands in for another one, and for which.
    cut: Option<(usize, u8)>,
}

impl PathBuffer {
    fn new(path: &[u8]) -> Result<Self, Errno> {
        if path.len() >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let mut bytes = [0; PATH_MAX];
        bytes[..path.len()].copy_from_slice(path);
        Ok(Self {
            bytes,
            len: path.len(),
            cut: None,
        })
    }

    /// Start and end of the first component at or after `from`.
    fn component(&mut self, from: usize) -> Option<(usize, usize)> {
        self.heal();
        let path = &self.bytes[..self.len];
        let start = from + path.get(from..)?.iter().position(|&b| b != b'/')?;
        let end = path[start..]
            .iter()
            .position(|&b| b == b'/')
            .map_or(self.len, |at| start + at);
        Some((start, end))
    }

    fn prefix(&mut self, end: usize) -> Result<&CStr, Errno> {
        self.slice(0, end)
    }

    fn slice(&mut self, start: usize, end: usize) -> Result<&CStr, Errno> {
        self.heal();
        self.cut = Some((end, self.bytes[end]));
        self.bytes[end] = 0;
        CStr::from_bytes_with_nul(&self.bytes[start..=end]).map_err(|_| Errno::INVAL)
    }

    fn heal(&mut self) {
        if let Some((at, byte)) = self.cut.take() {
            self.bytes[at] = byte;
        }
    }

    /// When the component is a symlink, puts its target in its place.
    fn follow_link(
        &mut self,
        dir: BorrowedFd<'_>,
        start: usize,
        end: usize,
    ) -> Result<bool, Errno> {
        let mut target = [0; PATH_MAX];
        let length = match readlinkat_raw(dir, self.slice(start, end)?, &mut target[..]) {
            Ok(length) => length,
            Err(Errno::INVAL | Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(errno),
        };
        self.heal();
        self.replace(start, end, &target[..length])?;
        Ok(true)
    }

    fn replace(&mut self, start: usize, end: usize, target: &[u8]) -> Result<(), Errno> {
        // An absolute target starts again at the root, which is that of the container.
        let start = if target.first() == Some(&b'/') {
            0
        } else {
            start
        };
        let rest = self.len - end;
        if start + target.len() + rest >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        self.bytes.copy_within(end..self.len, start + target.len());
        self.bytes[start..start + target.len()].copy_from_slice(target);
        self.len = start + target.len() + rest;
        self.bytes[self.len] = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{AtFlags, FileType, open, statat, symlinkat};
    use std::ffi::CString;

    fn tree() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let fd = open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("open");
        (dir, fd)
    }

    fn kind(dir: &tempfile::TempDir, path: &str) -> FileType {
        let path = dir.path().join(path);
        let stat = rustix::fs::lstat(path).expect("exists");
        FileType::from_raw_mode(stat.st_mode)
    }

    #[test]
    fn missing_directories_and_files_are_made() {
        let (dir, root) = tree();
        open_target(root.as_fd(), c"a/b/c", Want::Directory, false).expect("made");
        open_target(root.as_fd(), c"a/x/file", Want::File, false).expect("made");
        assert_eq!(kind(&dir, "a/b/c"), FileType::Directory);
        assert_eq!(kind(&dir, "a/x/file"), FileType::RegularFile);
    }

    #[test]
    fn a_dangling_symlink_is_followed_inside_the_root() {
        let (dir, root) = tree();
        mkdirat(&root, c"etc", MADE).expect("mkdir");
        symlinkat(c"/run/stub/resolv.conf", &root, c"etc/absolute").expect("symlink");
        symlinkat(c"../../../out", &root, c"etc/relative").expect("symlink");
        open_target(root.as_fd(), c"etc/absolute", Want::File, false).expect("made");
        open_target(root.as_fd(), c"etc/relative/x", Want::Directory, false).expect("made");
        assert_eq!(kind(&dir, "run/stub/resolv.conf"), FileType::RegularFile);
        assert_eq!(kind(&dir, "out/x"), FileType::Directory);
    }

    #[test]
    fn a_symlink_is_refused_where_a_plain_path_is_asked_for() {
        let (_dir, root) = tree();
        symlinkat(c"/elsewhere", &root, c"proc").expect("symlink");
        let refused = open_target(root.as_fd(), c"proc", Want::Directory, true);
        assert_eq!(refused.err(), Some(Errno::LOOP));
    }

    #[test]
    fn a_symlink_loop_ends() {
        let (_dir, root) = tree();
        symlinkat(c"b", &root, c"a").expect("symlink");
        symlinkat(c"a", &root, c"b").expect("symlink");
        assert!(open_target(root.as_fd(), c"a/x", Want::Directory, false).is_err());
    }

    #[test]
    fn the_parent_of_a_path_is_made_and_its_name_returned() {
        let (_dir, root) = tree();
        let path = CString::new("dev/net/tun").expect("no zero");
        let (parent, name) = open_parent(root.as_fd(), &path).expect("made");
        assert_eq!(name, c"tun");
        statat(&root, c"dev/net", AtFlags::empty()).expect("made");
        mkdirat(&parent, c"sub", MADE).expect("usable");
        assert_eq!(open_parent(root.as_fd(), c"top").expect("root").1, c"top");
    }
}
