use std::path::PathBuf;

use clap::Args;
use xebec_runtime::{CheckpointRequest, ContainerId, PageServer, Result, Signals, adopt_writable};

use super::Context;
use super::criu::Criu;
use super::export::Export;
use super::keeping::Keeping;
use super::kept::Kept;

#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  xebec checkpoint --image-path /srv/web.ckpt web\n  xebec checkpoint --leave-running --image-path /srv/web.ckpt web\n  xebec checkpoint --export /srv/web.tar --image docker.io/library/web:1 web\n  xebec checkpoint --store --keep-count 5 --leave-running web\n  xebec checkpoint inspect /srv/web.tar"
)]
pub(super) struct Checkpoint {
    #[command(subcommand)]
    kept: Option<Kept>,
    #[command(flatten)]
    criu: Criu,
    #[command(flatten)]
    export: Export,
    /// Images of an earlier checkpoint, relative to those of this one
    #[arg(long, value_name = "DIR")]
    parent_path: Option<PathBuf>,
    /// Write memory only, and let the container go on
    #[arg(long)]
    pre_dump: bool,
    /// Let the container go on
    #[arg(long)]
    leave_running: bool,
    /// Leave out TCP connections that are not established yet
    #[arg(long)]
    tcp_skip_in_flight: bool,
    /// Send memory to a criu page-server
    #[arg(long, value_name = "ADDRESS:PORT")]
    page_server: Option<PageServer>,
    /// Descriptor that gets a zero byte when the server of lazy pages is ready
    #[arg(long, value_name = "FD", requires = "lazy_pages")]
    status_fd: Option<i32>,
    #[command(flatten)]
    keeping: Keeping,
    /// Name of the container
    #[arg(required = true)]
    id: Option<String>,
}

impl Checkpoint {
    pub(super) fn carry_out(self, open: impl FnOnce() -> Result<Context>) -> Result<u8> {
        match self.kept {
            Some(kept) => kept.carry_out(),
            None => self.make(&open()?),
        }
    }

    fn make(self, context: &Context) -> Result<u8> {
        let id: ContainerId = self.id.unwrap_or_default().parse()?;
        let goes_on = self.leave_running || self.pre_dump;
        // An interrupt ends CRIU; this process stays to let the container go on.
        let _signals = Signals::block()?;
        let request = CheckpointRequest {
            id: id.clone(),
            criu: self.criu.into_options(&context.log),
            parent_path: self.parent_path,
            pre_dump: self.pre_dump,
            leave_running: self.leave_running,
            tcp_skip_in_flight: self.tcp_skip_in_flight,
            page_server: self.page_server,
            status: self.status_fd.map(adopt_writable).transpose()?,
        };
        if self.export.is_wanted() {
            self.export.carry_out(context, request)?;
        } else {
            self.keeping.checkpoint(&context.runtime, request)?;
        }
        if !goes_on && let Err(error) = context.runtime.delete(&id, true) {
            // As in runc: what was asked for is there.
            let warning = format!("unable to destroy container: {error}");
            context.log.warning(&warning);
        }
        Ok(0)
    }
}
