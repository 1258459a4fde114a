//! A small archive → the tree that it describes. The archive may be anybody's: all of it is checked
//! before anything is made, and nothing outside of the directory is touched.

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chmodat,
    chownat, makedev, mkdirat, mknodat, open, openat, openat2, symlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::LIMIT;

/// An entry.
#[derive(Debug)]
struct Node {
    /// Below the directory; empty for itself.
    path: PathBuf,
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    /// Seconds since the epoch.
    modified: i64,
}

#[derive(Debug)]
enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(CString),
    Device(FileType, u64),
}

/// Makes what an archive holds; `false` if it is not small or holds what is not plain.
pub(super) fn unpack(input: impl Read, directory: &Path) -> io::Result<bool> {
    let mut content = Vec::new();
    // Headers and padding come on top of what a packer counts.
    let limit = 2 * LIMIT;
    MultiGzDecoder::new(input)
        .take(limit + 1)
        .read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Ok(false);
    }
    let mut nodes = Vec::new();
    for entry in Archive::new(content.as_slice()).entries()? {
        match node(entry?)? {
            Some(node) => nodes.push(node),
            None => return Ok(false),
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = open(directory, flags, Mode::empty())?;
    for node in &nodes {
        make(&top, node)?;
    }
    // What is made in a directory changes its time.
    for node in nodes.iter().rev() {
        if matches!(node.kind, Kind::Directory) {
            settle(&top, node)?;
        }
    }
    Ok(true)
}

/// What an entry describes; none if that is not plain.
fn node(mut entry: Entry<'_, impl Read>) -> io::Result<Option<Node>> {
    let header = entry.header();
    let kind = header.entry_type();
    let Some(path) = inner(&entry.path()?) else {
        return Ok(None);
    };
    let (mode, modified) = (header.mode()?, header.mtime()?);
    let (Ok(uid), Ok(gid)) = (u32::try_from(header.uid()?), u32::try_from(header.gid()?)) else {
        return Ok(None);
    };
    let device = |kind| -> io::Result<Option<Kind>> {
        let numbers = header.device_major()?.zip(header.device_minor()?);
        Ok(numbers.map(|(major, minor)| Kind::Device(kind, makedev(major, minor))))
    };
    let kind = match kind {
        EntryType::Directory => Some(Kind::Directory),
        EntryType::Char => device(FileType::CharacterDevice)?,
        EntryType::Block => device(FileType::BlockDevice)?,
        EntryType::Symlink => {
            let target = entry.link_name_bytes();
            target.and_then(|target| CString::new(target.into_owned()).ok().map(Kind::Symlink))
        }
        EntryType::Regular => {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            Some(Kind::File(content))
        }
        _ => None,
    };
    Ok(kind.map(|kind| Node {
        path,
        kind,
        mode: mode & 0o7777,
        owner: (uid, gid),
        modified: i64::try_from(modified).unwrap_or(i64::MAX),
    }))
}

/// A path that leads nowhere else, without its dots.
fn inner(path: &Path) -> Option<PathBuf> {
    let mut inner = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => inner.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(inner)
}

/// The directory that an entry is in, and its name there.
fn place<'a>(top: &OwnedFd, node: &'a Node) -> io::Result<(OwnedFd, &'a [u8])> {
    let above = node.path.parent().filter(|above| *above != Path::new(""));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let above = above.unwrap_or(Path::new("."));
    let parent = openat2(top, above, flags, Mode::empty(), resolve)?;
    let name = node
        .path
        .file_name()
        .map_or(&b"."[..], |name| name.as_bytes());
    Ok((parent, name))
}

fn make(top: &OwnedFd, node: &Node) -> io::Result<()> {
    let (parent, name) = place(top, node)?;
    let private = Mode::RUSR | Mode::WUSR;
    match &node.kind {
        Kind::Directory => match mkdirat(&parent, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        },
        Kind::File(content) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = openat(&parent, name, flags, private)?;
            io::Write::write_all(&mut std::fs::File::from(file), content)?;
        }
        Kind::Symlink(target) => symlinkat(target, &parent, name)?,
        Kind::Device(kind, number) => mknodat(&parent, name, *kind, private, *number)?,
    }
    settle(top, node)
}

