//! A runtime's commands on the containers of this suite.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::measure::output;
use super::apps::text;
use super::network::Network;
use crate::command::{show, tail};
use crate::error::{Error, Result};
use crate::setup::tools::LIBCRIU;

/// What a command says, by its own log and by CRIU's, in the directory for it.
const LOGS: [&str; 3] = ["log", "dump.log", "restore.log"];

/// Runs a command of a runtime. A container inherits its streams, so that they are the null device:
/// a file of the host's could not be checkpointed. `scratch` gets its logs, and CRIU's.
fn carry_out(runtime: &str, arguments: &[&str], scratch: &Path) -> Result<()> {
    fs::create_dir_all(scratch).map_err(Error::file("create", scratch))?;
    let mut command = Command::new(runtime);
    command.env("LD_LIBRARY_PATH", LIBCRIU.place());
    command.arg("--log").arg(scratch.join(LOGS[0]));
    command.args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status();
    let status = status.map_err(Error::system(format!("run `{}`", show(&command))))?;
    if status.success() {
        return Ok(());
    }
    let logs = LOGS.map(|log| fs::read_to_string(scratch.join(log)).unwrap_or_default());
    let ends = logs.iter().map(|log| tail(log, 1000));
    Err(Error::Command {
        command: show(&command),
        status: status.to_string(),
        output: ends.collect::<Vec<_>>().join("\n"),
    })
}

/// crun's default has CRIU make cgroups in every hierarchy, which fails on those of version 1; what it
/// does instead is what is quickest.
fn cgroup_flags(runtime: &str) -> &'static [&'static str] {
    match runtime {
        "crun" => &["--manage-cgroups-mode", "ignore"],
        _ => &[],
    }
}

/// A container of a runtime, with a directory for logs.
pub(super) struct Container<'a> {
    pub(super) runtime: &'static str,
    pub(super) bundle: &'a Path,
    pub(super) id: String,
    pub(super) scratch: PathBuf,
}

impl Container<'_> {
    /// Starts it.
    pub(super) fn run(&self) -> Result<()> {
        let bundle = text(self.bundle);
        let arguments = ["run", "-d", "-b", &bundle, &self.id];
        carry_out(self.runtime, &arguments, &self.scratch)
    }

    /// Makes it of the files in `images`.
    pub(super) fn restore(&self, images: &Path) -> Result<()> {
        let [bundle, images, work] = [self.bundle, images, &self.scratch].map(text);
        let arguments = [
            &["restore", "--detach", "--bundle", &bundle],
            cgroup_flags(self.runtime),
            &["--image-path", &images, "--work-path", &work, &self.id],
        ];
        carry_out(self.runtime, &arguments.concat(), &self.scratch)
    }

    /// Makes files of it.
    pub(super) fn checkpoint(&self, flags: &[&str], images: &Path) -> Result<()> {
        let [images, work] = [images, &self.scratch].map(text);
        let arguments = [
            &["checkpoint"],
            cgroup_flags(self.runtime),
            flags,
            &["--image-path", &images, "--work-path", &work, &self.id],
        ];
        carry_out(self.runtime, &arguments.concat(), &self.scratch)
    }

    /// Makes a template of it, which goes on.
    pub(super) fn make_template(&self, templates: &Path, name: &str) -> Result<()> {
        let root = text(templates);
        let arguments = ["template", "--template-root", &root, "create"];
        let options = ["--leave-running", "--allow-share", name, &self.id];
        carry_out(
            self.runtime,
            &[&arguments[..], &options].concat(),
            &self.scratch,
        )
    }

    /// Makes it of a template, with memory of one kind.
    pub(super) fn clone_of(
        &self,
        templates: &Path,
        (template, memory): (&str, &str),
    ) -> Result<()> {
        let [root, bundle] = [templates, self.bundle].map(text);
        let arguments = [
            "clone",
            "--detach",
            "--template-root",
            &root,
            "--bundle",
            &bundle,
        ];
        let options = ["--memory", memory, template, &self.id];
        carry_out(
            self.runtime,
            &[&arguments[..], &options].concat(),
            &self.scratch,
        )
    }

    /// Keeps a checkpoint of it, which goes on.
    pub(super) fn keep(&self, flags: &[String]) -> Result<()> {
        let mut arguments = vec!["checkpoint", "--leave-running"];
        arguments.extend(flags.iter().map(String::as_str));
        arguments.push(&self.id);
        carry_out(self.runtime, &arguments, &self.scratch)
    }

    /// The pid of its init.
    pub(super) fn pid(&self) -> Result<u32> {
        let state = output(&[self.runtime, "state", &self.id])?;
        let parsed: serde_json::Value = serde_json::from_str(&state).unwrap_or_default();
        let pid = parsed["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok());
        pid.ok_or_else(|| Error::invalid("a container's state", state))
    }

    /// Its network.
    pub(super) fn network(&self) -> Result<Network> {
        Ok(Network::of(self.pid()?))
    }

    /// Makes the cgroup of a container that has become files, where a restore wants it: without CRIU's
    /// care for cgroups, crun's looks for that of the cgroup namespace's root.
    pub(super) fn keep_cgroup(&self) -> Result<()> {
        if cgroup_flags(self.runtime).is_empty() {
            return Ok(());
        }
        let cgroup = Path::new("/sys/fs/cgroup").join(&self.id);
        fs::create_dir_all(&cgroup).map_err(Error::file("create", &cgroup))
    }

    /// Ends it.
    pub(super) fn delete(&self) -> Result<()> {
        carry_out(self.runtime, &["delete", "-f", &self.id], &self.scratch)
    }
}
