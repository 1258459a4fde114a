//! `template record`: a clone answers a first request, and the template learns what that needs.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use xebec_runtime::{
    CloneRequest, Console, ContainerId, Error, Fit, MemoryMode, RecordRequest, Result,
};

use super::Context;
use super::clone::OwnBundle;
use super::criu::Program;
use super::page_server::page_program;

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  xebec template record web-warm -- sh -c 'nsenter -t $XEBEC_PID -n curl -fsS http://127.0.0.1:8080/'"
)]
pub(super) struct Record {
    #[command(flatten)]
    bundle: OwnBundle,
    #[command(flatten)]
    criu: Program,
    /// Name of the template
    name: String,
    /// What makes the first request and waits for the answer: XEBEC_ID and XEBEC_PID in its environment
    /// are the clone's
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Record {
    pub(super) fn carry_out(self, templates: PathBuf, context: &Context) -> Result<u8> {
        let template: ContainerId = self.name.parse()?;
        let clone: ContainerId = format!("{template}-recorded").parse()?;
        let mut container = self.bundle.container(clone.clone());
        container.console = Console::None;
        let request = CloneRequest {
            templates: templates.clone(),
            template: template.clone(),
            memory: MemoryMode::Uffd,
            hot: false,
            criu: self.criu.path.clone(),
            work_path: None,
            page_program: Some(page_program()),
            fit: Fit::Mounts,
        };
        context.runtime.clone_template(container, &request)?;
        let recorded = self.request(context, &clone).and_then(|()| {
            context.runtime.record_template(&RecordRequest {
                templates,
                template,
                clone: clone.clone(),
            })
        });
        let removed = context.runtime.delete(&clone, true);
        recorded?;
        removed.map(|()| 0)
    }

    /// Makes the request that is recorded.
    fn request(&self, context: &Context, clone: &ContainerId) -> Result<()> {
        let Some((program, arguments)) = self.command.split_first() else {
            return Ok(());
        };
        let pid = context.runtime.state(clone)?.pid;
        let mut command = Command::new(program);
        command.args(arguments).env("XEBEC_ID", clone.as_str());
        command.env("XEBEC_PID", pid.to_string());
        let status = command.status().map_err(Error::file("execute", program))?;
        if status.success() {
            return Ok(());
        }
        let program = program.to_string_lossy();
        let reason = format!("nothing is recorded: {program} ended with {status}");
        Err(Error::InvalidArgument(reason))
    }
}
