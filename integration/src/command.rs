//! Running commands with a deadline, with their output in hand.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write, pipe};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Error, Result};

/// Subcommands of our own program that lead to another command, for reasons of no interest.
const WRAPPERS: [&str; 2] = ["enter", "leash"];

/// How long a command may take where nothing else is said.
pub const DEADLINE: Duration = Duration::from_mins(2);

/// What a command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 128 + N if signal N ended it.
    pub status: i32,
    /// Standard output, with bytes that are no UTF-8 replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
}

impl Output {
    /// Whether the exit code is 0.
    pub fn success(&self) -> bool {
        self.status == 0
    }
}

/// Runs `command` to its end and captures both outputs.
pub fn output(command: &mut Command, deadline: Duration) -> Result<Output> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(Error::system(format!("start `{}`", show(command))))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let ended = wait(&mut child, deadline)?;
    if ended.is_none() {
        child.kill().map_err(Error::system("kill a command"))?;
        child.wait().map_err(Error::system("wait for a command"))?;
    }
    let (stdout, stderr) = (text(stdout), text(stderr));
    match ended {
        Some(status) => Ok(Output {
            status: exit_code(status),
            stdout,
            stderr,
        }),
        None => Err(Error::Deadline {
            command: show(command),
            seconds: deadline.as_secs(),
            output: tail(&format!("{stdout}{stderr}"), 4096).to_owned(),
        }),
    }
}

/// As [`output`], but a bad exit status is an error, and only standard output is returned.
pub fn check(command: &mut Command, deadline: Duration) -> Result<String> {
    let output = output(command, deadline)?;
    if output.success() {
        return Ok(output.stdout);
    }
    Err(Error::Command {
        command: show(command),
        status: format!("exit status {}", output.status),
        output: tail(&format!("{}{}", output.stdout, output.stderr), 4096).to_owned(),
    })
}

/// Runs a long command: both outputs go to the file `log`, and each line to `on_line` as well.
pub fn follow(command: &mut Command, log: &Path, mut on_line: impl FnMut(&str)) -> Result<()> {
    let name = show(command);
    if let Some(directory) = log.parent() {
        fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
    }
    let mut file = File::create(log).map_err(Error::file("create", log))?;
    let (reader, writer) = pipe().map_err(Error::system("make a pipe"))?;
    let second = writer.try_clone().map_err(Error::system("make a pipe"))?;
    command.stdin(Stdio::null()).stdout(writer).stderr(second);
    let spawned = command.spawn();
    let mut child = spawned.map_err(Error::system(format!("start `{name}`")))?;
    // The command still holds the write ends of the pipe.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.map_err(Error::system(format!("read from `{name}`")))?;
        let line = String::from_utf8_lossy(&line);
        writeln!(file, "{line}").map_err(Error::file("write", log))?;
        on_line(line.trim());
    }
    let status = child
        .wait()
        .map_err(Error::system(format!("wait for `{name}`")))?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read_to_string(log).map_err(Error::file("read", log))?;
    let output = format!("{}\n(all of it: {})", tail(&text, 4096), log.display());
    Err(Error::Command {
        command: name,
        status: status.to_string(),
        output,
    })
}

/// Waits for a child until the deadline; `None` when it is still running then.
pub fn wait(child: &mut Child, deadline: Duration) -> Result<Option<ExitStatus>> {
    let pid = Pid::from_child(child);
    let end = Instant::now() + deadline;
    let pidfd =
        pidfd_open(pid, PidfdFlags::empty()).map_err(Error::system("open a child's pidfd"))?;
    loop {
        if let Some(status) = child
            .try_wait()
            .map_err(Error::system("wait for a command"))?
        {
            return Ok(Some(status));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::system("wait for a command")(errno)),
        }
    }
}

/// The exit code as a shell gives it.
pub fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The command line as a shell would show it, without the way into the host.
pub fn show(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    match words.iter().position(|word| word == "--") {
        Some(end) if words.get(1).is_some_and(|word| WRAPPERS.contains(&&**word)) => {
            words[end + 1..].join(" ")
        }
        _ => words.join(" "),
    }
}

/// At most `length` bytes from the end of `text`, on a character boundary.
pub fn tail(text: &str, length: usize) -> &str {
    let mut start = text.len().saturating_sub(length);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A read error ends the output early, as the death of the writer does.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn text(reader: JoinHandle<Vec<u8>>) -> String {
    String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_outputs_and_the_status_come_back() {
        let output = output(&mut sh("echo out; echo err >&2; exit 3"), DEADLINE).unwrap();
        assert_eq!(
            (output.status, &*output.stdout, &*output.stderr),
            (3, "out\n", "err\n")
        );
    }

    #[test]
    fn death_by_signal_counts_from_128() {
        assert_eq!(output(&mut sh("kill -9 $$"), DEADLINE).unwrap().status, 137);
    }

    #[test]
    fn a_command_past_its_deadline_is_killed() {
        let error = check(
            &mut sh("echo begun; exec sleep 60"),
            Duration::from_millis(300),
        );
        assert!(matches!(error, Err(Error::Deadline { output, .. }) if output == "begun\n"));
    }

    #[test]
    fn a_command_is_shown_without_the_way_to_it() {
        let mut command = Command::new("/t/integration");
        command.args(["enter", "12", "/root", "--", "ctr", "version"]);
        assert_eq!(show(&command), "ctr version");
        let mut command = Command::new("cargo");
        command.args(["run", "--", "x"]);
        assert_eq!(show(&command), "cargo run -- x");
    }

    #[test]
    fn a_tail_starts_on_a_character() {
        assert_eq!(tail("aé", 1), "");
        assert_eq!(tail("abc", 2), "bc");
        assert_eq!(tail("abc", 9), "abc");
    }
}
