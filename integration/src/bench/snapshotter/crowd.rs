//! Many images and many snapshots: what daemons weigh with them, and how soon one is back.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::super::measure::{Processes, output};
use super::super::suite::{Feed, OURS, Task, Unit};
use super::daemon::Process;
use super::node::{self, Node};
use super::reads::{Files, THREADS};
use super::second;
use super::{Fixtures, push};
use crate::ctr::Stack;
use crate::error::{Error, Result};
use crate::hosts::Service;

/// Ten images that differ: as many formats of some as it takes.
const CROWD: [(&str, &str); 10] = [
    ("python3-numpy", "estargz"),
    ("nodejs", "estargz"),
    ("openjdk", "estargz"),
    ("nginx", "estargz"),
    ("redis", "estargz"),
    ("ruby", "estargz"),
    ("manyfiles", "estargz"),
    ("python3-numpy", "zstd-chunked"),
    ("nodejs", "zstd-chunked"),
    ("openjdk", "zstd-chunked"),
];
/// The images after which a daemon is weighed for the first time.
const HALF: usize = 5;
/// How long a daemon is left alone before it is weighed.
const SETTLE: Duration = Duration::from_secs(3);
/// How many snapshots a daemon has to find again.
const SNAPSHOTS: usize = 500;

/// A daemon of ours, and its mounts.
#[derive(Debug, Clone, Copy)]
struct Daemon {
    back_end: &'static str,
    snapshotter: &'static str,
    mounts: &'static str,
}

const DAEMONS: [Daemon; 2] = [
    Daemon {
        back_end: "kernel",
        snapshotter: Stack::XEBEC.snapshotter,
        mounts: "/mnt/crowd/kernel",
    },
    Daemon {
        back_end: "fuse",
        snapshotter: second::NAME,
        mounts: "/mnt/crowd/fuse",
    },
];

/// A node with the images in its registry, and a second daemon.
pub(super) struct Crowd<'a> {
    node: &'a Node,
    images: Vec<String>,
    second: Process,
    /// Whether our daemon has the snapshots already.
    is_crowded: RefCell<bool>,
}

impl<'a> Crowd<'a> {
    pub(super) fn prepare(fixtures: &'a Fixtures) -> Result<Self> {
        let images = CROWD.map(|(name, format)| {
            let ordinary = push(name)?;
            fixtures.converted.convert(&ordinary, format)
        });
        let node = &fixtures.node;
        node.forget(None)?;
        Ok(Self {
            node,
            images: images.into_iter().collect::<Result<_>>()?,
            second: second::start()?,
            is_crowded: RefCell::new(false),
        })
    }

    /// KiB of a daemon with all images mounted and read, and of each of the last few.
    fn weigh(&self, daemon: Daemon) -> Result<Vec<f64>> {
        let mut half = 0.0;
        for (number, image) in self.images.iter().enumerate() {
            if number == HALF {
                half = self.rss(daemon)?;
            }
            Self::mount_and_read(daemon, image, number)?;
        }
        let whole = self.rss(daemon)?;
        let more = (self.images.len() - HALF) as f64;
        Ok(vec![whole, (whole - half) / more])
    }

    fn mount_and_read(daemon: Daemon, image: &str, number: usize) -> Result<()> {
        let stack = Stack {
            snapshotter: daemon.snapshotter,
            ..Stack::XEBEC
        };
        node::pull(image, stack)?;
        let point = PathBuf::from(daemon.mounts).join(number.to_string());
        fs::create_dir_all(&point).map_err(Error::file("create", &point))?;
        let target = point.to_string_lossy();
        let mount = ["ctr", "images", "mount", "--snapshotter"];
        output(&[&mount[..], &[daemon.snapshotter, image, &target]].concat())?;
        Files::list(&point)?.read_all(THREADS).map(drop)
    }

