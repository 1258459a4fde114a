//! Ways to read a tree.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

use crate::error::{Error, Result};

/// Files that are shorter are small.
const SMALL: u64 = 16 << 10;
/// How many threads read side by side.
pub(super) const THREADS: usize = 64;
/// Reads of a block at a time, and how many of them.
const BLOCK: usize = 4096;
const RANDOM_READS: u64 = 20_000;
const BUFFER: usize = 128 << 10;

/// Looks at every entry below `root`; how many there are.
pub(super) fn walk(root: &Path) -> Result<usize> {
    let mut seen = 0;
    visit(root, &mut |_, _| seen += 1)?;
    Ok(seen)
}

fn visit(directory: &Path, each: &mut impl FnMut(&Path, &fs::Metadata)) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::file("list", directory))? {
        let path = entry.map_err(Error::file("list", directory))?.path();
        let metadata = path
            .symlink_metadata()
            .map_err(Error::file("examine", &path))?;
        each(&path, &metadata);
        if metadata.is_dir() {
            visit(&path, each)?;
        }
    }
    Ok(())
}

/// The regular files of a tree, with their sizes.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    root: PathBuf,
    files: Vec<(PathBuf, u64)>,
}

impl Files {
    /// Those below `root`, in the order in which they are found.
    pub(super) fn list(root: &Path) -> Result<Self> {
        let mut files = Vec::new();
        visit(root, &mut |path, metadata| {
            if metadata.is_file() {
                files.push((path.to_owned(), metadata.len()));
            }
        })?;
        Ok(Self {
            root: root.to_owned(),
            files,
        })
    }

    /// One file.
    pub(super) fn only(path: &Path) -> Result<Self> {
        let len = fs::metadata(path).map_err(Error::file("stat", path))?.len();
        Ok(Self {
            root: path.to_owned(),
            files: vec![(path.to_owned(), len)],
        })
    }

    /// The size of the largest file, in bytes.
    pub(super) fn largest_size(&self) -> Result<u64> {
        self.largest().map(|(_, len)| len)
    }

    /// The same files of another copy of the tree.
    pub(super) fn below(&self, root: &Path) -> Self {
        let moved = |path: &Path| match path.strip_prefix(&self.root) {
            Ok(path) => root.join(path),
            Err(_) => path.to_owned(),
        };
        let files = self.files.iter();
        Self {
            root: root.to_owned(),
            files: files.map(|(path, len)| (moved(path), *len)).collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Opens, reads and closes each small file; the microseconds that one takes.
    pub(super) fn read_small(&self) -> Result<f64> {
        let small: Vec<_> = self.files.iter().filter(|(_, len)| *len < SMALL).collect();
        let mut buffer = vec![0; BUFFER];
        let began = Instant::now();
        for (path, _) in &small {
            read(path, &mut buffer)?;
        }
        Ok(began.elapsed().as_secs_f64() * 1e6 / small.len().max(1) as f64)
    }

    /// Reads blocks of the largest file in no order; the microseconds that one takes.
    pub(super) fn read_random(&self) -> Result<f64> {
        let (path, len) = self.largest()?;
        let file = File::open(path).map_err(Error::file("open", path))?;
        let blocks = (len / BLOCK as u64).max(1);
        let (mut block, mut place) = ([0; BLOCK], 1_u64);
        let began = Instant::now();
        for _ in 0..RANDOM_READS {
            // A multiplicative walk: far from in order, and the same for everyone.
            place = place
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            file.read_at(&mut block, (place >> 20) % blocks * BLOCK as u64)
                .map_err(Error::file("read", path))?;
        }
        Ok(began.elapsed().as_secs_f64() * 1e6 / RANDOM_READS as f64)
    }

    /// As [`Self::read_random`], after the kernel was told to forget what it has of the file. It obeys for
    /// the mount's own pages, not for those of a file that is passed through or lies below.
    pub(super) fn read_random_dropped(&self) -> Result<f64> {
        let (path, _) = self.largest()?;
        let file = File::open(path).map_err(Error::file("open", path))?;
        fadvise(&file, 0, None, Advice::DontNeed).map_err(Error::errno("drop pages of", path))?;
        self.read_random()
    }

    /// Reads the largest file from its beginning to its end.
    pub(super) fn read_largest(&self) -> Result<Duration> {
        let (path, _) = self.largest()?;
        let mut buffer = vec![0; BUFFER];
        let began = Instant::now();
        read(path, &mut buffer)?;
        Ok(began.elapsed())
    }

    /// Reads everything by several threads, which take the files one by one.
    pub(super) fn read_all(&self, threads: usize) -> Result<Duration> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            let mut buffer = vec![0; BUFFER];
            while let Some((path, _)) = self.files.get(next.fetch_add(1, Ordering::Relaxed)) {
                read(path, &mut buffer)?;
            }
            Ok(())
        };
        let began = Instant::now();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Error::invalid("a reading thread", "it panicked")))
            })
        })?;
        Ok(began.elapsed())
    }

    fn largest(&self) -> Result<(&Path, u64)> {
        let largest = self.files.iter().max_by_key(|(_, len)| *len);
        largest
            .map(|(path, len)| (path.as_path(), *len))
            .ok_or_else(|| Error::invalid(self.root.to_string_lossy(), "it has no files"))
    }
}

fn read(path: &Path, buffer: &mut [u8]) -> Result<()> {
    let mut file = File::open(path).map_err(Error::file("open", path))?;
    while file.read(buffer).map_err(Error::file("read", path))? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_walked_and_read_in_every_way_below_another_root() {
        let root = tempfile::tempdir().unwrap();
        for (name, len) in [("a", 10), ("d/b", 100_000), ("d/e/c", 5)] {
            let path = root.path().join("one").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![1; len]).unwrap();
        }
        let one = root.path().join("one");
        assert_eq!(walk(&one).unwrap(), 5);
        let files = Files::list(&one).unwrap();
        fs::rename(&one, root.path().join("two")).unwrap();
        assert!(files.read_all(2).is_err());
        let files = files.below(&root.path().join("two"));
        assert_eq!((files.len(), files.largest().unwrap().1), (3, 100_000));
        assert!(files.read_small().unwrap() > 0.0 && files.read_random().unwrap() > 0.0);
        assert!(files.read_random_dropped().unwrap() > 0.0);
        files.read_all(2).unwrap();
        files.read_largest().unwrap();
    }
}
