//! Disk usage of a directory tree.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::record::Usage;
use crate::error::{Error, Result};

/// `st_blocks` counts in units of this many bytes, whatever the file system (stat(2)).
const BLOCK: u64 = 512;

/// Counts inodes and allocated bytes of `root` and everything under it.
///
/// A file that vanishes meanwhile is not counted: an active snapshot may be in use.
pub fn of_tree(root: &Path) -> Result<Usage> {
    let mut tally = Tally::default();
    tally.add(&fs::symlink_metadata(root).map_err(Error::io("stat", root))?);
    let mut pending: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let Some(entries) = unless_gone(fs::read_dir(&dir), "read", &dir)? else {
            continue;
        };
        for entry in entries {
            let entry = entry.map_err(Error::io("read", &dir))?;
            // DirEntry::metadata does not follow a symbolic link.
            let path = entry.path();
            let Some(metadata) = unless_gone(entry.metadata(), "stat", &path)? else {
                continue;
            };
            tally.add(&metadata);
            if metadata.is_dir() {
                pending.push(path);
            }
        }
    }
    Ok(tally.usage)
}

fn unless_gone<T>(result: io::Result<T>, action: &'static str, path: &Path) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(action, path)(error)),
    }
}

#[derive(Default)]
struct Tally {
    usage: Usage,
    /// Device and inode of files with several names; the others need no memory.
    linked: HashSet<(u64, u64)>,
}

impl Tally {
    fn add(&mut self, metadata: &Metadata) {
        let several = !metadata.is_dir() && metadata.nlink() > 1;
        if several && !self.linked.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        self.usage.inodes += 1;
        self.usage.bytes += metadata.blocks() * BLOCK;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_root_itself_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of_tree(dir.path()).unwrap().inodes, 1);
    }

    #[test]
    fn a_hard_linked_file_counts_once_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let empty = of_tree(root).unwrap();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/f"), vec![1; 100_000]).unwrap();
        let single = of_tree(root).unwrap();
        fs::hard_link(root.join("d/f"), root.join("g")).unwrap();
        symlink("/", root.join("l")).unwrap();
        let linked = of_tree(root).unwrap();
        assert_eq!(single.inodes, empty.inodes + 2);
        assert_eq!(linked.inodes, single.inodes + 1);
        assert!(single.bytes >= empty.bytes + 100_000);
        assert!(linked.bytes < single.bytes + 100_000);
    }

    #[test]
    fn a_sparse_file_takes_what_is_allocated() {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::create(dir.path().join("f")).unwrap();
        file.set_len(1 << 30).unwrap();
        assert!(of_tree(dir.path()).unwrap().bytes < 1 << 20);
    }

    #[test]
    fn a_missing_root_is_an_error_that_names_it() {
        let error = of_tree(Path::new("/does/not/exist"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/does/not/exist"), "{error}");
    }
}
