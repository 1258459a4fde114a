//! Taking one sample: a command's wall time, what a program's processes weigh.
//!
//! Commands are started by `posix_spawn` (what `std::process::Command` uses when no hook is set),
//! which shares the runner's memory until the exec, so the runner's size does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::command::{self, DEADLINE};
use crate::error::{Error, Result};

/// Runs a command to its end and returns its wall time in milliseconds.
///
/// Its standard input and output are /dev/null; its standard error goes to an unnamed file, which
/// is quoted when the command fails, so that no thread has to read a pipe meanwhile.
pub fn wall_ms<S: AsRef<OsStr>>(argv: &[S]) -> Result<f64> {
    let mut stderr =
        tempfile::tempfile().map_err(Error::system("create a file for a command's errors"))?;
    let shared = stderr
        .try_clone()
        .map_err(Error::system("share a file of errors"))?;
    let mut command = prepare(argv);
    command.stdout(Stdio::null()).stderr(shared);
    let began = Instant::now();
    let status = command.status();
    let elapsed = began.elapsed();
    let status = status.map_err(Error::system(format!("run `{}`", command::show(&command))))?;
    if status.success() {
        return Ok(elapsed.as_secs_f64() * 1e3);
    }
    let mut output = String::new();
    stderr
        .rewind()
        .map_err(Error::system("rewind a file of errors"))?;
    stderr
        .read_to_string(&mut output)
        .map_err(Error::system("read a file of errors"))?;
    Err(Error::Command {
        command: command::show(&command),
        status: status.to_string(),
        output,
    })
}

/// Runs a command that is not measured and returns its standard output.
pub fn output<S: AsRef<OsStr>>(argv: &[S]) -> Result<String> {
    command::check(&mut prepare(argv), DEADLINE)
}

/// What a program says of its version, in one line.
pub fn version(argv: &[&str]) -> String {
    let says = output(argv).unwrap_or_else(|error| error.to_string());
    says.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn prepare<S: AsRef<OsStr>>(argv: &[S]) -> Command {
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).stdin(Stdio::null());
    command
}

/// The file that `execvp` would run.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// What a program's processes take, in KiB and numbers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Weight {
    /// Resident set.
    pub rss: u64,
    /// Resident set with shared pages divided among those who share them.
    pub pss: u64,
    /// Pages nobody else maps.
    pub private: u64,
    /// Threads.
    pub threads: u64,
    /// Open descriptors.
    pub fds: u64,
}

impl std::ops::AddAssign for Weight {
    fn add_assign(&mut self, other: Self) {
        self.rss += other.rss;
        self.pss += other.pss;
        self.private += other.private;
        self.threads += other.threads;
        self.fds += other.fds;
    }
}

/// The processes of one moment: pid and parent.
pub struct Processes(BTreeMap<u32, u32>);

impl Processes {
    /// Those of this pid namespace.
    pub fn now() -> Result<Self> {
        // A process that ends while the list is walked is no part of it.
        let parent = |pid| Some((pid, parent_of(pid).ok()?));
        Ok(Self(processes()?.into_iter().filter_map(parent).collect()))
    }

    /// Weighs the shims of containers with these inits, each shim once.
    pub fn shims_weight(&self, inits: &[u32]) -> Result<Weight> {
        let mut members = BTreeSet::new();
        for init in inits {
            let shim = self.0.get(init);
            let shim = *shim.ok_or_else(|| Error::invalid(format!("process {init}"), "is gone"))?;
            members.extend(self.family(shim)?);
        }
        Self::weigh(members)
    }

    /// Weighs a process together with those of its ancestors and descendants, in an unbroken line,
    /// that run the same program (a supervisor, a spawner, a keeper), so that no design hides
    /// memory in a second process.
    pub fn family_weight(&self, member: u32) -> Result<Weight> {
        Self::weigh(self.family(member)?)
    }

    fn weigh(pids: impl IntoIterator<Item = u32>) -> Result<Weight> {
        let mut total = Weight::default();
        for pid in pids {
            total += weight_of(pid)?;
        }
        Ok(total)
    }

    fn family(&self, member: u32) -> Result<Vec<u32>> {
        let program = read_link(member)?;
        let is_kin = |pid| read_link(pid).is_ok_and(|exe| exe == program);
        Ok(self.kin(member, is_kin))
    }

    fn kin(&self, member: u32, is_kin: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut eldest = member;
        while let Some(&parent) = self.0.get(&eldest)
            && is_kin(parent)
        {
            eldest = parent;
        }
        let mut family = vec![eldest];
        let mut next = 0;
        while let Some(&parent) = family.get(next) {
            let children = self.0.iter().filter(|(_, its)| **its == parent);
            family.extend(children.map(|(pid, _)| *pid).filter(|pid| is_kin(*pid)));
            next += 1;
        }
        family
    }
}

