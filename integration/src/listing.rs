//! Everything there is to know of a file tree, and where two trees differ.
//!
//! A [`Listing`] is taken once and compared with many. Of the order in which directories are read
//! and of sizes and link counts of directories it knows nothing: these belong to the file system.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, FileType};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::hash::hex;

/// Readers at a time: cold files wait for a network, warm ones for a processor.
const READERS: usize = 4;
/// Bytes that an attribute's value, or all names of a file's attributes, may have (`xattr(7)`).
const ATTRIBUTES: usize = 64 << 10;

/// A file tree below one directory, which is part of it; other file systems are not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    entries: BTreeMap<Vec<u8>, Entry>,
}

/// One name in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: char,
    mode: u32,
    owner: (u32, u32),
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    content: Content,
    attributes: Attributes,
}

/// Names and values.
type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// What only some kinds of files have.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Directory,
    File {
        size: u64,
        digest: [u8; 32],
        links: Links,
    },
    Symlink {
        target: Vec<u8>,
        links: Links,
    },
    /// Pipes, sockets and devices.
    Node {
        device: u64,
        links: Links,
    },
}

/// The names of an inode in the tree, and the first of them. What the inode itself says of their
/// number is no difference: overlayfs also counts those that an upper layer hides.
#[derive(Debug, Clone, Eq)]
struct Links {
    count: u64,
    first: Vec<u8>,
    said: u64,
}

impl PartialEq for Links {
    fn eq(&self, other: &Self) -> bool {
        (self.count, &self.first) == (other.count, &other.first)
    }
}

impl Listing {
    /// Reads the whole tree below `root`.
    pub fn of(root: &Path) -> Result<Self> {
        let mut found = Vec::new();
        let top = fs::symlink_metadata(root).map_err(Error::file("look at", root))?;
        let device = top.dev();
        walk(root, Vec::new(), &top, device, &mut found)?;
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let mut names = BTreeMap::new();
        for (name, metadata) in &found {
            names.entry(inode(metadata)).or_insert((name, 0)).1 += 1;
        }
        let next = AtomicUsize::new(0);
        let read = || -> Result<Vec<(Vec<u8>, Entry)>> {
            let mut entries = Vec::new();
            while let Some((name, metadata)) = found.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (first, count) = names[&inode(metadata)];
                let links = Links {
                    count,
                    first: first.clone(),
                    said: metadata.nlink(),
                };
                entries.push((name.clone(), Entry::of(root, name, metadata, links)?));
            }
            Ok(entries)
        };
        let entries = thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
            let mut entries = BTreeMap::new();
            for reader in readers {
                let read = reader.join().map_err(|_| {
                    Error::invalid(format!("tree {}", root.display()), "a reader panicked")
                })?;
                entries.extend(read?);
            }
            Ok(entries)
        })?;
        Ok(Self { entries })
    }

    /// Count of names.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing, not even a root.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The same without the directory at the top, for where that is another file system's.
    #[must_use]
    pub fn without_root(mut self) -> Self {
        self.entries.remove(&b""[..]);
        self
    }

    /// Bytes of all regular files, each name counted.
    pub fn bytes(&self) -> u64 {
        let size = |entry: &Entry| match entry.content {
            Content::File { size, .. } => size,
            _ => 0,
        };
        self.entries.values().map(size).sum()
    }

    /// A name as this listing shows it, such as for a look at what a tree is made of.
    pub fn show(&self, name: &str) -> Option<String> {
        self.entries.get(name.as_bytes()).map(ToString::to_string)
    }

    /// Names whose inode says another number of links than the tree has, one line each.
    pub fn wrong_link_counts(&self) -> Vec<String> {
        let wrong = |(name, entry): (&Vec<u8>, &Entry)| {
            let links = entry.content.links()?;
            let name = String::from_utf8_lossy(name);
            let line = || format!("{name}: {} links of {} names", links.said, links.count);
            (links.said != links.count).then(line)
        };
        self.entries.iter().filter_map(wrong).collect()
    }

    /// What is different in another tree, one line each, at most `limit` lines: `-` what only this
    /// one has, `+` what only the other has.
    pub fn differences(&self, other: &Self, limit: usize) -> Vec<String> {
        let only_in = |one: &Self, sign: char, other: &Self| -> Vec<(Vec<u8>, String)> {
            let differs =
                |(name, entry): &(&Vec<u8>, &Entry)| other.entries.get(*name) != Some(*entry);
            let line =
                |name: &Vec<u8>, entry| format!("{sign} {} {entry}", String::from_utf8_lossy(name));
            let only = one.entries.iter().filter(differs);
            only.map(|(name, entry)| (name.clone(), line(name, entry)))
                .collect()
        };
        let mut lines = only_in(self, '-', other);
        lines.extend(only_in(other, '+', self));
        lines.sort_by(|a, b| a.0.cmp(&b.0));
        lines
            .into_iter()
            .map(|(_, line)| line)
            .take(limit)
            .collect()
    }
}

