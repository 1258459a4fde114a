//! A directory tree as a sorted list, and what one has that another has not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A tree's entries by relative path, without volatile ones.
pub(super) type Tree = BTreeMap<PathBuf, Metadata>;

/// Walks `root`.
pub(super) fn walk(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut open = vec![PathBuf::new()];
    while let Some(relative) = open.pop() {
        let directory = root.join(&relative);
        for entry in fs::read_dir(&directory).map_err(Error::file("list", &directory))? {
            let entry = entry.map_err(Error::file("list", &directory))?;
            let path = relative.join(entry.file_name());
            let metadata = entry
                .metadata()
                .map_err(Error::file("examine", &entry.path()))?;
            if is_volatile(&path.to_string_lossy()) {
                continue;
            }
            if metadata.is_dir() {
                open.push(path.clone());
            }
            tree.insert(path, metadata);
        }
    }
    Ok(tree)
}

/// What of `tree` is not the same in `base`, and the directories above that.
pub(super) fn additions(base: (&Path, &Tree), tree: (&Path, &Tree)) -> Result<BTreeSet<PathBuf>> {
    let mut added = BTreeSet::new();
    for (path, metadata) in tree.1 {
        let is_same = match base.1.get(path) {
            Some(before) => same(base.0, before, tree.0, metadata, path)?,
            None => false,
        };
        if !is_same {
            let above = path.ancestors().filter(|it| !it.as_os_str().is_empty());
            added.extend(above.map(Path::to_owned));
        }
    }
    Ok(added)
}

fn same(a_root: &Path, a: &Metadata, b_root: &Path, b: &Metadata, path: &Path) -> Result<bool> {
    if (a.mode(), a.uid(), a.gid()) != (b.mode(), b.uid(), b.gid()) {
        return Ok(false);
    }
    let (a_path, b_path) = (a_root.join(path), b_root.join(path));
    if a.is_symlink() {
        let target = |path: &Path| fs::read_link(path).map_err(Error::file("read link", path));
        return Ok(target(&a_path)? == target(&b_path)?);
    }
    if a.is_file() && a.len() == b.len() {
        let bytes = |path: &Path| fs::read(path).map_err(Error::file("read", path));
        return Ok(bytes(&a_path)? == bytes(&b_path)?);
    }
    Ok(!a.is_file())
}

/// Files that differ from build to build, or that nobody starts a container for.
fn is_volatile(path: &str) -> bool {
    const EMPTIED: [&str; 12] = [
        "var/log/",
        "var/cache/apt/",
        "var/cache/ldconfig/",
        "var/lib/apt/lists/",
        "dev/",
        "proc/",
        "sys/",
        "tmp/",
        "run/",
        "usr/share/man/",
        "usr/share/locale/",
        "usr/share/info/",
    ];
    const SINGLE: [&str; 6] = [
        "etc/machine-id",
        "etc/resolv.conf",
        "etc/hostname",
        "etc/ssl/certs/java/cacerts",
        "var/cache/ldconfig",
        "usr/share/info",
    ];
    const BACKUPS: [&str; 6] = [
        "passwd-", "shadow-", "group-", "gshadow-", "subuid-", "subgid-",
    ];
    if EMPTIED.iter().any(|prefix| path.starts_with(prefix)) || SINGLE.contains(&path) {
        return true;
    }
    if let Some(name) = path.strip_prefix("etc/") {
        return BACKUPS.contains(&name);
    }
    if path.starts_with("var/cache/debconf/") || path.starts_with("var/lib/dpkg/") {
        return path.ends_with("-old");
    }
    match path
        .strip_prefix("usr/share/doc/")
        .and_then(|rest| rest.split_once('/'))
    {
        Some((_, file)) => file != "copyright",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_stay_and_their_volatile_content_goes() {
        for path in [
            "var/log/dpkg.log",
            "etc/shadow-",
            "etc/machine-id",
            "var/lib/dpkg/status-old",
            "usr/share/doc/bash/README.gz",
        ] {
            assert!(is_volatile(path), "{path}");
        }
        for path in [
            "var/log",
            "etc/shadow",
            "var/lib/dpkg/status",
            "usr/share/doc/bash",
            "usr/share/doc/bash/copyright",
            "usr/bin/python3",
        ] {
            assert!(!is_volatile(path), "{path}");
        }
    }

    #[test]
    fn additions_are_new_and_changed_files_with_the_directories_above() {
        let (base, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for root in [base.path(), other.path()] {
            fs::create_dir_all(root.join("a/b")).unwrap();
            fs::write(root.join("a/same"), "1").unwrap();
        }
        fs::write(base.path().join("a/changed"), "1").unwrap();
        fs::write(other.path().join("a/changed"), "2").unwrap();
        fs::write(other.path().join("a/b/new"), "3").unwrap();
        let (base_tree, tree) = (walk(base.path()).unwrap(), walk(other.path()).unwrap());
        let added = additions((base.path(), &base_tree), (other.path(), &tree)).unwrap();
        let added: Vec<_> = added.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(added, ["a", "a/b", "a/b/new", "a/changed"]);
    }
}
