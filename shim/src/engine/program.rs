//! A runc-compatible program, run once per operation.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::{Console, Streams};
use crate::options::Options;
use crate::supervisor::message::{Checkpoint, Images};

/// Why a container with the annotation is refused.
pub(super) const NO_CLONES: &str = "the program that BinaryName names knows no templates";

/// The program and how to call it.
#[derive(Debug)]
pub struct Program {
    binary: String,
    root: PathBuf,
    systemd_cgroup: bool,
    no_pivot: bool,
    no_new_keyring: bool,
}

type Outcome<T> = Result<T, String>;

impl Program {
    pub(super) fn new(options: &Options, namespace: &str) -> Program {
        Program {
            binary: options.binary_name.clone(),
            root: options.state_root(namespace),
            systemd_cgroup: options.systemd_cgroup,
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn create(&self, id: &str, bundle: &Path, streams: &Streams) -> Outcome<i32> {
        let pid_file = bundle.join("init.pid");
        let log = bundle.join("log.json");
        let mut command = self.command(Some(&log), "create");
        command
            .arg("--bundle")
            .arg(bundle)
            .arg("--pid-file")
            .arg(&pid_file);
        if self.no_pivot {
            command.arg("--no-pivot");
        }
        if self.no_new_keyring {
            command.arg("--no-new-keyring");
        }
        attach(&mut command, streams)?;
        run(command.arg(id), Some(&log))?;
        launched(&pid_file)
    }

    pub(super) fn exec(
        &self,
        id: &str,
        pid_file: &Path,
        document: &[u8],
        streams: &Streams,
    ) -> Outcome<i32> {
        let spec = &*pid_file.with_extension("json");
        let log = &*pid_file.with_extension("log.json");
        std::fs::write(spec, document)
            .map_err(|error| format!("write {}: {error}", spec.display()))?;
        let mut command = self.command(Some(log), "exec");
        command
            .arg("--process")
            .arg(spec)
            .arg("--pid-file")
            .arg(pid_file)
            .arg("--detach");
        let result = attach(&mut command, streams)
            .and_then(|()| run(command.arg(id), Some(log)))
            .and_then(|()| launched(pid_file));
        for file in [spec, log, pid_file] {
            // All are scratch; the bundle's removal takes what stays behind.
            let _ = std::fs::remove_file(file);
        }
        result
    }

    pub(super) fn restore(
        &self,
        id: &str,
        bundle: &Path,
        images: &Images,
        streams: &Streams,
    ) -> Outcome<i32> {
        let pid_file = bundle.join("init.pid");
        let log = bundle.join("log.json");
        let mut command = self.command(Some(&log), "restore");
        command.arg("--detach").arg("--bundle").arg(bundle);
        command.arg("--pid-file").arg(&pid_file);
        at(&mut command, images);
        if self.no_pivot {
            command.arg("--no-pivot");
        }
        attach(&mut command, streams)?;
        run(command.arg(id), Some(&log))?;
        launched(&pid_file)
    }

    pub(super) fn checkpoint(
        &self,
        id: &str,
        bundle: &Path,
        checkpoint: &Checkpoint,
    ) -> Outcome<()> {
        let log = bundle.join("log.json");
        let mut command = self.command(Some(&log), "checkpoint");
        at(&mut command, &checkpoint.images);
        for (flag, wanted) in [
            ("--leave-running", checkpoint.leave_running),
            ("--tcp-established", checkpoint.tcp_established),
            ("--ext-unix-sk", checkpoint.ext_unix_sk),
            ("--shell-job", checkpoint.shell_job),
            ("--file-locks", checkpoint.file_locks),
            ("--empty-ns=network", checkpoint.empty_network),
        ] {
            if wanted {
                command.arg(flag);
            }
        }
        if !checkpoint.cgroups_mode.is_empty() {
            let mode = &checkpoint.cgroups_mode;
            command.arg(format!("--manage-cgroups-mode={mode}"));
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        run(command.arg(id), Some(&log))
    }

    pub(super) fn start(&self, id: &str) -> Outcome<()> {
        run(self.command(None, "start").arg(id), None)
    }

    pub(super) fn status(&self, id: &str) -> Outcome<String> {
        #[derive(Deserialize)]
        struct State {
            status: String,
        }
        let output = self.command(None, "state").arg(id).output();
        let output = output.map_err(|error| self.not_run(&error))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(last_words(&text, &self.binary));
        }
        let state: State = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{} state: {error}", self.binary))?;
        Ok(state.status)
    }

    pub(super) fn kill_all(&self, id: &str, signal: i32) -> Outcome<()> {
        run(
            self.command(None, "kill")
                .arg("--all")
                .arg(id)
                .arg(signal.to_string()),
            None,
        )
    }

    pub(super) fn delete(&self, id: &str, force: bool) -> Outcome<()> {
        if !self.root.join(id).exists() {
            return Ok(());
        }
        let mut command = self.command(None, "delete");
        if force {
            command.arg("--force");
        }
        run(command.arg(id), None)
    }

    pub(super) fn pause(&self, id: &str) -> Outcome<()> {
        run(self.command(None, "pause").arg(id), None)
    }

    pub(super) fn resume(&self, id: &str) -> Outcome<()> {
        run(self.command(None, "resume").arg(id), None)
    }

    pub(super) fn update(&self, id: &str, resources: &[u8]) -> Outcome<()> {
        let file = self.root.join(id).join("update.json");
        std::fs::write(&file, resources)
            .map_err(|error| format!("write {}: {error}", file.display()))?;
        let result = run(
            self.command(None, "update")
                .arg("--resources")
                .arg(&file)
                .arg(id),
            None,
        );
        std::fs::remove_file(&file)
            .map_err(|error| format!("remove {}: {error}", file.display()))?;
        result
    }

    pub(super) fn features(&self) -> Outcome<Vec<u8>> {
        let output = Command::new(&self.binary)
            .arg("features")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| self.not_run(&error))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(format!(
            "{} features: {}",
            self.binary,
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }

    fn command(&self, log: Option<&Path>, operation: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(&self.root);
        if let Some(log) = log {
            command.arg("--log").arg(log).args(["--log-format", "json"]);
        }
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.arg(operation).stdin(Stdio::null());
        command
    }

    fn not_run(&self, error: &std::io::Error) -> String {
        format!("run {}: {error}", self.binary)
    }
}

/// Tells the program where CRIU's files are.
fn at(command: &mut Command, images: &Images) {
    command.arg("--image-path").arg(&images.path);
    command.arg("--work-path").arg(&images.work);
}

/// Gives the program the container's streams as its own, as `create` and `exec` expect.
fn attach(command: &mut Command, streams: &Streams) -> Outcome<()> {
    match &streams.console {
        Some(Console::Path(path)) => {
            command.arg("--console-socket").arg(path);
        }
        Some(Console::Socket(_)) => return Err("a console path is needed".to_owned()),
        None => {}
    }
    let stdio = |fd: Option<BorrowedFd<'_>>| -> Outcome<Stdio> {
        let Some(fd) = fd else {
            return Ok(Stdio::null());
        };
        let copy: OwnedFd = fd
            .try_clone_to_owned()
            .map_err(|error| format!("duplicate a stream: {error}"))?;
        Ok(Stdio::from(copy))
    };
    let [stdin, stdout, stderr] = streams.standard();
    command
        .stdin(stdio(stdin)?)
        .stdout(stdio(stdout)?)
        .stderr(stdio(stderr)?);
    Ok(())
}

/// Runs the program to its end; with a `log` its streams belong to the container, and errors
/// are found there.
fn run(command: &mut Command, log: Option<&Path>) -> Outcome<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let not_run = |error: std::io::Error| format!("run {name}: {error}");
    let Some(log) = log else {
        let output = command.output().map_err(not_run)?;
        if output.status.success() {
            return Ok(());
        }
        return Err(last_words(&String::from_utf8_lossy(&output.stderr), &name));
    };
    if command.status().map_err(not_run)?.success() {
        return Ok(());
    }
    let text = std::fs::read_to_string(log).unwrap_or_default();
    Err(last_words(&text, &name))
}

/// The last error in a log of JSON or plain lines.
fn last_words(log: &str, program: &str) -> String {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let is_error = |line: &Line| line.level == "error";
    // crun's have several lines each.
    let entries = serde_json::Deserializer::from_str(log).into_iter::<Line>();
    let entry = entries.map_while(Result::ok).filter(is_error).last();
    let last_line = || log.lines().rev().find(|line| !line.trim().is_empty());
    let error = entry.map(|entry| entry.msg);
    let error = error.or_else(|| Some(last_line()?.trim().to_owned()));
    error.unwrap_or_else(|| format!("{program} did not terminate successfully"))
}

/// The pid that the program wrote.
fn launched(pid_file: &Path) -> Outcome<i32> {
    let text = std::fs::read_to_string(pid_file)
        .map_err(|error| format!("read {}: {error}", pid_file.display()))?;
    text.trim()
        .parse()
        .map_err(|_| format!("{}: {text:?}", pid_file.display()))
}

#[cfg(test)]
mod tests {
    use super::last_words;

    #[test]
    fn the_last_error_of_a_log_is_found_in_either_format() {
        for (log, expected) in [
            (
                "{\"level\":\"warning\",\"msg\":\"w\"}\n{\"level\":\"error\",\"msg\":\"e\"}\n",
                "e",
            ),
            (
                "{\"level\":\"error\",\"msg\":\"e\"}\n{\"level\":\"info\",\"msg\":\"i\"}\n",
                "e",
            ),
            (
                "{\n  \"msg\": \"e\",\n  \"level\": \"error\",\n  \"time\": \"t\"\n}\n",
                "e",
            ),
            ("container does not exist\n", "container does not exist"),
            ("", "runc did not terminate successfully"),
        ] {
            assert_eq!(last_words(log, "runc"), expected, "{log:?}");
        }
    }
}
