use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use xebec_runtime::{CloneRequest, ContainerId, CreateRequest, Fit, MemoryMode, Result, TEMPLATES};

use super::Context;
use super::criu::Program;
use super::page_server::page_program;
use super::restore::Start;

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec clone --detach web-warm web-1\n  xebec clone --detach --memory share --bundle /bundles/web-2 web-warm web-2"
)]
pub(super) struct CloneCommand {
    #[command(flatten)]
    start: Start,
    /// Directory of the templates
    #[arg(long, value_name = "DIR", default_value = TEMPLATES)]
    template_root: PathBuf,
    #[command(flatten)]
    bundle: OwnBundle,
    /// Where the memory comes from: eager copies all of it before the clone runs, share maps the
    /// template's, copy-on-write; uffd
    /// has each page put there by a server when it is touched for the first time
    #[arg(long, value_name = "MODE", default_value_t = MemoryMode::Eager)]
    memory: MemoryMode,
    /// Directory that keeps CRIU's log and statistics
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    #[command(flatten)]
    criu: Program,
    /// Name of the template
    template: String,
    /// Name of the container
    id: String,
}

/// Where a clone's configuration comes from.
#[derive(Args, Debug)]
pub(super) struct OwnBundle {
    /// Directory with config.json [default: that of the container the template was made of, but
    /// with a cgroup of the clone's own]
    #[arg(short, long, value_name = "DIR", value_parser = clap::value_parser!(OsString))]
    bundle: Option<OsString>,
}

impl OwnBundle {
    pub(super) fn container(&self, id: ContainerId) -> CreateRequest {
        CreateRequest::new(id, self.bundle.clone().unwrap_or_default())
    }
}

impl CloneCommand {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        let container = self.bundle.container(self.id.parse()?);
        let request = CloneRequest {
            templates: self.template_root,
            template: self.template.parse()?,
            memory: self.memory,
            criu: self.criu.path,
            work_path: self.work_path,
            hot: true,
            page_program: Some(page_program()),
            fit: Fit::Mounts,
        };
        self.start.carry_out(context, container, |container| {
            context.runtime.clone_template(container, &request)
        })
    }
}
