//! The way into a running native host, in two steps: a process can join a pid namespace only for
//! its children, so the first step joins that one and waits, and the second one joins the rest.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, pidfd_open, set_parent_process_death_signal,
};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::init::OWN_GROUP;
use crate::command::exit_code;
use crate::error::{Error, Result};
use crate::hosts::cgroup;
use crate::sys;

/// The hidden subcommand that takes the first step.
pub(crate) const ENTER: &str = "enter";
/// The hidden subcommand that takes the second step.
pub(crate) const CONTINUE: &str = "enter-continue";

/// Runs `argv` in the host whose first process is `pid`; its exit code.
pub(crate) fn run(pid: i32, directory: &Path, argv: &[OsString]) -> Result<i32> {
    let group = OWN_GROUP.trim_start_matches('/');
    cgroup::join(&PathBuf::from(format!("/proc/{pid}/root")).join(group))?;
    join(pid, ThreadNameSpaceType::PROCESS_ID)?;
    let mut child = Command::new("/proc/self/exe")
        .arg(CONTINUE)
        .arg(directory)
        .arg("--")
        .args(argv)
        .spawn()
        .map_err(Error::system("start a process in a host"))?;
    // The terminal's signals are the command's business.
    sys::ignore_signals(&[libc::SIGINT, libc::SIGQUIT]).map_err(Error::system("ignore SIGINT"))?;
    let status = child.wait().map_err(Error::system("wait for a command"))?;
    Ok(exit_code(status))
}

/// Joins the other namespaces and becomes the command.
pub(crate) fn proceed(directory: &Path, argv: &[OsString]) -> Result<i32> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(Error::system("ask for a death signal"))?;
    if getppid() == Some(Pid::INIT) {
        return Err(Error::invalid(
            "the way into a host",
            "its first step is gone",
        ));
    }
    let rest = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    join(1, rest)?;
    let Some((program, arguments)) = argv.split_first() else {
        return Err(Error::invalid("the command", "it is empty"));
    };
    let directory = if directory.is_dir() {
        directory
    } else {
        Path::new("/")
    };
    std::env::set_current_dir(directory).map_err(Error::file("enter", directory))?;
    let error = Command::new(program).args(arguments).exec();
    eprintln!("{}: {error}", program.to_string_lossy());
    Ok(if error.kind() == std::io::ErrorKind::NotFound {
        127
    } else {
        126
    })
}

fn join(pid: i32, namespaces: ThreadNameSpaceType) -> Result<()> {
    let pid = Pid::from_raw(pid).ok_or_else(|| Error::invalid("the host's pid", pid))?;
    let host = pidfd_open(pid, PidfdFlags::empty()).map_err(Error::system("find the host"))?;
    move_into_thread_name_spaces(std::os::fd::AsFd::as_fd(&host), namespaces)
        .map_err(Error::system("join a host's namespaces"))
}
