//! `bench smoke`: the first figures of the main path, against runc and crun on one bundle, and
//! through containerd against its own shim.

use std::collections::BTreeMap;

use super::containers::{self, Containers, RUNTIMES};
use super::contest::{Side, contest, one};
use super::measure::{in_path, output, shim_memory, version, wall_ms};
use super::suite::{OURS, Operation, Unit};
use crate::error::{Error, Result};

/// Contestant, its runtime name for containerd and its binary.
const SHIMS: &[Shim] = &[
    Shim {
        contestant: OURS,
        runtime: "io.containerd.xebec.v2",
        binary: "containerd-shim-xebec-v2",
    },
    Shim {
        contestant: "containerd-shim-runc-v2",
        runtime: "io.containerd.runc.v2",
        binary: "containerd-shim-runc-v2",
    },
];

struct Shim {
    contestant: &'static str,
    runtime: &'static str,
    binary: &'static str,
}

impl Side for Shim {
    fn contestant(&self) -> &'static str {
        self.contestant
    }

    fn binary(&self) -> &'static str {
        self.binary
    }
}

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
        for shim in SHIMS.iter().filter(|s| in_path(s.binary).is_some()) {
            fixtures.start_task(shim, &task_target(shim))?;
        }
        Ok(fixtures)
    }

    fn start_task(&self, shim: &Shim, id: &str) -> Result<()> {
        let argv = self.ctr_run(shim, &["-d"], id, &["/bin/sleep", "100000"]);
        output(&argv).map(drop)
    }

    /// `ctr run` of the shared root filesystem. `--cpu-shares 0` asks for no cpu controller,
    /// which the native host lacks.
    fn ctr_run(&self, shim: &Shim, flags: &[&str], id: &str, command: &[&str]) -> Vec<String> {
        let rootfs = self.containers.rootfs();
        let mut argv = vec!["ctr", "run", "--runtime", shim.runtime, "--cpu-shares", "0"];
        argv.push("--seccomp");
        argv.extend(flags);
        let rootfs = rootfs.to_string_lossy();
        argv.extend(["--rootfs", &rootfs, id]);
        argv.extend(command);
        argv.into_iter().map(str::to_owned).collect()
    }
}

impl Drop for Fixtures {
    fn drop(&mut self) {
        // The host that this runs in is thrown away; what cannot be removed goes with it.
        for shim in SHIMS.iter().filter(|s| in_path(s.binary).is_some()) {
            let _ = remove_task(&task_target(shim));
        }
    }
}

fn task_target(shim: &Shim) -> String {
    format!("bench-task-{}", shim.contestant)
}

fn remove_task(id: &str) -> Result<()> {
    output(&["ctr", "tasks", "rm", "-f", id])?;
    output(&["ctr", "containers", "rm", id]).map(drop)
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
                    &["/bin/true"],
                )))
            })
        }),
        contest(&["ctr task exec"], ms, 1, SHIMS, |shim| {
            Box::new(move |n| task_exec(shim, n))
        }),
        contest(memory, Unit::Kibibytes, MEMORY_EVERY, SHIMS, |shim| {
            Box::new(move |n| idle_shim(fixtures, shim, n))
        }),
    ]
}

/// What each contestant says of its version, in one line.
pub fn versions() -> BTreeMap<String, String> {
    let shims = SHIMS
        .iter()
        .filter(|shim| in_path(shim.binary).is_some())
        .map(|shim| (shim.binary.to_owned(), version(&[shim.binary, "-v"])));
    containers::versions().into_iter().chain(shims).collect()
}

/// Memory varies little and is slow to sample.
const MEMORY_EVERY: u32 = 10;

fn task_exec(shim: &Shim, round: u32) -> Result<Vec<f64>> {
    let (id, exec) = (task_target(shim), format!("e{round}"));
    one(wall_ms(&[
        "ctr",
        "tasks",
        "exec",
        "--exec-id",
        &exec,
        &id,
        "/bin/true",
    ]))
}

fn idle_shim(fixtures: &Fixtures, shim: &Shim, round: u32) -> Result<Vec<f64>> {
    let id = format!("bench-idle-{round}");
    fixtures.start_task(shim, &id)?;
    std::thread::sleep(SETTLE);
    let memory = init_pid(&id).and_then(shim_memory);
    remove_task(&id)?;
    memory.map(|m| vec![m.rss as f64, m.pss as f64, m.private as f64])
}

/// How long a shim is left alone before it is weighed.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(500);

/// The init pid that `ctr tasks ls` shows.
fn init_pid(id: &str) -> Result<u32> {
    let list = output(&["ctr", "tasks", "ls"])?;
    parse_init_pid(&list, id)
        .ok_or_else(|| Error::invalid("output of `ctr tasks ls`", format!("no pid for {id}")))
}

fn parse_init_pid(list: &str, id: &str) -> Option<u32> {
    let mut fields = list
        .lines()
        .map(str::split_whitespace)
        .find_map(|mut fields| (fields.next() == Some(id)).then_some(fields))?;
    fields.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_of_a_task_is_found_by_its_whole_id() {
        let list =
            "TASK      PID    STATUS\nbench-10    77    RUNNING\nbench-1     12    RUNNING\n";
        assert_eq!(parse_init_pid(list, "bench-1"), Some(12));
        assert_eq!(parse_init_pid(list, "bench"), None);
    }
}
