//! Hooks: programs of the configuration that run around a container's life.
//!
//! A hook reads the container's state on standard input and is given a deadline. State and output
//! go through memory files, so that no hook can block its caller. [`one`] runs a single hook and is
//! used on both sides of the clone; [`child`] is what the container's own process runs.

mod child;
mod one;

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use oci_spec::runtime::Hook;
use rustix::fs::{MemfdFlags, memfd_create};

pub(super) use child::run_child_hooks;
pub(crate) use child::{ChildHookIo, ChildHooks};

use self::one::{HookFiles, Outcome};
use crate::error::{Error, Result};
use crate::plan::plan_hooks;
use crate::state::ContainerState;

/// How much of each of a hook's outputs is quoted.
const QUOTED: usize = 2048;

/// Runs a list of hooks in the caller's namespaces and in `directory`, in order; the first failure
/// ends it.
pub(crate) fn run_hooks(
    kind: &'static str,
    hooks: Option<&Vec<Hook>>,
    state: &ContainerState,
    directory: &Path,
) -> Result<()> {
    let mut failures = attempt_hooks(kind, hooks, state, directory, false)?;
    match failures.pop() {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// Runs a list of hooks to its end, whichever of them fail.
pub(crate) fn run_all_hooks(
    kind: &'static str,
    hooks: Option<&Vec<Hook>>,
    state: &ContainerState,
    directory: &Path,
) -> Result<Vec<Error>> {
    attempt_hooks(kind, hooks, state, directory, true)
}

fn attempt_hooks(
    kind: &'static str,
    hooks: Option<&Vec<Hook>>,
    state: &ContainerState,
    directory: &Path,
    go_on: bool,
) -> Result<Vec<Error>> {
    if hooks.is_none_or(Vec::is_empty) {
        return Ok(Vec::new());
    }
    let plans = plan_hooks(kind, hooks, &own_environment()).map_err(|e| Error::Spec {
        file: "hooks".to_owned(),
        field: e.field,
        reason: e.reason,
    })?;
    let directory = CString::new(directory.as_os_str().as_bytes()).unwrap_or_default();
    let mut failures = Vec::new();
    for (index, plan) in plans.iter().enumerate() {
        let files = HookFiles::new()?;
        fill(&files.state, state)?;
        let outcome =
            one::run(plan, &files, &directory, &plan.env).map_err(Error::os("run hook"))?;
        if let Some(reason) = explain(outcome, &plan.path.to_string_lossy(), &files) {
            failures.push(Error::Hook {
                kind,
                index,
                reason,
            });
            if !go_on {
                break;
            }
        }
    }
    Ok(failures)
}

/// As runc: a hook whose `env` is not given gets the runtime's own.
pub(super) fn own_environment() -> Vec<CString> {
    let line = |(name, value): (OsString, OsString)| {
        let mut line = name.into_vec();
        line.push(b'=');
        line.extend(value.as_bytes());
        CString::new(line).ok()
    };
    std::env::vars_os().filter_map(line).collect()
}

fn fill(file: &OwnedFd, state: &ContainerState) -> Result<()> {
    let text = state.for_hooks()?;
    let mut file = File::from(file.try_clone().map_err(Error::os("dup"))?);
    file.write_all(&text)
        .map_err(Error::os("write the state for a hook"))
}

/// Words for a hook that did not succeed, runc's.
fn explain(outcome: Outcome, path: &str, files: &HookFiles) -> Option<String> {
    let said = |status: String| {
        let (output, errors) = (quoted(&files.output), quoted(&files.errors));
        format!("{status}, stdout: {output}, stderr: {errors}")
    };
    match outcome {
        Outcome::Exited(0) => None,
        Outcome::Exited(code) => Some(said(format!("exit status {code}"))),
        Outcome::Killed(signal) => Some(said(format!("signal: {}", signal_words(signal)))),
        Outcome::TimedOut(limit) => Some(format!("hook ran past specified timeout of {limit}.0s")),
        Outcome::NotExecuted(errno) => {
            let reason = crate::error::errno_words(errno);
            Some(format!("fork/exec {path}: {reason}"))
        }
    }
}

/// A signal in the words of Go programs.
fn signal_words(signal: i32) -> String {
    let words = match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGKILL => "killed",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGPIPE => "broken pipe",
        libc::SIGTERM => "terminated",
        libc::SIGSYS => "bad system call",
        other => return format!("signal {other}"),
    };
    words.to_owned()
}

fn quoted(file: &OwnedFd) -> String {
    let mut bytes = [0; QUOTED];
    let length = rustix::io::pread(file, &mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

fn memory_file() -> Result<OwnedFd> {
    memfd_create(c"hook", MemfdFlags::CLOEXEC).map_err(Error::os("memfd_create"))
}