impl Entry {
    fn of(root: &Path, name: &[u8], metadata: &fs::Metadata, links: Links) -> Result<Self> {
        let path = join(root, name);
        let kind = metadata.file_type();
        let content = if kind.is_dir() {
            Content::Directory
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(Error::file("read link", &path))?;
            let target = target.into_os_string().into_vec();
            Content::Symlink { target, links }
        } else if kind.is_file() {
            let (size, digest) = digest(&path).map_err(Error::file("read", &path))?;
            if size != metadata.len() {
                let reason = format!("{size} bytes are read of {}", metadata.len());
                return Err(Error::invalid(path.display().to_string(), reason));
            }
            Content::File {
                size,
                digest,
                links,
            }
        } else {
            let device = metadata.rdev();
            Content::Node { device, links }
        };
        Ok(Self {
            kind: letter(kind),
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            content,
            attributes: attributes(&path).map_err(Error::errno("read attributes of", &path))?,
        })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (user, group) = self.owner;
        let (seconds, nanoseconds) = self.modified;
        write!(
            f,
            "{}{:04o} {user}:{group} {seconds}.{nanoseconds:09}",
            self.kind, self.mode
        )?;
        let links = match &self.content {
            Content::Directory => None,
            Content::File {
                size,
                digest,
                links,
            } => {
                write!(f, " {size} bytes {}", &hex(digest)[..16])?;
                Some(links)
            }
            Content::Symlink { target, links } => {
                write!(f, " -> {}", String::from_utf8_lossy(target))?;
                Some(links)
            }
            Content::Node { device, links } => {
                write!(f, " device {device:#x}")?;
                Some(links)
            }
        };
        if let Some(links) = links.filter(|links| links.count > 1) {
            let first = String::from_utf8_lossy(&links.first);
            write!(f, " {} names, {first} first", links.count)?;
        }
        for (name, value) in &self.attributes {
            write!(f, " {}={}", String::from_utf8_lossy(name), hex(value))?;
        }
        Ok(())
    }
}

impl Content {
    fn links(&self) -> Option<&Links> {
        match self {
            Self::Directory => None,
            Self::File { links, .. } | Self::Symlink { links, .. } | Self::Node { links, .. } => {
                Some(links)
            }
        }
    }
}

/// What tells one inode from another, also where overlayfs shows files of several systems.
fn inode(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn letter(kind: FileType) -> char {
    let letters = [
        (kind.is_dir(), 'd'),
        (kind.is_symlink(), 'l'),
        (kind.is_file(), '-'),
        (kind.is_char_device(), 'c'),
        (kind.is_block_device(), 'b'),
        (kind.is_fifo(), 'p'),
    ];
    let known = letters.iter().find(|(is_it, _)| *is_it);
    known.map_or('s', |(_, letter)| *letter)
}

fn join(root: &Path, name: &[u8]) -> PathBuf {
    if name.is_empty() {
        return root.to_owned();
    }
    root.join(OsStr::from_bytes(name))
}

fn walk(
    root: &Path,
    name: Vec<u8>,
    metadata: &fs::Metadata,
    device: u64,
    found: &mut Vec<(Vec<u8>, fs::Metadata)>,
) -> Result<()> {
    if metadata.is_dir() {
        let path = join(root, &name);
        for entry in fs::read_dir(&path).map_err(Error::file("list", &path))? {
            let entry = entry.map_err(Error::file("list", &path))?;
            let mut below = name.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend(entry.file_name().as_bytes());
            let path = entry.path();
            let metadata = entry.metadata().map_err(Error::file("look at", &path))?;
            // Overlayfs gives files the device of their layer; only a directory can be a mount.
            if !metadata.is_dir() || metadata.dev() == device {
                walk(root, below, &metadata, device, found)?;
            }
        }
    }
    found.push((name, metadata.clone()));
    Ok(())
}

fn digest(path: &Path) -> io::Result<(u64, [u8; 32])> {
    let mut file = File::open(path)?;
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((size, hash.finalize().into()));
        }
        hash.update(&buffer[..count]);
        size += count as u64;
    }
}

