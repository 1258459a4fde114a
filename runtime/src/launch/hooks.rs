//! Hooks: programs of the configuration that run around a container's life.
//!
//! A hook reads the container's state on standard input and is given a deadline. State and error
//! output go through memory files, so that no hook can block its caller.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use oci_spec::runtime::Hook;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create, seek};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::error::{At as _, Error, Failure, Result, Step};
use crate::plan::HookPlan;
use crate::state::ContainerState;
use crate::sys;

/// How much of a hook's error output is quoted.
const QUOTED: u64 = 2048;

/// Runs a list of hooks in the caller's namespaces, in order; the first failure ends it.
pub(crate) fn run_hooks(
    kind: &'static str,
    hooks: Option<&Vec<Hook>>,
    state: &ContainerState,
) -> Result<()> {
    let hooks = hooks.map(Vec::as_slice).unwrap_or_default();
    if hooks.is_empty() {
        return Ok(());
    }
    let state = state_json(state)?;
    for (index, hook) in hooks.iter().enumerate() {
        run_hook(hook, &state).map_err(|reason| Error::Hook {
            kind,
            index,
            reason,
        })?;
    }
    Ok(())
}

fn state_json(state: &ContainerState) -> Result<Vec<u8>> {
    serde_json::to_vec(state).map_err(|e| Error::Os {
        op: "encode state".to_owned(),
        source: e.into(),
    })
}

fn run_hook(hook: &Hook, state: &[u8]) -> std::result::Result<(), String> {
    let text = |e: std::io::Error| e.to_string();
    let mut input = memory_file().map_err(text)?;
    input
        .write_all(state)
        .and_then(|()| input.rewind())
        .map_err(text)?;
    let mut output = memory_file().map_err(text)?;
    let mut command = Command::new(hook.path());
    if let Some([name, args @ ..]) = hook.args().as_deref() {
        command.arg0(name).args(args);
    }
    let env = hook
        .env()
        .iter()
        .flatten()
        .filter_map(|variable| variable.split_once('='));
    command.env_clear().envs(env).stdin(input);
    command
        .stdout(Stdio::null())
        .stderr(output.try_clone().map_err(text)?);
    let mut child = command
        .spawn()
        .map_err(|e| format!("{}: {e}", hook.path().display()))?;
    let limit = hook
        .timeout()
        .map(|secs| Duration::from_secs(secs.max(0) as u64));
    let status = wait_for_hook(&mut child, limit)?;
    if status.success() {
        return Ok(());
    }
    let mut quoted = String::new();
    let _ = output
        .seek(SeekFrom::Start(0))
        .and_then(|_| (&mut output).take(QUOTED).read_to_string(&mut quoted));
    Err(format!(
        "{}, stderr: {}",
        status_words(status),
        quoted.trim_end()
    ))
}

fn wait_for_hook(
    child: &mut Child,
    limit: Option<Duration>,
) -> std::result::Result<ExitStatus, String> {
    if let Some(limit) = limit {
        let pid = Pid::from_child(child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| e.to_string())?;
        if !ends_within(pidfd.as_fd(), limit).map_err(|e| e.to_string())? {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("hook timed out after {}s", limit.as_secs()));
        }
    }
    child.wait().map_err(|e| e.to_string())
}

fn ends_within(pidfd: BorrowedFd<'_>, limit: Duration) -> std::result::Result<bool, Errno> {
    let timeout = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut polled, Some(&timeout))).map(|ready| ready > 0)
}

fn status_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}

fn memory_file() -> std::io::Result<File> {
    Ok(memfd_create(c"hook", MemfdFlags::CLOEXEC)?.into())
}

/// Memory files for the hooks that the child runs; the parent fills in the states.
#[derive(Debug)]
pub(crate) struct ChildHookIo {
    creating: OwnedFd,
    starting: OwnedFd,
    errors: OwnedFd,
}

impl ChildHookIo {
    /// Empty ones.
    pub(crate) fn new() -> Result<Self> {
        let file = || {
            memory_file()
                .map(OwnedFd::from)
                .map_err(Error::os("memfd_create"))
        };
        Ok(Self {
            creating: file()?,
            starting: file()?,
            errors: file()?,
        })
    }

    /// A second set of descriptors of the same files, for the parent.
    pub(crate) fn share(&self) -> Result<Self> {
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(Error::os("dup"));
        Ok(Self {
            creating: copy(&self.creating)?,
            starting: copy(&self.starting)?,
            errors: copy(&self.errors)?,
        })
    }

    /// Their numbers, to be kept when others are closed.
    pub(super) fn raw_fds(&self) -> [RawFd; 3] {
        [&self.creating, &self.starting, &self.errors].map(AsRawFd::as_raw_fd)
    }

    /// Puts the states in place, once the pid is known.
    pub(crate) fn fill(&self, creating: &ContainerState, starting: &ContainerState) -> Result<()> {
        for (file, state) in [(&self.creating, creating), (&self.starting, starting)] {
            rustix::io::write(file, &state_json(state)?).map_err(Error::os("write hook state"))?;
        }
        Ok(())
    }

    /// Adds what a failed hook had to say.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match error {
            Error::Init(mut failure) if failure.step.is_hook() => {
                let output = self.error_output();
                if !output.is_empty() {
                    failure.detail = format!("{}, stderr: {output}", failure.detail);
                }
                Error::Init(failure)
            }
            other => other,
        }
    }

    fn error_output(&self) -> String {
        let mut bytes = [0; QUOTED as usize];
        let length = rustix::io::pread(&self.errors, &mut bytes, 0).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..length])
            .trim_end()
            .to_owned()
    }
}

/// Runs hooks from the child, without allocating; the first that fails is reported by its path.
pub(super) fn run_child_hooks<'p>(
    hooks: &'p [HookPlan],
    io: Option<&ChildHookIo>,
    step: Step,
) -> std::result::Result<(), Failure<'p>> {
    let Some(io) = io else { return Ok(()) };
    let state = if step == Step::CreateContainerHook {
        &io.creating
    } else {
        &io.starting
    };
    for hook in hooks {
        run_child_hook(hook, state, &io.errors).at(step, hook.path.to_bytes())?;
    }
    Ok(())
}

fn run_child_hook(
    hook: &HookPlan,
    state: &OwnedFd,
    errors: &OwnedFd,
) -> std::result::Result<(), Errno> {
    seek(state, rustix::fs::SeekFrom::Start(0))?;
    let request = sys::CloneRequest {
        flags: 0,
        cgroup: None,
    };
    let (_, pidfd) = sys::clone3(&request, || {
        let placed = dup2_stdin(state)
            .and(dup2_stdout(errors))
            .and(dup2_stderr(errors));
        if placed.is_ok() {
            let _ = sys::close_on_exec_from(3);
            let errno = sys::execve(&hook.path, &hook.argv, &hook.env);
            let _ = rustix::io::write(errors, reason_not_executed(errno));
        }
        127
    })?;
    if let Some(limit) = hook.timeout
        && !ends_within(pidfd.as_fd(), limit)?
    {
        sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL)?;
        waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
        return Err(Errno::TIMEDOUT);
    }
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
    match status.and_then(|s| s.exit_status()) {
        Some(0) => Ok(()),
        // No errno of execve or of the clone: the hook ran, and refused.
        _ => Err(Errno::CANCELED),
    }
}

fn reason_not_executed(errno: Errno) -> &'static [u8] {
    match errno {
        Errno::NOENT => b"no such file or directory",
        Errno::ACCESS => b"permission denied",
        Errno::NOEXEC => b"exec format error",
        _ => b"cannot be executed",
    }
}