/// Gives it its owner, mode and time.
fn settle(top: &OwnedFd, node: &Node) -> io::Result<()> {
    let (parent, name) = place(top, node)?;
    let parent = parent.as_fd();
    let (uid, gid) = node.owner;
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    if !matches!(node.kind, Kind::Symlink(_)) {
        // It was made here, or is a directory: no link.
        chmodat(
            parent,
            name,
            Mode::from_raw_mode(node.mode),
            AtFlags::empty(),
        )?;
    }
    let modified = Timespec {
        tv_sec: node.modified,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: modified,
        last_modification: modified,
    };
    utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tar::{Builder, Header};

    use super::super::pack::pack;
    use super::*;

    fn packed(fill: impl FnOnce(&mut Builder<GzEncoder<Vec<u8>>>)) -> Vec<u8> {
        let mut archive = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        fill(&mut archive);
        let compressed = archive.into_inner().expect("complete");
        compressed.finish().expect("complete")
    }

    #[test]
    fn what_was_packed_is_there_again() {
        let from = tempfile::tempdir().expect("temporary directory");
        let to = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| from.path().join(name);
        fs::create_dir(at("d")).expect("made");
        fs::write(at("d/file"), "content").expect("written");
        fs::set_permissions(at("d/file"), fs::Permissions::from_mode(0o4640)).expect("set");
        symlink("/no/where", at("link")).expect("made");
        fs::set_permissions(from.path(), fs::Permissions::from_mode(0o1777)).expect("set");
        let archive = pack(from.path()).expect("readable").expect("plain");
        assert!(unpack(archive.as_slice(), to.path()).expect("unpacked"));
        let facts = |path: PathBuf| {
            let found = fs::symlink_metadata(path).expect("there");
            (
                found.mode(),
                found.uid(),
                found.gid(),
                found.mtime(),
                found.mtime_nsec() != 0,
            )
        };
        for name in ["", "d", "d/file", "link"] {
            let (mode, uid, gid, seconds, _) = facts(at(name));
            let expected = (mode, uid, gid, seconds, false);
            assert_eq!(facts(to.path().join(name)), expected, "{name}");
        }
        let link = fs::read_link(to.path().join("link")).expect("a link");
        assert_eq!(link, Path::new("/no/where"));
        let text = fs::read_to_string(to.path().join("d/file"));
        assert_eq!(text.expect("a file"), "content");
    }

    #[test]
    fn nothing_is_made_outside() {
        let to = tempfile::tempdir().expect("temporary directory");
        let outside = tempfile::tempdir().expect("temporary directory");
        let file = |name: &str| {
            let mut header = Header::new_gnu();
            header.set_size(1);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            header
        };
        for name in ["../x", "a/../../x", "/x"] {
            let archive = packed(|archive| {
                archive.append(&file(name), &b"x"[..]).expect("added");
            });
            assert!(
                !unpack(archive.as_slice(), to.path()).expect("refused"),
                "{name}"
            );
        }
        let archive = packed(|archive| {
            let mut link = file("link");
            link.set_entry_type(EntryType::Symlink);
            link.set_size(0);
            archive
                .append_link(&mut link, "link", outside.path())
                .expect("added");
            archive.append(&file("link/x"), &b"x"[..]).expect("added");
        });
        unpack(archive.as_slice(), to.path()).expect_err("a way out");
        assert_eq!(fs::read_dir(outside.path()).expect("there").count(), 0);
    }

    #[test]
    fn what_is_damaged_or_too_large_is_left_to_another() {
        let to = tempfile::tempdir().expect("temporary directory");
        unpack(&b"no archive"[..], to.path()).expect_err("no gzip");
        let archive = packed(|archive| {
            let mut header = Header::new_gnu();
            header.set_size(3 * LIMIT);
            header.set_cksum();
            let zeros = io::repeat(0).take(3 * LIMIT);
            archive
                .append_data(&mut header, "zeros", zeros)
                .expect("added");
        });
        assert!(!unpack(archive.as_slice(), to.path()).expect("left alone"));
        assert_eq!(fs::read_dir(to.path()).expect("there").count(), 0);
    }
}
