//! `tmpcopyup`: a new tmpfs starts with what the directory it covers holds.
//!
//! The child does it, for only it sees the earlier mounts that the directory may lie on, and only
//! it owns the tmpfs. It needs no memory but its stack: one level of directories is one call.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, Uid, XattrFlags,
    chmodat, chownat, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, linkat,
    mkdirat, mknodat, openat, readlinkat_raw, sendfile, statat, symlinkat, unlinkat, utimensat,
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
/// Longest list of extended attributes, and longest value of one (`XATTR_SIZE_MAX`).
const ATTRIBUTES: usize = 65536;
/// Where names of files with several links are kept while others of theirs may come.
const LINKS: &CStr = c".xebec.hard-links";
/// Until everything is in it, what is copied is nobody else's.
const PRIVATE: Mode = Mode::from_raw_mode(0o700);

/// Copies the entries of the directory `from` into `to`: contents, modes, owners, times, extended
/// attributes, and which names are of one file. No symlink is followed, so that nobody who changes
/// the directory meanwhile leads the copy elsewhere.
pub(super) fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    copy_tree(from, to, None).map(drop)
}

/// Copies a file system as [`copy_up`] does, with the attributes of its root, and without what is
/// mounted in it.
pub(crate) fn copy_filesystem(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let stat = fstat(from)?;
    let (from, to) = copy_tree(from, to, Some(stat.st_dev))?;
    copy_attributes(&stat, from.as_fd(), to.as_fd())
}

fn copy_tree(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    device: Option<u64>,
) -> Result<(OwnedFd, OwnedFd), Errno> {
    let from = open_dir(from, c".")?;
    let to = open_dir(to, c".")?;
    let mut links = Links {
        top: to.as_fd(),
        dir: None,
        device,
    };
    copy_entries(from.as_fd(), to.as_fd(), &mut links, MAX_DEPTH)?;
    links.remove()?;
    Ok((from, to))
}

/// A directory of the copy that has a further name of each file with several links: the child has
/// no memory to remember them in.
struct Links<'t> {
    top: BorrowedFd<'t>,
    dir: Option<OwnedFd>,
    /// The only file system whose directories are looked into.
    device: Option<u64>,
}

impl Links<'_> {
    /// The directory, made at first use.
    fn dir(&mut self) -> Result<BorrowedFd<'_>, Errno> {
        let dir = if let Some(dir) = self.dir.take() {
            dir
        } else {
            mkdirat(self.top, LINKS, PRIVATE)?;
            open_dir(self.top, LINKS)?
        };
        let dir: &OwnedFd = self.dir.insert(dir);
        Ok(dir.as_fd())
    }

    fn remove(self) -> Result<(), Errno> {
        let Some(dir) = self.dir else {
            return Ok(());
        };
        let mut space = [MaybeUninit::uninit(); NAMES];
        let mut entries = RawDir::new(&dir, &mut space);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                unlinkat(&dir, name, AtFlags::empty())?;
            }
        }
        unlinkat(self.top, LINKS, AtFlags::REMOVEDIR)
    }
}

/// The name of a file among [`Links`]: its device and inode in hexadecimal digits.
fn link_name(stat: &Stat) -> [u8; 33] {
    let mut name = [0; 33];
    let number = u128::from(stat.st_dev) << 64 | u128::from(stat.st_ino);
    for (place, digit) in name[..32].iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (4 * place) & 15) as usize];
    }
    name
}

fn copy_entries(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    links: &mut Links<'_>,
    depth: usize,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); NAMES];
    let mut entries = RawDir::new(from, &mut space);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name, links, depth)?;
        }
    }
    Ok(())
}

fn copy_entry(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    links: &mut Links<'_>,
    depth: usize,
) -> Result<(), Errno> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => return copy_dir(from, to, name, links, depth),
        FileType::RegularFile => return copy_file(from, to, name, links),
        FileType::Symlink => copy_link(from, to, name)?,
        kind => {
            let mode = Mode::from_raw_mode(stat.st_mode);
            mknodat(to, name, kind, mode, stat.st_rdev)?;
            // The mask of this process is none of theirs.
            chmodat(to, name, mode, AtFlags::empty())?;
        }
    }
    let (uid, gid) = owner(&stat);
    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    utimensat(to, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn copy_dir(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    links: &mut Links<'_>,
    depth: usize,
) -> Result<(), Errno> {
    let depth = depth.checked_sub(1).ok_or(Errno::LOOP)?;
    let from = open_dir(from, name)?;
    mkdirat(to, name, PRIVATE)?;
    let to = open_dir(to, name)?;
    let stat = fstat(&from)?;
    if links.device.is_none_or(|device| device == stat.st_dev) {
        copy_entries(from.as_fd(), to.as_fd(), links, depth)?;
    }
    copy_attributes(&stat, from.as_fd(), to.as_fd())
}

fn copy_file(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    links: &mut Links<'_>,
) -> Result<(), Errno> {
    // Should it have become something else meanwhile, opening it must not block.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let from = openat(from, name, flags | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::AGAIN);
    }
    if stat.st_nlink < 2 {
        return copy_content(&stat, from.as_fd(), to, name);
    }
    let link = link_name(&stat);
    let link = CStr::from_bytes_until_nul(&link).map_err(|_| Errno::INVAL)?;
    let links = links.dir()?;
    match linkat(links, link, to, name, AtFlags::empty()) {
        Err(Errno::NOENT) => {
            copy_content(&stat, from.as_fd(), to, name)?;
            linkat(to, name, links, link, AtFlags::empty())
        }
        linked => linked,
    }
}

