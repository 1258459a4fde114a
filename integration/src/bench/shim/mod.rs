//! `bench shim`: what our shim costs beside containerd's own, in one interleaved run: its start
//! alone, containers and execs by `ctr`, executions of programs, memory of idle containers,
//! throughput, and how soon containerd hears of an exit.

mod crowd;
mod execs;
mod exits;
mod idle;
mod start;

use clap::ValueEnum;

use super::contest::{contest, one};
use super::measure::{output, wall_ms};
use super::parts::Measurable;
use super::shims::{self, SHIMS, Shim};
use super::suite::{self, Contestant, Feed, Operation, Random, Run, Task, Unit};
use super::tasks;
use crate::error::Result;

/// The name under which the corpus' busybox is imported.
const IMAGE: &str = "bench.test/busybox:busybox";
/// Rounds of quick calls for one of what takes many seconds, and for one of what varies little too.
const SELDOM: u32 = 10;
const RARELY: u32 = 20;

/// What lives as long as the suite: the image, and a running container of each shim.
pub(super) struct Fixtures;

impl Fixtures {
    /// Makes them; containerd must be running.
    pub(super) fn start() -> Result<Self> {
        let import = "tar -C /srv/corpus/busybox -c . | \
                      ctr images import --snapshotter overlayfs --base-name bench.test/busybox -";
        output(&["sh", "-ec", import])?;
        for shim in shims::present() {
            start_container(shim, &target(shim), &[])?;
        }
        Ok(Self)
    }
}

impl Drop for Fixtures {
    fn drop(&mut self) {
        // The host that this runs in is thrown away; what cannot be removed goes with it.
        for shim in shims::present() {
            let _ = shims::remove(&target(shim));
        }
    }
}

/// A part of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Part {
    /// Time of the shim's start, and of `ctr run` and `ctr task exec`
    Calls,
    /// Programs that are executed for a container
    Execs,
    /// Memory, threads and descriptors of one idle container and of a pod
    Idle,
    /// Many containers one after the other and side by side, and the events of their exits
    Throughput,
    /// Memory of 200 idle containers
    Crowd,
}

impl Measurable for Part {
    type Fixtures = Fixtures;

    fn measure(self, _: &Fixtures, rounds: u32, random: &mut Random) -> Result<Run> {
        let tell = |round: u32| {
            if round.is_multiple_of(SELDOM) {
                eprintln!("... {self:?}: round {round}");
            }
        };
        let (mut tasks, rounds) = match self {
            Self::Calls => (tasks(calls()), rounds),
            Self::Execs => (execs::tasks(), rounds.div_ceil(RARELY)),
            Self::Idle => (idle::tasks(), rounds.div_ceil(RARELY)),
            Self::Throughput => (crowd::throughput(), rounds.div_ceil(SELDOM)),
            Self::Crowd => (crowd::idle(), 1),
        };
        Ok(suite::run(&mut tasks, rounds, random, tell))
    }
}

/// What is timed call by call.
fn calls() -> Vec<Operation<'static>> {
    let ms = Unit::Milliseconds;
    vec![
        contest(&["start"], ms, 1, SHIMS, |shim| {
            Box::new(move |n| one(start::start_ms(shim, n)))
        }),
        contest(&["ctr run --rm"], ms, 1, SHIMS, |shim| {
            Box::new(move |n| one(wall_ms(&run_command(shim, &["--rm"], &name(shim, "rm", n)))))
        }),
        contest(&["ctr run -d"], ms, 1, SHIMS, |shim| {
            Box::new(move |n| {
                let id = name(shim, "detached", n);
                let argv = shim.run_command(&["-d"], &[IMAGE], &id, shims::SLEEP);
                let elapsed = wall_ms(&argv)?;
                shims::remove(&id)?;
                Ok(vec![elapsed])
            })
        }),
        beside_ctr_alone(contest(&["ctr task exec"], ms, 1, SHIMS, |shim| {
            Box::new(move |n| one(shims::exec_ms(&target(shim), n)))
        })),
    ]
}

/// Lets `ctr` compete with a question that no shim is asked: what it and containerd take anyway.
fn beside_ctr_alone(mut operation: Operation<'static>) -> Operation<'static> {
    operation.contestants.push(Contestant {
        name: "ctr images ls",
        sampler: Ok(Box::new(|_| one(wall_ms(&["ctr", "images", "ls", "-q"])))),
    });
    operation
}

/// Tasks of all shims that are here, each of which feeds its cells of several rows.
fn all_rows<'a>(
    rows: &'static [(&'static str, Unit)],
    sample: impl Fn(&'static Shim, u32) -> Result<Vec<f64>> + Copy + 'a,
) -> Vec<Task<'a>> {
    let task = |shim: &'static Shim| Task {
        feeds: rows
            .iter()
            .map(|&(row, unit)| Feed {
                row: row.into(),
                unit,
                contestant: shim.contestant,
            })
            .collect(),
        every: 1,
        warms_up: false,
        sampler: super::contest::present(shim.binary)
            .map(|()| -> suite::Sampler<'a> { Box::new(move |round| sample(shim, round)) }),
    };
    SHIMS.iter().map(task).collect()
}

/// `ctr run` of /bin/true in the image.
fn run_command(shim: &Shim, flags: &[&str], id: &str) -> Vec<String> {
    shim.run_command(flags, &[IMAGE], id, shims::TRUE)
}

/// Starts a container that idles.
fn start_container(shim: &Shim, id: &str, flags: &[&str]) -> Result<()> {
    let flags = [&["-d"], flags].concat();
    // Not `output`: a daemon that kept the pipe open would be waited for.
    wall_ms(&shim.run_command(&flags, &[IMAGE], id, shims::SLEEP)).map(drop)
}

/// A container's name that no other sample has.
fn name(shim: &Shim, what: &str, number: u32) -> String {
    format!("bench-{what}-{}-{number}", shim.contestant)
}

/// The container of a shim that lives as long as the suite.
fn target(shim: &Shim) -> String {
    format!("bench-target-{}", shim.contestant)
}

/// Removes all of these containers, and tells of the first that could not be.
fn remove_all(ids: &[String]) -> Result<()> {
    let removed: Vec<_> = ids.iter().rev().map(|id| shims::remove(id)).collect();
    removed.into_iter().collect()
}
