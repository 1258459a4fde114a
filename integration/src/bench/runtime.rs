//! `bench runtime`: the runtime's commands and library beside runc, crun and the floor.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use super::containers::{self, Containers, RUNTIMES};
use super::contest::{Side, contest, one};
use super::measure::{in_path, output, wall_ms};
use super::parallel::for_each;
use super::phases::{self, Phase};
use super::stats::Summary;
use super::suite::{OURS, Operation, Run, Sampler, Unit};
use super::weigh::{self, Used, numbers};
use crate::error::{Error, Result};

/// Programs of `integration/programs`, where a native host has the product's binaries.
const FLOOR: &str = "/opt/xebec/bench-floor";
const LIBRARY: &str = "/opt/xebec/bench-library";

/// Containers of a crowd, and how many are made at once.
const CROWD: u32 = 100;
const AT_ONCE: u32 = 8;
/// Rounds between two samples of what is slow to take or varies little.
const SELDOM: u32 = 10;

/// Who starts a container of the short bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    Runtime(&'static str),
    /// Ours from a file that could be written to, which it first has to protect itself from.
    Writable,
    Floor,
    Library,
}

impl Side for Runner {
    fn contestant(&self) -> &'static str {
        match self {
            Self::Runtime(name) => name,
            Self::Floor => "floor",
            Self::Library | Self::Writable => OURS,
        }
    }

    fn binary(&self) -> &'static str {
        match self {
            Self::Runtime(name) => name,
            Self::Floor => FLOOR,
            Self::Library => LIBRARY,
            Self::Writable => OURS,
        }
    }
}

const RUNNERS: &[Runner] = &[
    Runner::Runtime(OURS),
    Runner::Floor,
    Runner::Runtime("runc"),
    Runner::Runtime("crun"),
];
/// crun's file is writable too; it protects itself in the same way.
const FROM_WRITABLE: &[Runner] = &[Runner::Writable, Runner::Runtime("crun")];
const LIBRARY_AND_FLOOR: &[Runner] = &[Runner::Library, Runner::Floor];
const LIBRARY_ALONE: &[Runner] = &[Runner::Library];

/// What lives as long as the suite.
pub struct Fixtures {
    containers: Containers,
    /// The floor's compiled programs.
    programs: tempfile::TempDir,
}

impl Fixtures {
    /// Makes bundles, a container for each runtime, and the floor's programs.
    pub fn start() -> Result<Self> {
        let containers = Containers::start()?;
        let programs =
            tempfile::tempdir().map_err(Error::system("create a directory of programs"))?;
        let (bundle, directory) = (containers.short(), programs.path());
        output(&[
            LIBRARY,
            "prepare",
            &bundle.to_string_lossy(),
            &directory.to_string_lossy(),
        ])?;
        if let Some(ours) = in_path(OURS) {
            fs::copy(&ours, directory.join(OURS)).map_err(Error::file("copy", &ours))?;
        }
        Ok(Self {
            containers,
            programs,
        })
    }

    /// A command that runs /bin/true in a container.
    fn run_command(&self, runner: Runner, what: &str, number: u32) -> Vec<String> {
        let id = format!("bench-{what}-{}-{number}", runner.contestant());
        match runner {
            Runner::Runtime(runtime) => self.containers.run_command(runtime, &id),
            Runner::Writable => {
                let program = self.programs.path().join(OURS);
                self.containers.run_command(&program.to_string_lossy(), &id)
            }
            Runner::Floor | Runner::Library => {
                let program = |name| self.programs.path().join(name);
                let paths = [
                    PathBuf::from(FLOOR),
                    self.containers.rootfs(),
                    program("filter"),
                    program("devices"),
                    PathBuf::from("/sys/fs/cgroup").join(id),
                    PathBuf::from("/bin/true"),
                ];
                let words = paths.iter().map(|path| path.to_string_lossy().into_owned());
                words.collect()
            }
        }
    }
}