/// All extended attributes in the order of their names.
fn attributes(path: &Path) -> std::result::Result<Attributes, Errno> {
    let mut names = vec![0; ATTRIBUTES];
    let length = llistxattr(path, &mut names[..])?;
    names.truncate(length);
    let mut attributes = Vec::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; ATTRIBUTES];
        let length = lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(length);
        attributes.push((name.to_vec(), value));
    }
    attributes.sort();
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::{XattrFlags, setxattr};

    use super::*;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        fs::create_dir(path.join("d")).unwrap();
        fs::write(path.join("d/a"), "text").unwrap();
        fs::write(path.join("d/b"), "text").unwrap();
        symlink("a", path.join("d/l")).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000, 5);
        for name in ["d/a", "d/b", "d", ""] {
            File::open(path.join(name))
                .and_then(|file| file.set_modified(time))
                .unwrap();
        }
        root
    }

    /// What a change makes of one tree, against another that is left alone.
    fn changed(change: impl FnOnce(&Path)) -> Vec<String> {
        let (one, other) = (tree(), tree());
        let link = |root: &Path| {
            let time = rustix::fs::Timespec {
                tv_sec: 7,
                tv_nsec: 0,
            };
            let times = rustix::fs::Timestamps {
                last_access: time,
                last_modification: time,
            };
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(rustix::fs::CWD, root.join("d/l"), &times, flags).unwrap();
        };
        link(one.path());
        link(other.path());
        change(other.path());
        let [one, other] = [&one, &other].map(|root| Listing::of(root.path()).unwrap());
        one.differences(&other, 10)
    }

    #[test]
    fn equal_trees_do_not_differ() {
        assert_eq!(changed(|_| ()), [""; 0]);
    }

    #[test]
    fn a_byte_of_a_file_a_mode_and_an_attribute_are_each_seen() {
        let keeping_time = |path: PathBuf, change: &dyn Fn(&Path)| {
            let time = fs::metadata(&path).unwrap().modified().unwrap();
            change(&path);
            let file = File::open(&path).unwrap();
            file.set_modified(time).unwrap();
        };
        let content = changed(|root| {
            keeping_time(root.join("d/a"), &|path| fs::write(path, "texT").unwrap());
        });
        let mode = changed(|root| {
            fs::set_permissions(root.join("d/a"), fs::Permissions::from_mode(0o4755)).unwrap();
        });
        let attribute = changed(|root| {
            setxattr(root.join("d/a"), "user.x", b"1", XattrFlags::empty()).unwrap();
        });
        for lines in [&content, &mode, &attribute] {
            assert_eq!(lines.len(), 2, "{lines:?}");
            assert!(lines[0].starts_with("- d/a ") && lines[1].starts_with("+ d/a "));
        }
        assert!(mode[1].contains("-4755"), "{mode:?}");
        assert!(attribute[1].ends_with("user.x=31"), "{attribute:?}");
    }

    #[test]
    fn a_hard_link_is_not_a_copy() {
        let lines = changed(|root| {
            fs::remove_file(root.join("d/b")).unwrap();
            fs::hard_link(root.join("d/a"), root.join("d/b")).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000, 5);
            File::open(root.join("d"))
                .and_then(|file| file.set_modified(time))
                .unwrap();
        });
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[3].contains("2 names, d/a first"), "{lines:?}");
    }

    #[test]
    fn what_one_has_and_the_other_lacks_is_named() {
        let lines = changed(|root| symlink("x", root.join("d/new")).unwrap());
        assert!(
            lines.iter().any(|line| line.starts_with("+ d/new l")),
            "{lines:?}"
        );
    }
}
