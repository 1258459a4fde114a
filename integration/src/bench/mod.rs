//! Benchmarks: suites of operations that are measured interleaved with the peers found on the
//! host, and held against the targets of SPECIFICATION.md.
//!
//! A suite runs *inside* the native host, as a second start of this program (`measure`), so that
//! nothing but the kernel stands between the runner and what it times.

pub mod bundle;
pub mod charged;
mod checkpoint;
mod cli;
pub mod containers;
pub mod contest;
pub mod measure;
pub mod parallel;
mod parts;
pub mod phases;
pub mod plot;
pub mod report;
pub mod runtime;
mod shim;
pub mod shims;
pub mod smoke;
mod snapshotter;
pub mod stats;
pub mod suite;
pub mod targets;
pub mod weigh;

use std::collections::BTreeMap;

pub use cli::{Args, MeasureArgs, main, measure};
pub use report::Report;

use crate::corpus;
use crate::error::{Error, Result};
use crate::hosts::Service;
use crate::paths::Paths;
use crate::setup::tools::{self, Tool};
use suite::Random;

/// A benchmark by name.
struct Bench {
    name: &'static str,
    /// Daemons that its host runs before it begins.
    services: &'static [Service],
    /// Programs that its host has beside its own, and images of the corpus that it starts; `setup`
    /// alone does not make them.
    needs: Needs,
    /// Rounds of an ordinary and of a quick run.
    rounds: (u32, u32),
    run: fn(u32, Option<&str>, &mut Random) -> Result<Measured>,
    /// Names of the parts that can be run alone.
    parts: fn() -> Vec<String>,
    /// Also measures what a created container is charged with, wherever that can be told.
    charged: bool,
}

/// What is made once, before a suite.
struct Needs {
    tools: &'static [&'static Tool],
    images: &'static [&'static str],
}

const NOTHING: Needs = Needs {
    tools: &[],
    images: &[],
};

impl Needs {
    fn make(&self, paths: &Paths) -> Result<()> {
        tools::build(paths, self.tools)?;
        let images: Vec<_> = self.images.iter().map(|&image| image.to_owned()).collect();
        corpus::build(paths, &images)
    }
}

/// What a suite hands to the report.
struct Measured {
    samples: suite::Run,
    versions: BTreeMap<String, String>,
    phases: Vec<phases::Phase>,
}

/// All that exist; `all` runs them in this order.
const BENCHES: &[Bench] = &[
    Bench {
        name: "runtime",
        services: &[Service::Containerd],
        needs: NOTHING,
        rounds: (100, 10),
        run: run_runtime,
        parts: Vec::new,
        charged: true,
    },
    Bench {
        name: "smoke",
        services: &[Service::Containerd],
        needs: NOTHING,
        rounds: (50, 10),
        run: run_smoke,
        parts: Vec::new,
        charged: false,
    },
    Bench {
        name: "shim",
        services: &[Service::Containerd],
        needs: NOTHING,
        rounds: (40, 5),
        run: run_shim,
        parts: parts::names::<shim::Part>,
        charged: false,
    },
    Bench {
        name: "snapshotter",
        // It starts and stops daemons by itself.
        services: &[],
        needs: NOTHING,
        rounds: (3, 1),
        run: run_snapshotter,
        parts: parts::names::<snapshotter::Part>,
        charged: false,
    },
    Bench {
        name: "checkpoint",
        services: &[Service::Containerd, Service::Registry, Service::Snapshotter],
        needs: Needs {
            tools: &[&tools::LIBCRIU],
            images: checkpoint::IMAGES,
        },
        rounds: (20, 3),
        run: run_checkpoint,
        parts: parts::names::<checkpoint::Part>,
        charged: false,
    },
];

fn run_runtime(rounds: u32, _: Option<&str>, random: &mut Random) -> Result<Measured> {
    let fixtures = runtime::Fixtures::start()?;
    let samples = suite::run(
        &mut tasks(runtime::operations(&fixtures)),
        rounds,
        random,
        tell(rounds),
    );
    Ok(Measured {
        phases: runtime::phases(&fixtures, &samples)?,
        versions: containers::versions(),
        samples,
    })
}

fn run_smoke(rounds: u32, _: Option<&str>, random: &mut Random) -> Result<Measured> {
    let fixtures = smoke::Fixtures::start()?;
    let samples = suite::run(
        &mut tasks(smoke::operations(&fixtures)),
        rounds,
        random,
        tell(rounds),
    );
    Ok(Measured {
        samples,
        versions: smoke::versions(),
        phases: Vec::new(),
    })
}

fn run_shim(rounds: u32, only: Option<&str>, random: &mut Random) -> Result<Measured> {
    let fixtures = shim::Fixtures::start()?;
    Ok(Measured {
        samples: parts::measure::<shim::Part>(&fixtures, only, rounds, random)?,
        versions: shims::versions().collect(),
        phases: Vec::new(),
    })
}

fn run_snapshotter(rounds: u32, only: Option<&str>, random: &mut Random) -> Result<Measured> {
    let fixtures = snapshotter::Fixtures::start()?;
    Ok(Measured {
        samples: parts::measure::<snapshotter::Part>(&fixtures, only, rounds, random)?,
        versions: snapshotter::versions(),
        phases: Vec::new(),
    })
}

fn run_checkpoint(rounds: u32, only: Option<&str>, random: &mut Random) -> Result<Measured> {
    let fixtures = checkpoint::Fixtures::start()?;
    Ok(Measured {
        samples: parts::measure::<checkpoint::Part>(&fixtures, only, rounds, random)?,
        versions: checkpoint::versions(),
        phases: Vec::new(),
    })
}

fn tasks(operations: Vec<suite::Operation<'_>>) -> Vec<suite::Task<'_>> {
    let tasks = operations.into_iter().flat_map(suite::Operation::tasks);
    tasks.collect()
}

fn tell(rounds: u32) -> impl FnMut(u32) {
    move |done| {
        if done % 10 == 0 {
            eprintln!("... round {done} of {rounds}");
        }
    }
}

/// The benches that a name on the command line means.
fn select(name: &str) -> Result<Vec<&'static Bench>> {
    let chosen: Vec<_> = BENCHES
        .iter()
        .filter(|b| name == "all" || name == b.name)
        .collect();
    if chosen.is_empty() {
        let known: Vec<_> = BENCHES.iter().map(|b| b.name).collect();
        let reason = format!("no such benchmark; there are: {}, all", known.join(", "));
        return Err(Error::invalid(format!("bench {name}"), reason));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_means_every_bench() {
        assert_eq!(select("all").unwrap().len(), BENCHES.len());
    }

    #[test]
    fn an_unknown_bench_is_refused_with_the_list_of_those_that_exist() {
        let error = select("everything").map(drop).unwrap_err().to_string();
        assert!(
            error.contains("everything")
                && error.contains("runtime, smoke, shim, snapshotter, checkpoint, all"),
            "{error}"
        );
    }
}
