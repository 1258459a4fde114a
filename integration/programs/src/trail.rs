//! The trail: runs a command instruction by instruction and prints, in the order of their first
//! visit, the addresses that its program went through, in itself and in its children until they
//! become other programs. A million steps take half a minute.
//!
//! `integration order` makes of it the order in which functions are laid into `xebec`.

use std::collections::HashSet;
use std::io::{self, Error, Result, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use bench_programs::sys;

fn main() -> ExitCode {
    let argv: Vec<_> = std::env::args_os().skip(1).collect();
    let Some((program, arguments)) = argv.split_first() else {
        eprintln!("bench-trail PROGRAM [ARGUMENT…]");
        return ExitCode::from(2);
    };
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null());
    match follow(&mut command, Path::new(program)).and_then(|trail| print(&trail)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-trail: {}: {error}", program.to_string_lossy());
            ExitCode::FAILURE
        }
    }
}

fn print(trail: &[u64]) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for address in trail {
        writeln!(out, "{address:x}")?;
    }
    out.flush()
}

/// The addresses, each once.
#[derive(Default)]
struct Trail {
    seen: HashSet<u64>,
    order: Vec<u64>,
}

fn follow(command: &mut Command, program: &Path) -> Result<Vec<u64>> {
    let first = sys::spawn_traced(command)?;
    let mut trail = Trail::default();
    loop {
        let (pid, status) = match sys::wait_any() {
            Ok(found) => found,
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => break,
            Err(error) => return Err(error),
        };
        if libc::WIFSTOPPED(status) {
            go_on(pid, status, (pid == first, program), &mut trail)?;
        } else if pid == first && status != 0 {
            return Err(Error::other(format!("it ended with wait status {status}")));
        }
    }
    Ok(trail.order)
}

/// What one stop asks for.
fn go_on(
    pid: i32,
    status: i32,
    (is_first, program): (bool, &Path),
    trail: &mut Trail,
) -> Result<()> {
    let signal = libc::WSTOPSIG(status);
    let executed = status >> 16 == libc::PTRACE_EVENT_EXEC;
    if executed && !is_ours(pid, program)? {
        return sys::let_go(pid);
    }
    if status >> 16 != 0 || signal == libc::SIGSTOP {
        return sys::step(pid, 0);
    }
    if signal != libc::SIGTRAP {
        return sys::step(pid, signal);
    }
    if is_first && trail.order.is_empty() {
        sys::trace_children(pid)?;
    }
    let address = sys::next_instruction(pid)?;
    if trail.seen.insert(address) {
        trail.order.push(address);
    }
    sys::step(pid, 0)
}

/// Whether a process runs the program, maybe from a mount of its own of that file.
fn is_ours(pid: i32, program: &Path) -> Result<bool> {
    let executed = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    Ok(executed == Path::new("/") || executed.file_name() == program.file_name())
}