    fn rss(&self, daemon: Daemon) -> Result<f64> {
        thread::sleep(SETTLE);
        let pid = if daemon.snapshotter == second::NAME {
            self.second.pid()
        } else {
            self.node.pid(Service::Snapshotter)?
        };
        let weight = Processes::now()?.family_weight(pid)?;
        Ok(weight.rss as f64)
    }

    /// Milliseconds from the start of our daemon, which finds many snapshots and no registry, to
    /// its first answer.
    fn restart(&self) -> Result<f64> {
        if !self.is_crowded.replace(true) {
            Self::make_snapshots()?;
        }
        self.node.stop(Service::Registry)?;
        self.node.stop(Service::Snapshotter)?;
        let began = Instant::now();
        self.node.start_service(Service::Snapshotter)?;
        let status = output(&["xebec-snapshotter", "status"])?;
        let elapsed = began.elapsed();
        self.node.start_service(Service::Registry)?;
        let known = list()?.len();
        if known < SNAPSHOTS {
            let reason = format!("{known} snapshots are left\n{status}");
            return Err(Error::invalid("a daemon that came back", reason));
        }
        Ok(elapsed.as_secs_f64() * 1e3)
    }

    /// Snapshots for containers, evenly over all images that are there.
    fn make_snapshots() -> Result<()> {
        let mut layers = list()?;
        layers.retain(|(key, _)| key.starts_with("sha256:"));
        let is_parent = |key: &str| layers.iter().any(|(_, parent)| parent == key);
        let tops: Vec<_> = layers.iter().filter(|(key, _)| !is_parent(key)).collect();
        if tops.is_empty() {
            return Err(Error::invalid("snapshots", "there are no images"));
        }
        let line = |number: usize| format!("crowd-{number} {}", tops[number % tops.len()].0);
        let lines: Vec<_> = (0..SNAPSHOTS).map(line).collect();
        let file = Path::new("/tmp/crowd");
        fs::write(file, lines.join("\n")).map_err(Error::file("write", file))?;
        let prepare = "xargs -P 4 -L 1 ctr snapshots --snapshotter xebec prepare < /tmp/crowd";
        output(&["sh", "-ec", prepare]).map(drop)
    }
}

/// Our snapshots: key and parent.
fn list() -> Result<Vec<(String, String)>> {
    let text = output(&["ctr", "snapshots", "--snapshotter", "xebec", "ls"])?;
    let lines = text.lines().skip(1).map(|line| {
        let mut words = line.split_whitespace();
        let (key, parent) = (words.next().unwrap_or_default(), words.next());
        (key.to_owned(), parent.unwrap_or_default().to_owned())
    });
    Ok(lines.collect())
}

/// The weight of both daemons.
pub(super) fn weigh_tasks<'a>(crowd: &'a Crowd<'a>) -> Vec<Task<'a>> {
    let task = |daemon: Daemon| Task {
        feeds: vec![
            feed(
                format!("{}: RSS, 10 images", daemon.back_end),
                Unit::Kibibytes,
            ),
            feed(
                format!("{}: RSS, one more", daemon.back_end),
                Unit::Kibibytes,
            ),
        ],
        every: u32::MAX,
        warms_up: false,
        sampler: Ok(Box::new(move |_| crowd.weigh(daemon))),
    };
    DAEMONS.map(task).into()
}

/// A restart of the daemon that has been weighed.
pub(super) fn restart_tasks<'a>(crowd: &'a Crowd<'a>) -> Vec<Task<'a>> {
    vec![Task {
        feeds: vec![feed(
            "start-up, 500 snapshots".to_owned(),
            Unit::Milliseconds,
        )],
        every: 1,
        warms_up: false,
        sampler: Ok(Box::new(move |_| crowd.restart().map(|ms| vec![ms]))),
    }]
}

fn feed(row: String, unit: Unit) -> Feed {
    Feed {
        row: row.into(),
        unit,
        contestant: OURS,
    }
}
