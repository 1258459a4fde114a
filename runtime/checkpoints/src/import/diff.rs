//! Changes of a root file system, as engines keep them: files that are new or changed in a tar file,
//! what is gone as whiteouts in it or as a list.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fchmod, fsetxattr, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use crate::archive::{DELETED_FILES, Kind, Limits, Member, decompressed, read_members, relative};
use crate::beneath::Beneath;
use crate::error::{Error, Result};

const LIMITS: Limits = Limits {
    members: 1 << 22,
    bytes: i64::MAX as u64,
};
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Devices that every container has.
const DEVICES: [(u32, u32); 8] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 1),
    (5, 2),
];

/// Checks changes without making them; `file` names them in errors.
///
/// # Errors
/// The member that must not be there.
pub(super) fn check_diff(input: impl Read, file: &str) -> Result<()> {
    walk(input, file, &mut |_, _| Ok(()))
}

/// Makes changes below `root`, where links are not followed.
///
/// # Errors
/// The member that must not be there, or that cannot be made.
pub(super) fn apply_diff(input: impl Read, file: &str, root: &Beneath) -> Result<()> {
    walk(input, file, &mut |member, content| {
        apply(member, content, root).map_err(|errno| {
            let name = member.name.to_string_lossy();
            Error::refused(file, name, io::Error::from(errno).to_string())
        })
    })
}

/// Removes the files that a JSON list names.
///
/// # Errors
/// The list is damaged, a name leads out of the root file system, or something cannot be removed.
pub(super) fn delete_files(list: &[u8], root: &Beneath) -> Result<()> {
    let names: Option<Vec<String>> =
        serde_json::from_slice(list).map_err(|e| Error::malformed(DELETED_FILES, e))?;
    for name in names.unwrap_or_default() {
        let refuse = |reason: &str| Error::refused(DELETED_FILES, name.as_str(), reason);
        let path = relative(name.trim_start_matches('/').as_bytes()).map_err(refuse)?;
        if path.as_os_str().is_empty() {
            return Err(refuse("it is the root file system itself"));
        }
        match remove_path(root, &path) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => return Err(refuse(&io::Error::from(errno).to_string())),
        }
    }
    Ok(())
}

fn walk(
    input: impl Read,
    file: &str,
    visit: &mut dyn FnMut(&Member, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let mut input = decompressed(input).map_err(|e| Error::malformed(file, e))?;
    read_members(&mut input, file, LIMITS, &mut |member, content| {
        judge(member, file)?;
        visit(member, content)
    })
}

fn judge(member: &Member, file: &str) -> Result<()> {
    let refuse = |reason: String| Err(Error::refused(file, member.name.to_string_lossy(), reason));
    match member.kind {
        Kind::Device {
            block,
            major,
            minor,
        } if block || !(DEVICES.contains(&(major, minor)) || (major, minor) == (0, 0)) => {
            refuse(format!("device {major}:{minor} is the host's"))
        }
        Kind::HardLink if relative(member.target.as_os_str().as_bytes()).is_err() => {
            refuse(format!("it links to {}", member.target.display()))
        }
        Kind::Directory => Ok(()),
        kind if member.name.as_os_str().is_empty() => {
            refuse(format!("the root is no {}", kind.word()))
        }
        _ => Ok(()),
    }
}

type Outcome = rustix::io::Result<()>;

fn apply(member: &Member, content: &mut dyn Read, root: &Beneath) -> Outcome {
    if member.name.as_os_str().is_empty() {
        return Ok(());
    }
    let (parent, name) = root.parent(&member.name, Mode::from_raw_mode(0o755))?;
    let bytes = name.as_bytes();
    if bytes == OPAQUE {
        return empty(&parent);
    }
    if let Some(gone) = bytes.strip_prefix(WHITEOUT) {
        return remove_if_there(&parent, OsStr::from_bytes(gone));
    }
    let mode = Mode::from_raw_mode(member.mode);
    let is_directory = member.kind == Kind::Directory && is_directory(&parent, name);
    if !is_directory {
        remove_if_there(&parent, name)?;
    }
    match member.kind {
        Kind::Directory if is_directory => {}
        Kind::Directory => mkdirat(&parent, name, Mode::RWXU)?,
        Kind::File => return file(member, content, &parent, name),
        Kind::Symlink => symlinkat(&member.target, &parent, name)?,
        Kind::HardLink => return link(member, root, &parent, name),
        Kind::Device {
            major: 0, minor: 0, ..
        } => return Ok(()),
        Kind::Device { major, minor, .. } => {
            let number = makedev(major, minor);
            mknodat(&parent, name, FileType::CharacterDevice, mode, number)?;
        }
        Kind::Fifo => mknodat(&parent, name, FileType::Fifo, mode, 0)?,
    }
    own(member, &parent, name)?;
    if member.kind == Kind::Directory {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(&parent, name, flags, Mode::empty())?;
        fchmod(&made, mode)?;
        attributes(member, &made)?;
    }
    times(member, &parent, name)
}

fn file(member: &Member, content: &mut dyn Read, parent: &OwnedFd, name: &OsStr) -> Outcome {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?);
    io::copy(content, &mut file).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    own(member, parent, name)?;
    // After the owner, with whom bits and capabilities go.
    fchmod(&file, Mode::from_raw_mode(member.mode))?;
    attributes(member, &file)?;
    drop(file);
    times(member, parent, name)
}

