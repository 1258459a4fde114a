//! `bench smoke`: the first figures of the main path, against runc and crun on one bundle, and
//! through containerd against its own shim.

use std::collections::BTreeMap;

use super::containers::{self, Containers, RUNTIMES};
use super::contest::{contest, one};
use super::measure::{output, wall_ms};
use super::shims::{self, SHIMS, Shim};
use super::suite::{Operation, Unit};
use crate::error::Result;

/// Containers that live as long as the suite, one for each contestant, to exec into.
pub struct Fixtures {
    containers: Containers,
}

impl Fixtures {
    /// Starts them; containerd must be running.
    pub fn start() -> Result<Self> {
        let fixtures = Self {
            containers: Containers::start()?,
        };
        for shim in shims::present() {
            fixtures.start_task(shim, &task_target(shim))?;
        }
        Ok(fixtures)
    }

    fn start_task(&self, shim: &Shim, id: &str) -> Result<()> {
        let argv = self.ctr_run(shim, &["-d"], id, shims::SLEEP);
        output(&argv).map(drop)
    }

    /// `ctr run` of the shared root filesystem, with containerd's seccomp profile.
    fn ctr_run(&self, shim: &Shim, flags: &[&str], id: &str, command: &[&str]) -> Vec<String> {
        let rootfs = self.containers.rootfs();
        let source = ["--seccomp", "--rootfs", &rootfs.to_string_lossy()];
        shim.run_command(flags, &source, id, command)
    }
}

impl Drop for Fixtures {
    fn drop(&mut self) {
        // The host that this runs in is thrown away; what cannot be removed goes with it.
        for shim in shims::present() {
            let _ = shims::remove(&task_target(shim));
        }
    }
}

fn task_target(shim: &Shim) -> String {
    format!("bench-task-{}", shim.contestant)
}

/// The operations of the suite.
pub fn operations(fixtures: &Fixtures) -> Vec<Operation<'_>> {
    let made = &fixtures.containers;
    let ms = Unit::Milliseconds;
    let memory = &["idle shim RSS", "idle shim PSS", "idle shim private"];
    vec![
        contest(&["run"], ms, 1, RUNTIMES, |runtime| {
            Box::new(move |n| made.run(runtime, n))
        }),
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
        contest(&["ctr run --rm"], ms, 1, SHIMS, |shim| {
            Box::new(move |n| {
                let id = format!("bench-run-{n}");
                one(wall_ms(&fixtures.ctr_run(
                    shim,
                    &["--rm"],
                    &id,
                    shims::TRUE,
                )))
            })
        }),
        contest(&["ctr task exec"], ms, 1, SHIMS, |shim| {
            Box::new(move |n| one(shims::exec_ms(&task_target(shim), n)))
        }),
        contest(memory, Unit::Kibibytes, MEMORY_EVERY, SHIMS, |shim| {
            Box::new(move |n| idle_shim(fixtures, shim, n))
        }),
    ]
}

/// What each contestant says of its version, in one line.
pub fn versions() -> BTreeMap<String, String> {
    containers::versions()
        .into_iter()
        .chain(shims::versions())
        .collect()
}

/// Memory varies little and is slow to sample.
const MEMORY_EVERY: u32 = 10;

fn idle_shim(fixtures: &Fixtures, shim: &Shim, round: u32) -> Result<Vec<f64>> {
    let id = format!("bench-idle-{round}");
    fixtures.start_task(shim, &id)?;
    let weight = shims::weigh_idle(&[&id]);
    shims::remove(&id)?;
    weight.map(|w| vec![w.rss as f64, w.pss as f64, w.private as f64])
}
