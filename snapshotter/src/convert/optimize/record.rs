//! Which files of a tree are opened, and what of them is read.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Advice;

use crate::convert::guided::Recorded;
use crate::error::{Error, Result};
use crate::sys::{Map, fanotify};

/// Device and inode number: the same by whatever mount a file is opened.
type Id = (u64, u64);

/// Watches a tree.
pub(super) struct Recorder {
    tree: PathBuf,
    paths: HashMap<Id, String>,
    is_over: Arc<AtomicBool>,
    listener: JoinHandle<Result<Vec<(Id, u32)>>>,
}

impl Recorder {
    /// Empties the page cache of the tree's files and begins.
    pub(super) fn start(tree: &Path) -> Result<Self> {
        let dir = File::open(tree).map_err(Error::io("open", tree))?;
        rustix::fs::syncfs(&dir).map_err(Error::io("sync", tree))?;
        let mut paths = HashMap::new();
        forget(tree, "", &mut paths)?;
        let group = fanotify::new_listener().map_err(Error::io("watch", tree))?;
        fanotify::listen(group.as_fd(), dir.as_fd()).map_err(Error::io("watch", tree))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let known: std::collections::HashSet<Id> = paths.keys().copied().collect();
        let (over, path) = (Arc::clone(&is_over), tree.to_owned());
        let listener = std::thread::spawn(move || {
            listen(&group, &over, |id| known.contains(&id)).map_err(Error::io("watch", &path))
        });
        Ok(Self {
            tree: tree.to_owned(),
            paths,
            is_over,
            listener,
        })
    }

    /// The files that were opened, the first one first.
    pub(super) fn finish(self) -> Result<Vec<Recorded>> {
        self.is_over.store(true, Ordering::Relaxed);
        let panicked = |_| Error::Internal("a listener panicked".into());
        let opened = self.listener.join().map_err(panicked)??;
        let mut recorded = Vec::new();
        for (id, at) in opened {
            let Some(path) = self.paths.get(&id) else {
                continue;
            };
            // What the container has removed or replaced is not worth a thing at the next start.
            let Ok(file) = File::open(self.tree.join(path)) else {
                continue;
            };
            let metadata = file.metadata().map_err(Error::io("stat", path.as_ref()))?;
            if (metadata.dev(), metadata.ino()) != id || metadata.len() == 0 {
                continue;
            }
            let ranges = Map::new(&file)
                .and_then(|map| map.resident())
                .map_err(Error::io("look at", path.as_ref()))?;
            recorded.push(Recorded {
                path: path.clone(),
                at,
                ranges,
            });
        }
        Ok(recorded)
    }
}

/// Notes all regular files below `dir`, whose path in the tree is `name`, and gives up what the page
/// cache has of them.
fn forget(dir: &Path, name: &str, paths: &mut HashMap<Id, String>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let path = entry.path();
        let metadata = entry.metadata().map_err(Error::io("stat", &path))?;
        // Names of images that are no text are in no list of paths either.
        let Ok(own) = entry.file_name().into_string() else {
            continue;
        };
        let name = if name.is_empty() {
            own
        } else {
            format!("{name}/{own}")
        };
        if metadata.is_dir() {
            forget(&path, &name, paths)?;
        } else if metadata.is_file() && metadata.len() > 0 {
            let file = File::open(&path).map_err(Error::io("open", &path))?;
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)
                .map_err(Error::io("forget", &path))?;
            paths
                .entry((metadata.dev(), metadata.ino()))
                .or_insert(name);
        }
    }
    Ok(())
}

/// The wanted files that are opened, each once, until it is over and nothing more is in the queue.
fn listen(
    group: &OwnedFd,
    is_over: &AtomicBool,
    is_wanted: impl Fn(Id) -> bool,
) -> std::io::Result<Vec<(Id, u32)>> {
    let begin = Instant::now();
    let mut opened: Vec<(Id, u32)> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let pause = Timespec {
        tv_sec: 0,
        tv_nsec: 50_000_000,
    };
    loop {
        let was_over = is_over.load(Ordering::Relaxed);
        while let Some(file) = fanotify::next_opened(group.as_fd())? {
            let stat = rustix::fs::fstat(&file)?;
            let id = (stat.st_dev, stat.st_ino);
            if is_wanted(id) && seen.insert(id) {
                opened.push((id, begin.elapsed().as_millis() as u32));
            }
        }
        if was_over {
            return Ok(opened);
        }
        let mut fds = [PollFd::new(group, PollFlags::IN)];
        match poll(&mut fds, Some(&pause)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
