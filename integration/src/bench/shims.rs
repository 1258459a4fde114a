//! The shims that compete, and the containers they run for `ctr`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::contest::Side;
use super::measure::{Processes, Weight, in_path, output, version, wall_ms};
use super::suite::OURS;
use crate::error::{Error, Result};

/// Ours and containerd's own, in the order of the table.
pub const SHIMS: &[Shim] = &[
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

/// A container's command that ends at once.
pub const TRUE: &[&str] = &["/bin/true"];
/// One that idles.
pub const SLEEP: &[&str] = &["/bin/sleep", "100000"];

/// How long shims are left alone before they are weighed: threads that wait for more work are gone
/// then.
const SETTLE: Duration = Duration::from_secs(2);

/// A shim that competes.
pub struct Shim {
    /// Its name in the table.
    pub contestant: &'static str,
    /// containerd's name of its runtime.
    pub runtime: &'static str,
    /// Its program.
    pub binary: &'static str,
}

impl Side for Shim {
    fn contestant(&self) -> &'static str {
        self.contestant
    }

    fn binary(&self) -> &'static str {
        self.binary
    }
}

impl Shim {
    /// `ctr run` of an image or, with its flags, of a root file system. `--cpu-shares 0` asks for no
    /// cpu controller, which the native host lacks.
    pub fn run_command(
        &self,
        flags: &[&str],
        source: &[&str],
        id: &str,
        command: &[&str],
    ) -> Vec<String> {
        let run = ["ctr", "run", "--runtime", self.runtime, "--cpu-shares", "0"];
        let words = [&run[..], flags, source, &[id], command].concat();
        words.into_iter().map(str::to_owned).collect()
    }
}

/// Those that are on this host.
pub fn present() -> impl Iterator<Item = &'static Shim> {
    SHIMS.iter().filter(|shim| in_path(shim.binary).is_some())
}

/// What each shim says of its version, in one line.
pub fn versions() -> impl Iterator<Item = (String, String)> {
    present().map(|shim| (shim.binary.to_owned(), version(&[shim.binary, "-v"])))
}

/// Milliseconds of an exec of /bin/true in a running container; `number` makes its id.
pub fn exec_ms(container: &str, number: u32) -> Result<f64> {
    let exec = format!("e{number}");
    let argv = ["ctr", "tasks", "exec", "--exec-id", &exec, container];
    wall_ms(&[&argv[..], TRUE].concat())
}

/// Ends and removes a container.
pub fn remove(id: &str) -> Result<()> {
    output(&["ctr", "tasks", "rm", "-f", id])?;
    output(&["ctr", "containers", "rm", id]).map(drop)
}

/// What the shims of these idle containers weigh together, each of them counted once.
pub fn weigh_idle<S: AsRef<str>>(ids: &[S]) -> Result<Weight> {
    std::thread::sleep(SETTLE);
    let list = output(&["ctr", "tasks", "ls"])?;
    let inits = init_pids(&list);
    let pids = ids.iter().map(|id| {
        let id = id.as_ref();
        let found = inits.get(id).copied();
        found.ok_or_else(|| Error::invalid("output of `ctr tasks ls`", format!("no pid for {id}")))
    });
    Processes::now()?.shims_weight(&pids.collect::<Result<Vec<_>>>()?)
}

/// Tasks and the pids of their inits, from the list of `ctr tasks ls`.
fn init_pids(list: &str) -> BTreeMap<&str, u32> {
    list.lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((fields.next()?, fields.next()?.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_of_a_task_is_found_by_its_whole_id() {
        let list =
            "TASK      PID    STATUS\nbench-10    77    RUNNING\nbench-1     12    RUNNING\n";
        let pids = init_pids(list);
        assert_eq!(pids.get("bench-1"), Some(&12));
        assert_eq!(pids.get("bench"), None);
    }
}
