//! Taking one sample: a command's wall time, a shim's memory.
//!
//! Commands are started by `posix_spawn` (what `std::process::Command` uses when no hook is set),
//! which shares the runner's memory until the exec, so the runner's size does not count.

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

/// Memory of a process and of its helpers, in KiB.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Resident set.
    pub rss: u64,
    /// Resident set with shared pages divided among those who share them.
    pub pss: u64,
    /// Pages nobody else maps.
    pub private: u64,
}

/// Memory of the shim that is the parent of a container's init, and of its helpers.
pub fn shim_memory(init: u32) -> Result<Memory> {
    family_memory(parent_of(init)?)
}

/// Memory of a process together with its own children that run the same program (a spawner, a
/// keeper), so that no design hides memory in a second process.
pub fn family_memory(parent: u32) -> Result<Memory> {
    let program = read_link(parent)?;
    let mut total = memory_of(parent)?;
    for pid in processes()? {
        // A process that ends while the list is walked is no part of what is weighed.
        let is_helper = parent_of(pid).is_ok_and(|its| its == parent)
            && read_link(pid).is_ok_and(|exe| exe == program);
        if is_helper {
            let more = memory_of(pid)?;
            total.rss += more.rss;
            total.pss += more.pss;
            total.private += more.private;
        }
    }
    Ok(total)
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

fn memory_of(pid: u32) -> Result<Memory> {
    let rollup = read_proc(pid, "smaps_rollup")?;
    parse_memory(&rollup).ok_or_else(|| {
        Error::invalid(
            format!("/proc/{pid}/smaps_rollup"),
            "no Rss, Pss or Private lines",
        )
    })
}

fn parse_memory(rollup: &str) -> Option<Memory> {
    Some(Memory {
        rss: field(rollup, "Rss")?,
        pss: field(rollup, "Pss")?,
        private: field(rollup, "Private_Clean")? + field(rollup, "Private_Dirty")?,
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
            Some(Memory {
                rss: 1234,
                pss: 900,
                private: 100
            })
        );
        assert_eq!(parse_memory("Rss: 1 kB\n"), None);
    }

    #[test]
    fn a_process_has_a_parent_and_memory() {
        let me = std::process::id();
        assert_eq!(parent_of(me).unwrap(), std::os::unix::process::parent_id());
        assert!(memory_of(me).unwrap().rss > 0);
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
