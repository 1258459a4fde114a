//! Programs that are executed for a container, apart from the container's own: counted by tracing
//! containerd and all that it starts.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::super::measure::{named, wall_ms, with_word};
use super::super::shims::{self, Shim};
use super::super::suite::{Task, Unit};
use super::{name, run_command, start_container};
use crate::command;
use crate::error::{Error, Result};

/// How long nothing may have been executed before a story counts as over.
const QUIET: Duration = Duration::from_secs(2);
/// How long anything here may take.
const DEADLINE: Duration = Duration::from_mins(1);

/// The counts of all shims.
pub(super) fn tasks() -> Vec<Task<'static>> {
    let rows = &[
        ("execs: ctr run --rm", Unit::Executions),
        ("execs: ctr task exec", Unit::Executions),
    ];
    super::all_rows(rows, count)
}

fn count(shim: &Shim, round: u32) -> Result<Vec<f64>> {
    let trace = Trace::start()?;
    let short = name(shim, "traced", round);
    wall_ms(&run_command(shim, &["--rm"], &short))?;
    let run = trace.settled(&short)?;
    let long = name(shim, "traced-exec", round);
    start_container(shim, &long, &[])?;
    let counted = count_exec(&trace, &long);
    shims::remove(&long)?;
    // One of each is the container's own program.
    Ok(vec![run as f64 - 1.0, counted? as f64 - 1.0])
}

/// Executions for an exec into a container that was started while `trace` went on.
fn count_exec(trace: &Trace, container: &str) -> Result<usize> {
    let before = trace.quiet()?;
    shims::exec_ms(container, 0)?;
    Ok(trace.quiet()? - before)
}

/// strace on containerd and on all processes that it or they start.
struct Trace {
    strace: Child,
    file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Trace {
    fn start() -> Result<Self> {
        let directory = tempfile::tempdir().map_err(Error::system("create a trace"))?;
        let file = directory.path().join("trace");
        let [containerd] = named("containerd")?[..] else {
            return Err(Error::invalid("containerd", "there is not exactly one"));
        };
        let strace = Command::new("strace")
            .args([
                "-f",
                "-qq",
                "-e",
                "trace=execve,execveat",
                "-e",
                "signal=none",
                "-o",
            ])
            .arg(&file)
            .args(["-p", &containerd.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(Error::system("start strace"))?;
        let trace = Self {
            strace,
            file,
            _directory: directory,
        };
        let deadline = Instant::now() + DEADLINE;
        while !all_threads_are_traced(containerd)? {
            if Instant::now() > deadline {
                return Err(Error::invalid("strace", "it does not attach to containerd"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(trace)
    }

    /// Executions so far, once no shim of `container` is left and nothing is executed any more.
    fn settled(&self, container: &str) -> Result<usize> {
        let deadline = Instant::now() + DEADLINE;
        while !with_word(container)?.is_empty() {
            if Instant::now() > deadline {
                return Err(Error::invalid(container, "its shim does not end"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.quiet()
    }

    /// Executions so far, once there have been no more for a while.
    fn quiet(&self) -> Result<usize> {
        let deadline = Instant::now() + DEADLINE;
        let mut count = self.count()?;
        while Instant::now() < deadline {
            thread::sleep(QUIET);
            let now = self.count()?;
            if now == count {
                return Ok(count);
            }
            count = now;
        }
        Err(Error::invalid(
            "trace of containerd",
            "it does not come to rest",
        ))
    }

    fn count(&self) -> Result<usize> {
        let text = fs::read_to_string(&self.file).map_err(Error::file("read", &self.file))?;
        Ok(executions(&text))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // By this signal strace lets go of whom it traces. Should it not, the host's end ends it.
        if let Some(pid) = Pid::from_raw(self.strace.id() as i32) {
            let _ = kill_process(pid, Signal::INT);
        }
        let _ = command::wait(&mut self.strace, DEADLINE);
    }
}

fn all_threads_are_traced(pid: u32) -> Result<bool> {
    let directory = PathBuf::from(format!("/proc/{pid}/task"));
    let threads = fs::read_dir(&directory).map_err(Error::file("list", &directory))?;
    Ok(threads.flatten().all(|thread| {
        fs::read_to_string(thread.path().join("status"))
            .is_ok_and(|status| !status.contains("\nTracerPid:\t0\n"))
    }))
}

/// Calls that succeeded, whether a line tells them whole or the end of them.
fn executions(trace: &str) -> usize {
    let is_call = |line: &&str| line.contains("exec") && line.ends_with(" = 0");
    trace.lines().filter(is_call).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_counted_when_they_succeed() {
        let trace = "\
10 execve(\"/usr/bin/a\", [\"a\"], 0x1 /* 3 vars */) = 0
11 execve(\"/bin/b\", [\"b\"], 0x1 /* 3 vars */ <unfinished ...>
12 execveat(3, \"\", [\"c\"], 0x1 /* 3 vars */, AT_EMPTY_PATH) = 0
11 <... execve resumed>)             = 0
13 execve(\"/sbin/d\", [\"d\"], 0x1 /* 3 vars */) = -1 ENOENT (No such file or directory)
";
        assert_eq!(executions(trace), 3);
    }
}
