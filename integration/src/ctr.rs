//! containerd's own client on a native host, with what every call there needs.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use crate::command::{DEADLINE, Output};
use crate::error::{Error, Result};
use crate::hosts::NativeHost;

/// A snapshotter and a runtime that containers run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stack {
    /// Name of the snapshotter in containerd.
    pub snapshotter: &'static str,
    /// Name of the runtime, or the path of its shim.
    pub runtime: &'static str,
}

impl Stack {
    /// Ours: lazy layers where the image allows it.
    pub const XEBEC: Self = Self {
        snapshotter: "xebec",
        runtime: "io.containerd.xebec.v2",
    };
    /// containerd's own, which pulls everything first.
    pub const RUNC: Self = Self {
        snapshotter: "overlayfs",
        runtime: "io.containerd.runc.v2",
    };

    /// The arguments of `ctr run` up to the image. `--cpu-shares 0` asks for no cpu controller,
    /// which the native host lacks.
    pub fn run_arguments(&self) -> [&'static str; 8] {
        [
            "ctr",
            "run",
            "--cpu-shares",
            "0",
            "--snapshotter",
            self.snapshotter,
            "--runtime",
            self.runtime,
        ]
    }
}

/// `ctr` on one host.
#[derive(Debug, Clone, Copy)]
pub struct Ctr<'a> {
    host: &'a NativeHost,
}

impl<'a> Ctr<'a> {
    /// The host must run containerd.
    pub fn new(host: &'a NativeHost) -> Self {
        Self { host }
    }

    /// Any command of `ctr`; a bad exit status is no error here.
    pub fn output<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Output> {
        let argv: Vec<&OsStr> = [OsStr::new("ctr")]
            .into_iter()
            .chain(arguments.iter().map(AsRef::as_ref))
            .collect();
        self.host.run(&argv)
    }

    /// Any command of `ctr` that has to succeed; its standard output.
    pub fn check<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        let argv: Vec<&OsStr> = [OsStr::new("ctr")]
            .into_iter()
            .chain(arguments.iter().map(AsRef::as_ref))
            .collect();
        self.host.check(&argv)
    }

    /// Pulls and unpacks an image for a snapshotter.
    pub fn pull(&self, image: &str, snapshotter: &str) -> Result<String> {
        self.check(&Self::pull_arguments(image, snapshotter))
    }

    /// As [`Self::pull`], for pulls that are expected to fail.
    pub fn try_pull(&self, image: &str, snapshotter: &str) -> Result<Output> {
        self.output(&Self::pull_arguments(image, snapshotter))
    }

    /// The arguments of a pull, after `ctr`.
    pub(crate) fn pull_arguments<'b>(image: &'b str, snapshotter: &'b str) -> [&'b str; 7] {
        const HOSTS: &str = "/etc/containerd/certs.d";
        [
            "images",
            "pull",
            "--hosts-dir",
            HOSTS,
            "--snapshotter",
            snapshotter,
            image,
        ]
    }

    /// Runs a container in the foreground to its end and removes it. No command means the image's.
    pub fn run(&self, stack: Stack, image: &str, id: &str, command: &[&str]) -> Result<Output> {
        self.host
            .run(&Self::run_argv(stack, "--rm", image, id, command))
    }

    /// Starts a container in the background.
    pub fn start(&self, stack: Stack, image: &str, id: &str, command: &[&str]) -> Result<()> {
        self.host
            .check(&Self::run_argv(stack, "-d", image, id, command))
            .map(drop)
    }

    fn run_argv<'b>(
        stack: Stack,
        flag: &'b str,
        image: &'b str,
        id: &'b str,
        command: &[&'b str],
    ) -> Vec<&'b str> {
        let mut argv = stack.run_arguments().to_vec();
        argv.extend([flag, image, id]);
        argv.extend(command);
        argv
    }

    /// Ends a container's task and removes both.
    pub fn remove(&self, id: &str) -> Result<()> {
        self.check(&["tasks", "rm", "-f", id])?;
        self.check(&["containers", "rm", id]).map(drop)
    }

    /// A command in a running container.
    pub fn exec(&self, id: &str, command: &[&str]) -> Result<Output> {
        let mut arguments = vec!["tasks", "exec", "--exec-id", "x", id];
        arguments.extend(command);
        self.output(&arguments)
    }

    /// The init pid and the status of a task, `None` when there is no such task.
    pub fn task(&self, id: &str) -> Result<Option<(i32, String)>> {
        parse_task(&self.check(&["tasks", "ls"])?, id)
    }

    /// Waits until a task has ended, or is not there.
    pub fn wait_until_stopped(&self, id: &str) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        while let Some((_, status)) = self.task(id)?
            && status != "STOPPED"
        {
            if Instant::now() > end {
                let reason = format!("still {status} after {} s", DEADLINE.as_secs());
                return Err(Error::invalid(format!("task {id}"), reason));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

fn parse_task(list: &str, id: &str) -> Result<Option<(i32, String)>> {
    for line in list.lines().skip(1) {
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields[..] {
            [name, pid, status] if name == id => {
                let pid = pid
                    .parse()
                    .map_err(|e| Error::invalid("pid in `ctr tasks ls`", e))?;
                return Ok(Some((pid, status.to_owned())));
            }
            [_, _, _] => {}
            _ => return Err(Error::invalid("line of `ctr tasks ls`", line)),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str =
        "TASK    PID    STATUS    \nweb-10    77    RUNNING\nweb-1    12    PAUSED\n";

    #[test]
    fn a_task_is_found_by_its_whole_id() {
        assert_eq!(
            parse_task(LIST, "web-1").unwrap(),
            Some((12, "PAUSED".into()))
        );
        assert_eq!(parse_task(LIST, "web").unwrap(), None);
    }

    #[test]
    fn a_line_with_other_columns_is_an_error() {
        assert!(parse_task("TASK PID STATUS\nweb 1\n", "web").is_err());
    }
}
