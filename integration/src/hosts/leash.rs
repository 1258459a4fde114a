//! A command that dies with whoever started it, for programs that know no such thing.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, id};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::error::{Error, Result};

/// The hidden subcommand.
pub(crate) const LEASH: &str = "leash";

/// `argv`, which the kernel kills when the calling thread ends, by whatever means; `program` is
/// this crate's own.
pub(crate) fn command<S: AsRef<OsStr>>(program: &Path, argv: &[S]) -> Command {
    let mut command = Command::new(program);
    command.args([LEASH, &id().to_string(), "--"]).args(argv);
    command
}

/// The hidden subcommand itself: `owner` is the process that wants it.
pub(crate) fn run(owner: i32, argv: &[OsString]) -> Result<i32> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(Error::system("ask for a death signal"))?;
    if getppid() != Pid::from_raw(owner) {
        return Err(Error::invalid("the leash", "its owner is gone"));
    }
    let Some((program, arguments)) = argv.split_first() else {
        return Err(Error::invalid("the command", "it is empty"));
    };
    let error = Command::new(program).args(arguments).exec();
    Err(Error::system(format!(
        "start {}",
        program.to_string_lossy()
    ))(error))
}
