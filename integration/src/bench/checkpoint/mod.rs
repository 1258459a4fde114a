//! `bench checkpoint`: checkpoint and restore beside runc and crun, all of them by the host's CRIU, in
//! one interleaved run. What counts of a start is the time from the command to the first complete answer
//! of the server in the container.

mod apps;
mod clones;
mod engine;
mod kept;
mod network;
mod streamed;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use clap::ValueEnum;

pub(super) use self::apps::IMAGES;
use self::apps::{APPS, App, make_bundle, make_bundle_apart};
use self::engine::Container;
use self::network::Network;
use super::containers::{self, RUNTIMES};
use super::contest::present;
use super::measure::version;
use super::parts::Measurable;
use super::suite::{self, Feed, Random, Run, Task, Unit};
use crate::error::{Error, Result};

/// Where checkpoints are, in the directory of the suite.
const IMAGES_OF_CRIU: &str = "images";
/// How long a server that has answered is left alone, to put the connection away: one that is half
/// closed is refused by CRIU.
const SETTLE: Duration = Duration::from_millis(300);

/// What lives as long as the suite: bundles, and checkpoints of each server by each runtime.
pub(super) struct Fixtures {
    network: Network,
    directory: tempfile::TempDir,
    bundles: Vec<PathBuf>,
    /// A server with a large heap in networks of its own, of which several run at a time.
    apart: PathBuf,
    /// Directory of templates.
    templates: PathBuf,
}

impl Fixtures {
    /// Makes the bundles; containerd must be running, because the spec is the one it writes.
    pub(super) fn start() -> Result<Self> {
        let network = Network::create("bench")?;
        let directory =
            tempfile::tempdir().map_err(Error::system("create a directory of bundles"))?;
        let images = directory.path().join(IMAGES_OF_CRIU);
        fs::create_dir(&images).map_err(Error::file("create", &images))?;
        let bundles = APPS.map(|app| make_bundle(app, directory.path(), &network));
        Ok(Self {
            apart: make_bundle_apart(App::Node, directory.path())?,
            templates: directory.path().join("templates"),
            bundles: bundles.into_iter().collect::<Result<_>>()?,
            network,
            directory,
        })
    }

    fn container(&self, runtime: &'static str, app: App, what: &str) -> Container<'_> {
        let id = format!("bench-{what}-{runtime}-{}", app.name());
        Container {
            runtime,
            bundle: &self.bundles[app as usize],
            scratch: self.directory.path().join("logs").join(&id),
            id,
        }
    }

    /// Where a runtime's checkpoint of a server is.
    fn images(&self, runtime: &str, app: App) -> PathBuf {
        let name = format!("{}-{runtime}", app.name());
        self.directory.path().join(IMAGES_OF_CRIU).join(name)
    }

    /// Milliseconds from `start` to the container's first answer; it is removed then.
    fn first_answer(
        &self,
        container: &Container<'_>,
        start: impl FnOnce() -> Result<()>,
    ) -> Result<f64> {
        let asked = self.network.ask_while(start);
        let deleted = container.delete();
        let ((), began, answer) = asked?;
        deleted?;
        Ok((answer.at - began).as_secs_f64() * 1e3)
    }

    /// From nothing to the first answer.
    fn cold(&self, runtime: &'static str, app: App) -> Result<Vec<f64>> {
        let container = self.container(runtime, app, "cold");
        Ok(vec![self.first_answer(&container, || container.run())?])
    }

    /// From a runtime's own checkpoint, with all of its memory, to the first answer.
    fn restore(&self, runtime: &'static str, app: App) -> Result<Vec<f64>> {
        let images = self.images(runtime, app);
        if !images.exists() {
            self.make_images(runtime, app)?;
        }
        let container = self.container(runtime, app, "restore");
        Ok(vec![
            self.first_answer(&container, || container.restore(&images))?,
        ])
    }

    fn make_images(&self, runtime: &'static str, app: App) -> Result<()> {
        let container = self.container(runtime, app, "dump");
        let asked = self.network.ask_while(|| container.run());
        sleep(SETTLE);
        let dumped = asked.and_then(|_| container.checkpoint(&[], &self.images(runtime, app)));
        // A container that has become files is gone.
        if dumped.is_err() {
            container.delete()?;
            return dumped;
        }
        container.keep_cgroup()
    }

    /// For how long a small server stands still during a checkpoint, as it sees it itself.
    fn pause(&self, container: &Container<'_>) -> Result<Vec<f64>> {
        let images = self.directory.path().join("paused");
        self.network.ask()?;
        sleep(SETTLE);
        container.checkpoint(&["--leave-running"], &images)?;
        let answer = self.network.ask()?.body;
        fs::remove_dir_all(&images).map_err(Error::file("remove", &images))?;
        let microseconds: f64 = answer
            .parse()
            .map_err(|_| Error::invalid("the answer of bench-server", &answer))?;
        Ok(vec![microseconds / 1e3])
    }
}

/// What each runtime, and CRIU, says of its version.
pub(super) fn versions() -> BTreeMap<String, String> {
    let mut versions = containers::versions();
    versions.insert("criu".to_owned(), version(&["criu", "--version"]));
    versions
}

/// A part of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Part {
    /// Starts of servers, anew and from checkpoints
    Starts,
    /// How long a checkpoint stops a server
    Pause,
    /// Clones of warm servers
    Clones,
    /// What checkpoints take that are kept
    Kept,
    /// What a clone needs of a template in a registry
    Streamed,
}

