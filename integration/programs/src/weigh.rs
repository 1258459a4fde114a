//! The scale: runs a command to its end and prints how many KiB it and its children had resident
//! at most, how many microseconds of processor time they took, and how many of those in user mode.
//!
//! It is a program of its own because the kernel lets a child begin with the peak of the process
//! that it was started from, which for the benchmark itself is more than any runtime needs.

use std::io::{Error, Result};
use std::process::{Command, ExitCode, Stdio};

use bench_programs::sys;

fn main() -> ExitCode {
    let argv: Vec<_> = std::env::args_os().skip(1).collect();
    let Some((program, arguments)) = argv.split_first() else {
        eprintln!("bench-weigh PROGRAM [ARGUMENT…]");
        return ExitCode::from(2);
    };
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null());
    match weigh(&mut command) {
        Ok((kibibytes, microseconds, user)) => {
            println!("{kibibytes} {microseconds} {user}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-weigh: {}: {error}", program.to_string_lossy());
            ExitCode::FAILURE
        }
    }
}

fn weigh(command: &mut Command) -> Result<(i64, i64, i64)> {
    let child = command.spawn()?;
    let (status, usage) = sys::wait(child.id() as i32)?;
    if status != 0 {
        return Err(Error::other(format!("it ended with wait status {status}")));
    }
    let microseconds = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
    let user = microseconds(usage.ru_utime);
    let time = user + microseconds(usage.ru_stime);
    Ok((usage.ru_maxrss, time, user))
}
