//! `tmpcopyup`: a new tmpfs starts with what the directory it covers holds.
//!
//! The child does it, for only it sees the earlier mounts that the directory may lie on, and only
//! it owns the tmpfs. It needs no memory but its stack: one level of directories is one call.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, Stat, Uid, chownat, fchmod, fchown, fstat,
    mkdirat, mknodat, openat, readlinkat_raw, sendfile, statat, symlinkat,
};
use rustix::io::Errno;

/// Deepest nesting that is copied; two descriptors are open for each level.
const MAX_DEPTH: usize = 200;
/// Room for some names of a directory at a time; one takes at most 280 bytes.
const NAMES: usize = 2048;
/// Longest target of a symlink, with its zero byte.
const PATH_MAX: usize = 4096;
/// As much as one call sends.
const CHUNK: usize = 0x7fff_f000;
/// Until everything is in it, what is copied is nobody else's.
const PRIVATE: Mode = Mode::from_raw_mode(0o700);

/// Copies the entries of the directory `from` into `to`: contents, modes and owners. No symlink is
/// followed, so that nobody who changes the directory meanwhile leads the copy elsewhere.
pub(super) fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let from = open_dir(from, c".")?;
    let to = open_dir(to, c".")?;
    copy_entries(from.as_fd(), to.as_fd(), MAX_DEPTH)
}

fn copy_entries(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); NAMES];
    let mut entries = RawDir::new(from, &mut space);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name, depth)?;
        }
    }
    Ok(())
}

fn copy_entry(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    depth: usize,
) -> Result<(), Errno> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => copy_dir(from, to, name, depth),
        FileType::RegularFile => copy_file(from, to, name),
        FileType::Symlink => {
            copy_link(from, to, name)?;
            let (uid, gid) = owner(&stat);
            chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        }
        kind => {
            mknodat(
                to,
                name,
                kind,
                Mode::from_raw_mode(stat.st_mode),
                stat.st_rdev,
            )?;
            let (uid, gid) = owner(&stat);
            chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        }
    }
}

fn copy_dir(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    depth: usize,
) -> Result<(), Errno> {
    let depth = depth.checked_sub(1).ok_or(Errno::LOOP)?;
    let from = open_dir(from, name)?;
    mkdirat(to, name, PRIVATE)?;
    let to = open_dir(to, name)?;
    copy_entries(from.as_fd(), to.as_fd(), depth)?;
    copy_attributes(&fstat(&from)?, to.as_fd())
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    // Should it have become something else meanwhile, opening it must not block.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let from = openat(from, name, flags | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::AGAIN);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let to = openat(to, name, flags | OFlags::CLOEXEC, PRIVATE)?;
    while sendfile(&to, &from, None, CHUNK)? != 0 {}
    copy_attributes(&stat, to.as_fd())
}

fn copy_link(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let mut target = [0; PATH_MAX];
    let length = readlinkat_raw(from, name, &mut target[..PATH_MAX - 1])?;
    let target = CStr::from_bytes_with_nul(&target[..=length]).map_err(|_| Errno::INVAL)?;
    symlinkat(target, to, name)
}

/// The owner first: changing it takes the set-id bits away.
fn copy_attributes(stat: &Stat, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let (uid, gid) = owner(stat);
    fchown(to, Some(uid), Some(gid))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode))
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

fn open_dir(dir: BorrowedFd<'_>, name: &CStr) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    #[test]
    fn contents_modes_and_links_are_copied_and_no_link_is_followed() {
        let (from, to) = (tempfile::tempdir(), tempfile::tempdir());
        let (from, to) = (from.expect("directory"), to.expect("directory"));
        let at = |path: &str| from.path().join(path);
        fs::create_dir_all(at("a/b")).expect("made");
        fs::set_permissions(at("a"), fs::Permissions::from_mode(0o2751)).expect("set");
        fs::write(at("a/b/file"), vec![7; 100_000]).expect("written");
        fs::set_permissions(at("a/b/file"), fs::Permissions::from_mode(0o4640)).expect("set");
        symlink("/etc/passwd", at("a/link")).expect("made");
        symlink("..", at("up")).expect("made");
        for number in 0..100 {
            fs::write(at(&format!("many-{number}")), "").expect("written");
        }
        let fd = |dir: &tempfile::TempDir| fs::File::open(dir.path()).expect("opened");
        copy_up(fd(&from).as_fd(), fd(&to).as_fd()).expect("copied");

        let copy = |path: &str| to.path().join(path);
        let mode = |path: &str| fs::symlink_metadata(copy(path)).expect("there").mode() & 0o7777;
        assert_eq!((mode("a"), mode("a/b/file")), (0o2751, 0o4640));
        assert_eq!(fs::read(copy("a/b/file")).expect("read"), vec![7; 100_000]);
        let link = fs::read_link(copy("a/link")).expect("a link");
        assert_eq!(link.to_str(), Some("/etc/passwd"));
        assert_eq!(fs::read_dir(to.path()).expect("read").count(), 102);
    }
}
