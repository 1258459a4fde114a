//! The `start` call of a shim's program, made as containerd makes it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::super::measure::with_word;
use super::super::shims::Shim;
use super::name;
use crate::error::{Error, Result};

/// containerd's socket.
const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// How long a shim that was killed may take to be gone.
const FAREWELL: Duration = Duration::from_mins(1);

/// Milliseconds from the start of the program to its end, with its answer read.
pub(super) fn start_ms(shim: &Shim, number: u32) -> Result<f64> {
    let bundle = Bundle::make()?;
    let id = name(shim, "start", number);
    let mut command = command(shim, &id, bundle.path());
    let began = Instant::now();
    let output = command.output();
    let elapsed = began.elapsed();
    let output = output.map_err(Error::system(format!("run {}", shim.binary)))?;
    let answer = String::from_utf8_lossy(&output.stdout);
    let connected = address(&answer)
        .filter(|_| output.status.success() && output.stderr.is_empty())
        .ok_or_else(|| {
            let error = String::from_utf8_lossy(&output.stderr);
            Error::invalid(
                format!("start of {}", shim.binary),
                format!("{answer}{error}"),
            )
        })
        .and_then(|socket| {
            UnixStream::connect(&socket).map_err(Error::file("connect to", &socket))?;
            Ok(socket)
        });
    end(&id)?;
    let socket = connected?;
    // A shim that was killed leaves its socket.
    fs::remove_file(&socket).map_err(Error::file("remove", &socket))?;
    Ok(elapsed.as_secs_f64() * 1e3)
}

fn command(shim: &Shim, id: &str, bundle: &Path) -> Command {
    let mut command = Command::new(shim.binary);
    command
        .args(["-namespace", "bench", "-address", CONTAINERD])
        .args(["-publish-binary", "/usr/bin/containerd", "-id", id, "start"])
        .env("MAX_SHIM_VERSION", "2")
        .env("GOMAXPROCS", "2")
        .env("GRPC_ADDRESS", CONTAINERD)
        .env("TTRPC_ADDRESS", format!("{CONTAINERD}.ttrpc"))
        .env("NAMESPACE", "bench")
        .current_dir(bundle)
        .process_group(0)
        .stdin(Stdio::null());
    command
}

/// The socket in a shim's answer, which is JSON or an address.
fn address(answer: &str) -> Option<PathBuf> {
    let json: Option<Value> = serde_json::from_str(answer).ok();
    let address = match &json {
        Some(json) => json["address"].as_str()?,
        None => answer.trim(),
    };
    address.strip_prefix("unix://").map(PathBuf::from)
}

/// Kills every process of the shim until none is left: one may have started another meanwhile.
fn end(id: &str) -> Result<()> {
    let deadline = Instant::now() + FAREWELL;
    loop {
        let left = with_word(id)?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::invalid(format!("shim {id}"), "it cannot be killed"));
        }
        for pid in left.into_iter().filter_map(|pid| Pid::from_raw(pid as i32)) {
            match kill_process(pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(Error::system("kill a shim")(error)),
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A bundle as containerd leaves it for the call, with the reader of the shim's log.
struct Bundle {
    directory: tempfile::TempDir,
    _log: File,
}

impl Bundle {
    fn make() -> Result<Self> {
        let directory = tempfile::tempdir().map_err(Error::system("create a bundle"))?;
        let config = directory.path().join("config.json");
        let spec = json!({
            "ociVersion": "1.2.0",
            "annotations": {},
            "process": { "user": { "uid": 0, "gid": 0 }, "args": ["true"], "cwd": "/" },
            "linux": {},
            "root": { "path": "rootfs" },
        });
        fs::write(&config, spec.to_string()).map_err(Error::file("write", &config))?;
        let log = directory.path().join("log");
        let mode = Mode::from_raw_mode(0o700);
        rustix::fs::mknodat(CWD, &log, FileType::Fifo, mode, 0)
            .map_err(Error::system("make a shim's log"))?;
        let reader = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(&log)
            .map_err(Error::file("open", &log))?;
        Ok(Self {
            directory,
            _log: reader,
        })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_answer_name_the_socket() {
        let socket = PathBuf::from("/run/s");
        let json = r#"{"version":3,"address":"unix:///run/s","protocol":"ttrpc"}"#;
        assert_eq!(address(json), Some(socket.clone()));
        assert_eq!(address("unix:///run/s\n"), Some(socket));
        assert_eq!(address("no such bundle"), None);
    }
}
