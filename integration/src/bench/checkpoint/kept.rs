//! Checkpoints that are kept: what ten of one server take of a disk, and what sealing costs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::Instant;

use super::super::suite::{Task, Unit};
use super::apps::{App, text};
use super::{Fixtures, SETTLE, task_of};
use crate::error::{Error, Result};

const OURS: &str = "xebec";
/// Successive checkpoints of one server.
const SUCCESSIVE: usize = 10;
/// Requests between two of them.
const BETWEEN: usize = 10;
/// A store that is not sealed.
const PLAIN: &str = "plain";
/// CRIU's files as they are.
const FILES: &str = "files";
/// Archives as containerd's, CRI-O's and podman's are: tar files.
const TAR: &str = "tar";
/// Nobody needs its identity here.
const RECIPIENT: &str = "age1lj3wt8mdflhsfd7cw2l988dggvn67p590qs56y48k40nmwgplvdqqdf2zh";

impl Fixtures {
    /// Kibibytes that ten successive checkpoints of a server take, by `write` (of the container, into
    /// a directory, by number).
    fn keep(&self, flags: impl Fn(&Path, usize) -> Vec<String>) -> Result<Vec<f64>> {
        let container = self.container(OURS, App::Python, "kept");
        let directory = self.directory.path().join("kept");
        fs::create_dir(&directory).map_err(Error::file("create", &directory))?;
        let kept = self.network.ask_while(|| container.run()).and_then(|_| {
            for number in 0..SUCCESSIVE {
                for _ in 0..BETWEEN {
                    self.network.ask()?;
                }
                sleep(SETTLE);
                container.keep(&flags(&directory, number))?;
            }
            allocated(&directory)
        });
        container.delete()?;
        fs::remove_dir_all(&directory).map_err(Error::file("remove", &directory))?;
        Ok(vec![kept?])
    }

    /// Milliseconds for a checkpoint of a large server until all of it is on the disk, in a directory
    /// that is gone then.
    fn write(&self, flags: impl Fn(&Path) -> Vec<String>) -> Result<Vec<f64>> {
        let container = self.container(OURS, App::Node, "written");
        let directory = self.directory.path().join("written");
        fs::create_dir(&directory).map_err(Error::file("create", &directory))?;
        let took = self.network.ask_while(|| container.run()).and_then(|_| {
            sleep(SETTLE);
            let began = Instant::now();
            container.keep(&flags(&directory))?;
            rustix::fs::sync();
            Ok(began.elapsed().as_secs_f64() * 1e3)
        });
        container.delete()?;
        fs::remove_dir_all(&directory).map_err(Error::file("remove", &directory))?;
        Ok(vec![took?])
    }
}

/// Kibibytes that a directory takes of the disk.
fn allocated(directory: &Path) -> Result<f64> {
    let mut total = 0.0;
    for entry in fs::read_dir(directory).map_err(Error::file("list", directory))? {
        let path = entry.map_err(Error::file("list", directory))?.path();
        let facts = fs::symlink_metadata(&path).map_err(Error::file("stat", &path))?;
        total += facts.blocks() as f64 / 2.0;
        if facts.is_dir() {
            total += allocated(&path)?;
        }
    }
    Ok(total)
}

fn into_store(directory: &Path) -> Vec<String> {
    ["--store", "--store-root", &text(directory)]
        .map(str::to_owned)
        .to_vec()
}

fn into_sealed_store(directory: &Path) -> Vec<String> {
    let sealed = ["--encrypt-to", RECIPIENT].map(str::to_owned);
    [into_store(directory), sealed.to_vec()].concat()
}

fn into_files(directory: &Path) -> Vec<String> {
    ["--image-path", &text(directory)]
        .map(str::to_owned)
        .to_vec()
}

fn into_tar(directory: &Path, number: usize) -> Vec<String> {
    let file = directory.join(format!("{number}.tar"));
    ["--export", &text(&file), "--compress", "none"]
        .map(str::to_owned)
        .to_vec()
}

/// All rows of what is kept.
pub(super) fn kept(fixtures: &Fixtures) -> Vec<Task<'_>> {
    let stored = |contestant, flags: fn(&Path, usize) -> Vec<String>| {
        let row = "ten checkpoints: stored".to_owned();
        let sampler = move |_| fixtures.keep(flags);
        let mut task = task_of(row, (contestant, OURS), Unit::Kibibytes, sampler);
        task.every = 5;
        task.warms_up = false;
        task
    };
    let written = |contestant, flags: fn(&Path) -> Vec<String>| {
        let row = "written: node".to_owned();
        let sampler = move |_| fixtures.write(flags);
        task_of(row, (contestant, OURS), Unit::Milliseconds, sampler)
    };
    vec![
        stored(OURS, |directory, _| into_store(directory)),
        stored(TAR, into_tar),
        written(OURS, into_sealed_store),
        written(PLAIN, into_store),
        written(FILES, into_files),
    ]
}