/// The operations of the suite.
pub fn operations(fixtures: &Fixtures) -> Vec<Operation<'_>> {
    let made = &fixtures.containers;
    let ms = Unit::Milliseconds;
    vec![
        contest(&["run"], ms, 1, RUNNERS, |&runner| {
            Box::new(move |n| one(wall_ms(&fixtures.run_command(runner, "run", n))))
        }),
        contest(
            &["run: writable program"],
            ms,
            1,
            FROM_WRITABLE,
            |&runner| Box::new(move |n| one(wall_ms(&fixtures.run_command(runner, "writable", n)))),
        ),
        contest(
            &["create+start+delete -f", "create", "start", "delete -f"],
            ms,
            1,
            RUNTIMES,
            |runtime| Box::new(move |n| made.lifecycle(runtime, n)),
        ),
        contest(&["exec"], ms, 1, RUNTIMES, |runtime| {
            Box::new(move |_| containers::exec(runtime))
        }),
        contest(&["state"], ms, 1, RUNTIMES, |runtime| {
            Box::new(move |_| containers::state(runtime))
        }),
        contest(
            &["library"],
            ms,
            1,
            LIBRARY_AND_FLOOR,
            |&runner| match runner {
                Runner::Library => containers_of_library(fixtures),
                _ => Box::new(move |n| one(wall_ms(&fixtures.run_command(runner, "library", n)))),
            },
        ),
        contest(&["run: processor time"], ms, 1, RUNNERS, |&runner| {
            Box::new(move |n| one(weigh(fixtures, runner, "time", n).map(|used| used.ms)))
        }),
        contest(
            &["run: peak RSS"],
            Unit::Kibibytes,
            SELDOM,
            RUNNERS,
            |&runner| {
                Box::new(move |n| one(weigh(fixtures, runner, "rss", n).map(|used| used.kib)))
            },
        ),
        contest(
            &["run: system calls"],
            Unit::Calls,
            SELDOM,
            RUNNERS,
            |&runner| {
                Box::new(move |n| one(phases::count(&fixtures.run_command(runner, "calls", n))))
            },
        ),
        contest(&["100 at concurrency 8"], ms, SELDOM, RUNTIMES, |runtime| {
            Box::new(move |_| one(crowd(made, runtime)))
        }),
        contest(
            &["seccomp: compile", "seccomp: cached"],
            ms,
            1,
            LIBRARY_ALONE,
            |_| seccomp(fixtures),
        ),
    ]
}

/// Where the time of our `run` goes, given what was measured of it.
pub fn phases(fixtures: &Fixtures, samples: &Run) -> Result<Vec<Phase>> {
    let row = samples.rows.iter().find(|row| row.name == "run");
    let ours = row.and_then(|row| row.cells.iter().find(|(name, _)| *name == OURS));
    let Some(summary) = ours.and_then(|(_, figures)| Summary::of(figures)) else {
        return Ok(Vec::new());
    };
    let runner = Runner::Runtime(OURS);
    phases::measure(|n| fixtures.run_command(runner, "phases", n), summary.p10)
}

fn weigh(fixtures: &Fixtures, runner: Runner, what: &str, round: u32) -> Result<Used> {
    weigh::command(&fixtures.run_command(runner, what, round))
}

/// Starts many containers, several at a time, and removes them when the clock has stopped.
fn crowd(containers: &Containers, runtime: &str) -> Result<f64> {
    let name = |n: u32| format!("bench-crowd-{runtime}-{n}");
    let began = Instant::now();
    for_each(CROWD, AT_ONCE, |n| {
        wall_ms(&containers.create(runtime, &["run", "-d"], &name(n))).map(drop)
    })?;
    let elapsed = began.elapsed();
    for_each(CROWD, AT_ONCE, |n| {
        wall_ms(&[runtime, "delete", "-f", &name(n)]).map(drop)
    })?;
    Ok(elapsed.as_secs_f64() * 1e3)
}

fn containers_of_library(fixtures: &Fixtures) -> Sampler<'_> {
    let mut library = None;
    Box::new(move |round| {
        let request = format!("container bench-library-{round}");
        Library::of(&mut library, fixtures)?.ask(&request)
    })
}

fn seccomp(fixtures: &Fixtures) -> Sampler<'_> {
    let mut library = None;
    let cache = fixtures.programs.path().join("cache");
    Box::new(move |_| {
        let request = format!("seccomp {}", cache.display());
        Library::of(&mut library, fixtures)?.ask(&request)
    })
}

/// A process that uses the library and answers requests.
struct Library {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl Library {
    /// The process in `slot`, started at first use.
    fn of<'a>(slot: &'a mut Option<Self>, fixtures: &Fixtures) -> Result<&'a mut Self> {
        match slot {
            Some(library) => Ok(library),
            None => Ok(slot.insert(Self::start(fixtures)?)),
        }
    }

    fn start(fixtures: &Fixtures) -> Result<Self> {
        let mut process = Command::new(LIBRARY)
            .args(["serve", "/run/bench-library"])
            .arg(fixtures.containers.short())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::system("start the library's process"))?;
        match process.stdout.take() {
            Some(stdout) => Ok(Self {
                process,
                answers: BufReader::new(stdout),
            }),
            None => Err(Error::invalid(LIBRARY, "it has no standard output")),
        }
    }

    fn ask(&mut self, request: &str) -> Result<Vec<f64>> {
        if let Some(requests) = &mut self.process.stdin {
            writeln!(requests, "{request}").map_err(Error::system("ask the library"))?;
        }
        let mut answer = String::new();
        self.answers
            .read_line(&mut answer)
            .map_err(Error::system("hear from the library"))?;
        if answer.is_empty() {
            return Err(Error::invalid(request, "the library's process ended"));
        }
        numbers(&answer)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // The end of its input ends it; what cannot be waited for goes with the host.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
