//! Threads that read from containers' trees and compare with an ordinary unpack.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration::ctr::Ctr;
use integration::hosts::NativeHost;
use integration::random::Random;

/// Readers at a time, of all trees.
const READERS: u64 = 8;

/// What must be the same: a tree that was unpacked, and trees that are read lazily.
pub(crate) struct Trees {
    right: PathBuf,
    lazy: Vec<PathBuf>,
    /// Every name in the right tree, relative to it.
    names: Vec<PathBuf>,
}

/// A read that failed.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) begun: Instant,
    pub(crate) ended: Instant,
    pub(crate) what: String,
}

/// What readers have done.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) reads: u64,
    pub(crate) bytes: u64,
    /// The longest that a read took.
    pub(crate) longest: Duration,
    pub(crate) faults: Vec<Fault>,
}

impl Trees {
    /// The root file systems of running containers.
    pub(crate) fn of(host: &NativeHost, right: &str, lazy: &[&str]) -> Self {
        let root = |id: &&str| {
            let task = Ctr::new(host).task(id).unwrap();
            let (pid, _) = task.unwrap_or_else(|| panic!("{id} does not run"));
            // A program that is still being loaded when the registry goes down does not survive it.
            let asleep = format!("until grep -q nanosleep /proc/{pid}/wchan; do sleep 0.05; done");
            host.check_sh(&asleep).unwrap();
            host.path(format!("/proc/{pid}/root"))
        };
        let right = root(&right);
        let mut names = Vec::new();
        walk(&right, Path::new(""), &mut names);
        assert!(names.len() > 2000, "{} names", names.len());
        Self {
            lazy: lazy.iter().map(root).collect(),
            right,
            names,
        }
    }

    /// Reads at random for as long as `storm` lasts.
    pub(crate) fn read_during(&self, seed: u64, storm: impl FnOnce()) -> Report {
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let end = &end;
            let read = move |n| self.read_on(Random::new(seed ^ n), end);
            let readers: Vec<_> = (0..READERS).map(|n| scope.spawn(move || read(n))).collect();
            storm();
            end.store(true, Ordering::SeqCst);
            let mut all = Report::default();
            for reader in readers {
                let report = reader.join().expect("a reader met what must not be");
                all.reads += report.reads;
                all.bytes += report.bytes;
                all.longest = all.longest.max(report.longest);
                all.faults.extend(report.faults);
            }
            all
        })
    }

    fn read_on(&self, mut random: Random, end: &AtomicBool) -> Report {
        let mut report = Report::default();
        while !end.load(Ordering::SeqCst) {
            let tree = &self.lazy[random.below(self.lazy.len() as u64) as usize];
            let name = &self.names[random.below(self.names.len() as u64) as usize];
            let begun = Instant::now();
            match self.compare(tree, name, Some(&mut random)) {
                Ok(bytes) => report.bytes += bytes,
                Err(error) if error.raw_os_error() == Some(5) => report.faults.push(Fault {
                    begun,
                    ended: Instant::now(),
                    what: name.display().to_string(),
                }),
                Err(error) => panic!("{}: {error}", tree.join(name).display()),
            }
            report.reads += 1;
            report.longest = report.longest.max(begun.elapsed());
        }
        report
    }

    /// Compares one name, of a file a part at random or all of it; how many bytes.
    fn compare(&self, tree: &Path, name: &Path, random: Option<&mut Random>) -> io::Result<u64> {
        let (path, right) = (tree.join(name), self.right.join(name));
        let (ours, theirs) = (fs::symlink_metadata(&path)?, fs::symlink_metadata(&right)?);
        let shown = |of: &fs::Metadata| (of.mode(), of.uid(), of.gid(), of.mtime());
        assert_eq!(shown(&ours), shown(&theirs), "{}", path.display());
        if ours.is_symlink() {
            assert_eq!(fs::read_link(&path)?, fs::read_link(&right)?);
            return Ok(0);
        }
        if ours.is_dir() {
            assert_eq!(list(&path)?, list(&right)?, "{}", path.display());
            return Ok(0);
        }
        if !ours.is_file() {
            return Ok(0);
        }
        assert_eq!(ours.size(), theirs.size(), "{}", path.display());
        let part = |random: &mut Random| {
            let offset = random.below(ours.size());
            let len = random.below(ours.size() - offset + 1).min(1 << 20);
            (random.below(3) > 0).then_some((offset, len))
        };
        let (offset, len) = random.and_then(part).unwrap_or((0, ours.size()));
        let read = |file: &File| {
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, offset).map(|()| bytes)
        };
        let file = File::open(&path)?;
        let same = read(&file)? == read(&File::open(&right)?)?;
        assert!(same, "wrong bytes at {offset} of {}", path.display());
        // So that it does not come from the page cache the next time.
        let whole = rustix::fs::Advice::DontNeed;
        rustix::fs::fadvise(&file, 0, None, whole)?;
        Ok(len)
    }

    /// Compares everything, once things are in order again.
    pub(crate) fn all_are_right(&self) {
        for tree in &self.lazy {
            for name in &self.names {
                let compared = self.compare(tree, name, None);
                compared.unwrap_or_else(|error| panic!("{}: {error}", tree.join(name).display()));
            }
        }
    }
}

fn list(directory: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let entries = fs::read_dir(directory)?;
    let mut names: Vec<_> = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}

/// Every name of one file system; what the runtime mounts and writes is not the image's.
fn walk(root: &Path, below: &Path, names: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let name = below.join(entry.unwrap().file_name());
        let skipped = ["proc", "sys", "dev", "run", "etc/hosts", "etc/resolv.conf"];
        if skipped.iter().any(|other| name == Path::new(other)) {
            continue;
        }
        if fs::symlink_metadata(root.join(&name)).unwrap().is_dir() {
            walk(root, &name, names);
        }
        names.push(name);
    }
}