fn link(member: &Member, root: &Beneath, parent: &OwnedFd, name: &OsStr) -> Outcome {
    let target = relative(member.target.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    let (directory, own) = root.parent(&target, Mode::from_raw_mode(0o755))?;
    linkat(&directory, own, parent, name, AtFlags::empty())
}

fn own(member: &Member, parent: &OwnedFd, name: &OsStr) -> Outcome {
    let owner = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    chownat(parent, name, Some(owner.0), Some(owner.1), flags)
}

fn times(member: &Member, parent: &OwnedFd, name: &OsStr) -> Outcome {
    let time = Timespec {
        tv_sec: member.mtime,
        tv_nsec: 0,
    };
    let both = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(parent, name, &both, AtFlags::SYMLINK_NOFOLLOW)
}

/// Attributes that are the file's own; others tell the file systems of a host something.
fn attributes(member: &Member, file: impl AsFd) -> Outcome {
    for (name, value) in &member.xattrs {
        let bytes = name.as_bytes();
        if bytes.starts_with(b"user.") || bytes == b"security.capability" {
            fsetxattr(&file, name.as_os_str(), value, XattrFlags::empty())?;
        }
    }
    Ok(())
}

fn is_directory(parent: &OwnedFd, name: &OsStr) -> bool {
    let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    found.is_ok_and(|facts| FileType::from_raw_mode(facts.st_mode) == FileType::Directory)
}

fn remove_path(root: &Beneath, path: &Path) -> Outcome {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let parent = root.open_at(directory, flags, Mode::empty())?;
    remove_if_there(&parent, name)
}

fn remove_if_there(parent: &OwnedFd, name: &OsStr) -> Outcome {
    match remove(parent, name) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// Removes whatever has this name, and all that is in it.
fn remove(parent: &OwnedFd, name: &OsStr) -> Outcome {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        result => return result,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = openat(parent, name, flags, Mode::empty())?;
    empty(&inner)?;
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Removes all that is in a directory.
fn empty(directory: &OwnedFd) -> Outcome {
    let mut names: Vec<OsString> = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.iter().try_for_each(|name| remove(directory, name))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use tar::{Builder, EntryType, Header};

    use super::*;

    fn header(kind: EntryType, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(rustix::process::getuid().as_raw().into());
        header.set_gid(rustix::process::getgid().as_raw().into());
        header.set_mtime(1_000_000);
        header.set_size(0);
        header
    }

    fn archive(build: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().expect("an archive")
    }

    fn add(builder: &mut Builder<Vec<u8>>, name: &str, mode: u32, content: &[u8]) {
        let mut header = header(EntryType::Regular, mode);
        header.set_size(content.len() as u64);
        builder
            .append_data(&mut header, name, content)
            .expect("added");
    }

    fn link(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, target: &str) {
        let mut header = header(kind, 0o777);
        builder
            .append_link(&mut header, name, target)
            .expect("added");
    }

    #[test]
    fn changes_are_made_as_they_were() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        fs::create_dir_all(root.join("etc/old/inner")).expect("made");
        fs::create_dir_all(root.join("opaque/gone")).expect("made");
        fs::write(root.join("etc/config"), "before").expect("written");
        let diff = archive(|builder| {
            add(builder, "etc/config", 0o4750, b"after");
            add(builder, "etc/.wh.old", 0o644, b"");
            add(builder, "opaque/.wh..wh..opq", 0o644, b"");
            add(builder, "opaque/new", 0o600, b"n");
            link(builder, EntryType::Symlink, "link", "/etc/config");
            link(builder, EntryType::Link, "hard", "etc/config");
        });
        let beneath = Beneath::open(root).expect("opened");
        check_diff(diff.as_slice(), "d").expect("accepted");
        apply_diff(diff.as_slice(), "d", &beneath).expect("applied");
        assert_eq!(fs::read(root.join("hard")).expect("there"), b"after");
        let facts = fs::metadata(root.join("etc/config")).expect("there");
        assert_eq!(
            (facts.permissions().mode() & 0o7777, facts.mtime()),
            (0o4750, 1_000_000)
        );
        assert!(!root.join("etc/old").exists() && !root.join("opaque/gone").exists());
        assert_eq!(fs::read(root.join("opaque/new")).expect("there"), b"n");
        let target = fs::read_link(root.join("link")).expect("a link");
        assert_eq!(target, Path::new("/etc/config"));
        delete_files(br#"["/etc/config", "never/there"]"#, &beneath).expect("deleted");
        assert!(!root.join("etc/config").exists());
    }

    #[test]
    fn nothing_is_written_or_removed_through_a_link() {
        let directory = tempfile::tempdir().expect("a directory");
        let (root, outside) = (
            directory.path().join("root"),
            directory.path().join("outside"),
        );
        fs::create_dir_all(&root).expect("made");
        fs::create_dir_all(&outside).expect("made");
        fs::write(outside.join("file"), "untouched").expect("written");
        let beneath = Beneath::open(&root).expect("opened");
        let target = outside.to_str().expect("text");
        let diff = archive(|builder| {
            link(builder, EntryType::Symlink, "out", target);
            add(builder, "out/file", 0o644, b"x");
        });
        let error = apply_diff(diff.as_slice(), "d", &beneath).expect_err("refused");
        assert!(error.to_string().contains("out/file"), "{error}");
        delete_files(br#"["/out/file"]"#, &beneath).expect_err("refused");
        for list in [&br#"["../outside/file"]"#[..], br#"["/"]"#, b"{}"] {
            delete_files(list, &beneath).expect_err("refused");
        }
        assert_eq!(fs::read(outside.join("file")).expect("there"), b"untouched");
    }

    #[test]
    fn devices_and_links_out_are_refused_before_anything_is_written() {
        let disk = archive(|builder| {
            let mut header = header(EntryType::Block, 0o666);
            header.set_device_major(8).expect("a number");
            header.set_device_minor(0).expect("a number");
            builder
                .append_data(&mut header, "disk", io::empty())
                .expect("added");
        });
        let error = check_diff(disk.as_slice(), "d")
            .expect_err("refused")
            .to_string();
        assert!(error.contains("d: disk: device 8:0"), "{error}");
        let out = archive(|builder| link(builder, EntryType::Link, "hard", "../../etc/shadow"));
        let error = check_diff(out.as_slice(), "d")
            .expect_err("refused")
            .to_string();
        assert!(error.contains("d: hard"), "{error}");
    }
}