fn copy_content(
    stat: &Stat,
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let to = openat(to, name, flags | OFlags::CLOEXEC, PRIVATE)?;
    while sendfile(&to, from, None, CHUNK)? != 0 {}
    copy_attributes(stat, from, to.as_fd())
}

fn copy_link(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let mut target = [0; PATH_MAX];
    let length = readlinkat_raw(from, name, &mut target[..PATH_MAX - 1])?;
    let target = CStr::from_bytes_with_nul(&target[..=length]).map_err(|_| Errno::INVAL)?;
    symlinkat(target, to, name)
}

/// The owner first: changing it takes set-id bits and capabilities away. The time last.
fn copy_attributes(stat: &Stat, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let (uid, gid) = owner(stat);
    fchown(to, Some(uid), Some(gid))?;
    // Too little room, for that there are some is all that counts.
    if flistxattr(from, &mut [0; 1]) != Ok(0) {
        copy_extended(from, to)?;
    }
    fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    futimens(to, &times(stat))
}

/// Extended attributes: capabilities, access lists, and those of users. Its room is not to be part
/// of every level of directories.
#[inline(never)]
#[expect(
    clippy::large_stack_arrays,
    reason = "the child allocates nothing, and a value may be that long"
)]
fn copy_extended(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let (mut names, mut value) = ([0; ATTRIBUTES], [0; ATTRIBUTES]);
    let length = match flistxattr(from, &mut names[..]) {
        // The file system has none.
        Err(Errno::NOTSUP) => return Ok(()),
        length => length?,
    };
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
        let value = match fgetxattr(from, name, &mut value[..]) {
            Ok(length) => &value[..length],
            // It is gone, or means nobody of this user namespace.
            Err(Errno::NODATA | Errno::OVERFLOW) => continue,
            Err(errno) => return Err(errno),
        };
        match fsetxattr(to, name, value, XattrFlags::empty()) {
            // A tmpfs does not take it, or not from this user namespace.
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    // Nanoseconds are below 10^9, whatever their type.
    let time = |tv_sec, nanoseconds| Timespec {
        tv_sec,
        tv_nsec: nanoseconds as _,
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

fn open_dir(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
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

    #[test]
    fn names_of_one_file_and_times_stay() {
        let (from, to) = (tempfile::tempdir(), tempfile::tempdir());
        let (from, to) = (from.expect("directory"), to.expect("directory"));
        let at = |path: &str| from.path().join(path);
        fs::create_dir(at("sub")).expect("made");
        fs::write(at("sub/one"), "1").expect("written");
        fs::write(at("other"), "2").expect("written");
        fs::hard_link(at("sub/one"), at("two")).expect("linked");
        fs::hard_link(at("sub/one"), at("sub/three")).expect("linked");
        fs::hard_link(at("other"), from.path().with_extension("outside")).expect("linked");
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(86_400, 7);
        for path in ["sub/one", "sub"] {
            let file = fs::File::open(at(path)).expect("opened");
            file.set_modified(old).expect("set");
        }
        let fd = |dir: &tempfile::TempDir| fs::File::open(dir.path()).expect("opened");
        copy_up(fd(&from).as_fd(), fd(&to).as_fd()).expect("copied");
        fs::remove_file(from.path().with_extension("outside")).expect("removed");

        let stat = |path: &str| fs::metadata(to.path().join(path)).expect("there");
        let one = stat("sub/one").ino();
        assert_eq!((stat("two").ino(), stat("sub/three").ino()), (one, one));
        assert_eq!((stat("two").nlink(), stat("other").nlink()), (3, 1));
        for path in ["two", "sub"] {
            assert_eq!(stat(path).modified().expect("a time"), old);
        }
        assert_eq!(fs::read_dir(to.path()).expect("read").count(), 3);
    }
}