impl Measurable for Part {
    type Fixtures = Fixtures;

    fn measure(self, fixtures: &Fixtures, rounds: u32, random: &mut Random) -> Result<Run> {
        let mut tasks = match self {
            Self::Starts => starts(fixtures),
            Self::Pause => RUNTIMES
                .iter()
                .map(|&runtime| pauses(fixtures, runtime))
                .collect(),
            Self::Clones => clones::clones(fixtures),
            Self::Kept => kept::kept(fixtures),
            Self::Streamed => streamed::streamed(fixtures),
        };
        let tell = super::tell(rounds);
        Ok(suite::run(&mut tasks, rounds, random, tell))
    }
}

type Sample = fn(&Fixtures, &'static str, App) -> Result<Vec<f64>>;

fn starts(fixtures: &Fixtures) -> Vec<Task<'_>> {
    let kinds: [(&str, Sample); 2] = [("cold", Fixtures::cold), ("restore", Fixtures::restore)];
    let mut tasks = Vec::new();
    for (kind, sample) in kinds {
        for app in APPS {
            for &runtime in RUNTIMES {
                let row = format!("{kind}: {}", app.name());
                let sampler = move |_| sample(fixtures, runtime, app);
                tasks.push(task(row, runtime, sampler));
            }
        }
    }
    tasks
}

fn pauses<'a>(fixtures: &'a Fixtures, runtime: &'static str) -> Task<'a> {
    task("pause: static".to_owned(), runtime, move |_| {
        // Each time one of its own: all of them listen at the same place.
        let container = fixtures.container(runtime, App::Static, "pause");
        let paused = container.run().and_then(|()| fixtures.pause(&container));
        container.delete()?;
        paused
    })
}

fn task<'a>(
    row: String,
    runtime: &'static str,
    sampler: impl FnMut(u32) -> Result<Vec<f64>> + 'a,
) -> Task<'a> {
    task_of(row, (runtime, runtime), Unit::Milliseconds, sampler)
}

/// A row's samples of one contestant, who needs `program`.
fn task_of<'a>(
    row: String,
    (contestant, program): (&'static str, &str),
    unit: Unit,
    sampler: impl FnMut(u32) -> Result<Vec<f64>> + 'a,
) -> Task<'a> {
    Task {
        feeds: vec![Feed {
            row: row.into(),
            unit,
            contestant,
        }],
        every: 1,
        warms_up: true,
        sampler: present(program).map(|()| -> suite::Sampler<'a> { Box::new(sampler) }),
    }
}
