//! `bench smoke`: the first figures of the main path, against runc and crun on one bundle, and
//! through containerd against its own shim.

use std::collections::BTreeMap;

use super::bundle::Bundles;
use super::measure::{in_path, output, shim_memory, wall_ms};
use super::suite::{Absent, Contestant, OURS, Operation, Sampler, Unit};
use crate::error::{Error, Result};

/// Runtimes in the order of the table.
const RUNTIMES: &[&str] = &[OURS, "runc", "crun"];

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

/// Containers that live as long as the suite, one for each contestant, to exec into.
pub struct Fixtures {
    bundles: Bundles,
}

impl Fixtures {
    /// Starts them; containerd must be running.
    pub fn start() -> Result<Self> {
        let fixtures = Self {
            bundles: Bundles::create()?,
        };
        for runtime in RUNTIMES.iter().filter(|r| in_path(r).is_some()) {
            let bundle = fixtures.bundles.long();
            let bundle = bundle.to_string_lossy();
            // Not `output`: the container would hold the other end of its pipe.
            wall_ms(&[runtime, "run", "-d", "-b", &bundle, &exec_target(runtime)])?;
        }
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
        let rootfs = self.bundles.rootfs();
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
        for runtime in RUNTIMES.iter().filter(|r| in_path(r).is_some()) {
            let _ = output(&[runtime, "delete", "-f", &exec_target(runtime)]);
        }
        for shim in SHIMS.iter().filter(|s| in_path(s.binary).is_some()) {
            let _ = remove_task(&task_target(shim));
        }
    }
}

/// Container of a runtime to exec into; runtimes share the cgroup tree, so ids must differ.
fn exec_target(runtime: &str) -> String {
    format!("bench-exec-{runtime}")
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
    vec![
        of_runtimes(&["run"], |runtime| {
            Box::new(move |n| run(fixtures, runtime, n))
        }),
        of_runtimes(
            &["create+start+delete -f", "create", "start", "delete -f"],
            |runtime| Box::new(move |n| lifecycle(fixtures, runtime, n)),
        ),
        of_runtimes(&["exec"], |runtime| {
            Box::new(move |_| {
                one(wall_ms(&[
                    runtime,
                    "exec",
                    &exec_target(runtime),
                    "/bin/true",
                ]))
            })
        }),
        of_shims(&["ctr run --rm"], Unit::Milliseconds, 1, |shim| {
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
        of_shims(&["ctr task exec"], Unit::Milliseconds, 1, |shim| {
            Box::new(move |n| {
                let (id, exec) = (task_target(shim), format!("e{n}"));
                one(wall_ms(&[
                    "ctr",
                    "tasks",
                    "exec",
                    "--exec-id",
                    &exec,
                    &id,
                    "/bin/true",
                ]))
            })
        }),
        of_shims(
            &["idle shim RSS", "idle shim PSS", "idle shim private"],
            Unit::Kibibytes,
            MEMORY_EVERY,
            |shim| Box::new(move |n| idle_shim(fixtures, shim, n)),
        ),
    ]
}

/// What each contestant says of its version, in one line.
pub fn versions() -> BTreeMap<String, String> {
    let runtimes = RUNTIMES
        .iter()
        .map(|name| (*name, vec![*name, "--version"]));
    let shims = SHIMS
        .iter()
        .map(|shim| (shim.binary, vec![shim.binary, "-v"]));
    runtimes
        .chain(shims)
        .filter(|(_, argv)| in_path(argv[0]).is_some())
        .map(|(name, argv)| {
            let says = output(&argv).unwrap_or_else(|error| error.to_string());
            (
                name.to_owned(),
                says.split_whitespace().collect::<Vec<_>>().join(" "),
            )
        })
        .collect()
}

/// Memory varies little and is slow to sample.
const MEMORY_EVERY: u32 = 10;

fn one(figure: Result<f64>) -> Result<Vec<f64>> {
    figure.map(|f| vec![f])
}

fn of_runtimes<'a>(
    rows: &'static [&'static str],
    sampler: impl Fn(&'static str) -> Sampler<'a>,
) -> Operation<'a> {
    let contestants = RUNTIMES
        .iter()
        .map(|&name| Contestant {
            name,
            sampler: present(name).map(|()| sampler(name)),
        })
        .collect();
    Operation {
        rows,
        unit: Unit::Milliseconds,
        every: 1,
        contestants,
    }
}

fn of_shims<'a>(
    rows: &'static [&'static str],
    unit: Unit,
    every: u32,
    sampler: impl Fn(&'static Shim) -> Sampler<'a>,
) -> Operation<'a> {
    let contestants = SHIMS
        .iter()
        .map(|shim| Contestant {
            name: shim.contestant,
            sampler: present(shim.binary).map(|()| sampler(shim)),
        })
        .collect();
    Operation {
        rows,
        unit,
        every,
        contestants,
    }
}

fn present(binary: &str) -> std::result::Result<(), Absent> {
    in_path(binary)
        .map(drop)
        .ok_or_else(|| Absent(format!("{binary} was not found in PATH")))
}

fn run(fixtures: &Fixtures, runtime: &str, round: u32) -> Result<Vec<f64>> {
    let bundle = fixtures.bundles.short();
    one(wall_ms(&[
        runtime,
        "run",
        "-b",
        &bundle.to_string_lossy(),
        &format!("bench-run-{runtime}-{round}"),
    ]))
}

fn lifecycle(fixtures: &Fixtures, runtime: &str, round: u32) -> Result<Vec<f64>> {
    let bundle = fixtures.bundles.long();
    let id = format!("bench-life-{runtime}-{round}");
    let create = wall_ms(&[runtime, "create", "-b", &bundle.to_string_lossy(), &id])?;
    let start = wall_ms(&[runtime, "start", &id])?;
    let delete = wall_ms(&[runtime, "delete", "-f", &id])?;
    Ok(vec![create + start + delete, create, start, delete])
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