/// The processes whose command line has this word.
pub fn with_word(word: &str) -> Result<Vec<u32>> {
    let has_word = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
            line.split(|byte| *byte == 0)
                .any(|part| part == word.as_bytes())
        })
    };
    Ok(processes()?.into_iter().filter(has_word).collect())
}

/// The processes of a program, by the name that the kernel keeps of it.
pub fn named(name: &str) -> Result<Vec<u32>> {
    let is_it = |pid: &u32| read_proc(*pid, "comm").is_ok_and(|comm| comm.trim_end() == name);
    Ok(processes()?.into_iter().filter(is_it).collect())
}

fn read_link(pid: u32) -> Result<PathBuf> {
    let link = PathBuf::from(format!("/proc/{pid}/exe"));
    fs::read_link(&link).map_err(Error::file("read", &link))
}

fn read_proc(pid: u32, file: &str) -> Result<String> {
    let path = PathBuf::from(format!("/proc/{pid}/{file}"));
    fs::read_to_string(&path).map_err(Error::file("read", &path))
}

fn processes() -> Result<Vec<u32>> {
    let proc = Path::new("/proc");
    let entries = fs::read_dir(proc).map_err(Error::file("list", proc))?;
    Ok(entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect())
}

fn parent_of(pid: u32) -> Result<u32> {
    let status = read_proc(pid, "status")?;
    let parent = field(&status, "PPid").map(|n| n as u32);
    parent.ok_or_else(|| Error::invalid(format!("/proc/{pid}/status"), "no PPid line"))
}

fn weight_of(pid: u32) -> Result<Weight> {
    let rollup = read_proc(pid, "smaps_rollup")?;
    let memory = parse_memory(&rollup).ok_or_else(|| {
        Error::invalid(
            format!("/proc/{pid}/smaps_rollup"),
            "no Rss, Pss or Private lines",
        )
    })?;
    Ok(Weight {
        threads: entries(pid, "task")?,
        fds: entries(pid, "fd")?,
        ..memory
    })
}

fn entries(pid: u32, directory: &str) -> Result<u64> {
    let path = PathBuf::from(format!("/proc/{pid}/{directory}"));
    let entries = fs::read_dir(&path).map_err(Error::file("list", &path))?;
    Ok(entries.count() as u64)
}

fn parse_memory(rollup: &str) -> Option<Weight> {
    Some(Weight {
        rss: field(rollup, "Rss")?,
        pss: field(rollup, "Pss")?,
        private: field(rollup, "Private_Clean")? + field(rollup, "Private_Dirty")?,
        ..Weight::default()
    })
}

/// The number after `NAME:` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_a_rollup() {
        let rollup = "55d0-7ffe ---p 00000000 00:00 0    [rollup]\n\
                      Rss:                1234 kB\nPss:                 900 kB\nPss_Dirty:  80 kB\n\
                      Private_Clean:        20 kB\nPrivate_Dirty:       80 kB\n";
        assert_eq!(
            parse_memory(rollup),
            Some(Weight {
                rss: 1234,
                pss: 900,
                private: 100,
                ..Weight::default()
            })
        );
        assert_eq!(parse_memory("Rss: 1 kB\n"), None);
    }

    #[test]
    fn a_process_has_a_parent_and_a_weight() {
        let me = std::process::id();
        assert_eq!(parent_of(me).unwrap(), std::os::unix::process::parent_id());
        let weight = weight_of(me).unwrap();
        assert!(
            weight.rss > 0 && weight.threads > 0 && weight.fds > 2,
            "{weight:?}"
        );
    }

    #[test]
    fn a_family_is_those_in_an_unbroken_line_that_run_the_same_program() {
        // 1 init, 2 supervisor, 3 worker, 4 spawner, 5 and 6 a container's, 7 another supervisor.
        let processes = Processes([(2, 1), (3, 2), (4, 3), (5, 3), (6, 5), (7, 1)].into());
        let is_kin = |pid| [2, 3, 4, 6, 7].contains(&pid);
        for member in [2, 3, 4] {
            assert_eq!(processes.kin(member, is_kin), [2, 3, 4]);
        }
    }

    #[test]
    fn a_failed_command_is_quoted_with_its_status_and_stderr() {
        let error = wall_ms(&["sh", "-c", "echo broken >&2; exit 3"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("broken") && error.contains('3'), "{error}");
    }

    #[test]
    fn time_passes_while_a_command_runs() {
        assert!(wall_ms(&["sleep", "0.02"]).unwrap() >= 20.0);
    }
}
