use std::path::PathBuf;

use clap::Args;
use xebec_runtime::{
    CgroupsMode, CheckpointRequest, ContainerId, CriuOptions, NetworkLock, PageServer, Result,
    Signals, adopt_writable,
};

use super::Context;
use super::export::Export;
use super::keeping::Keeping;
use super::kept::Kept;
use super::log::Log;

/// Bit of the network namespace, the only one that can be left empty.
const CLONE_NEWNET: u32 = libc::CLONE_NEWNET as u32;

/// Options that `checkpoint` and `restore` share.
#[derive(Args, Debug)]
pub(super) struct Criu {
    /// Directory of the images [default: ./checkpoint]
    #[arg(long, value_name = "DIR")]
    pub(super) image_path: Option<PathBuf>,
    /// Directory of logs and statistics; that of the images unless given
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    /// Keep established TCP connections
    #[arg(long)]
    tcp_established: bool,
    /// Close established TCP connections
    #[arg(long, conflicts_with = "tcp_established")]
    tcp_close: bool,
    /// Allow unix sockets with a peer outside the container
    #[arg(long)]
    ext_unix_sk: bool,
    /// Allow a session or terminal from outside the container
    #[arg(long)]
    shell_job: bool,
    /// Keep file locks
    #[arg(long)]
    file_locks: bool,
    /// Keep files that are deleted but open by links to them
    #[arg(long)]
    link_remap: bool,
    /// Leave memory to a server of pages
    #[arg(long)]
    pub(super) lazy_pages: bool,
    /// Remove pages from earlier images that are in later ones
    #[arg(long)]
    auto_dedup: bool,
    /// What CRIU does about cgroups: soft, full, strict or ignore
    #[arg(
        long,
        value_name = "MODE",
        default_value = "",
        hide_default_value = true
    )]
    pub(super) manage_cgroups_mode: CgroupsMode,
    /// Leave the content of a namespace alone: network
    #[arg(long, value_name = "NAMESPACE", value_parser = ["network"])]
    empty_ns: Vec<String>,
    /// How the network is held: iptables, nftables or skip
    #[arg(long, value_name = "METHOD")]
    network_lock: Option<NetworkLock>,
    /// Another program than the criu in PATH
    #[arg(
        long = "criu",
        value_name = "FILE",
        default_value = "criu",
        hide_default_value = true
    )]
    program: PathBuf,
}

impl Criu {
    pub(super) fn into_options(self, log: &Log) -> CriuOptions {
        let images = self
            .image_path
            .unwrap_or_else(|| PathBuf::from("checkpoint"));
        let mut options = CriuOptions::new(images);
        options.program = self.program;
        options.work_path = self.work_path;
        options.tcp_established = self.tcp_established;
        options.tcp_close = self.tcp_close;
        options.ext_unix_sk = self.ext_unix_sk;
        options.shell_job = self.shell_job;
        options.file_locks = self.file_locks;
        options.link_remap = self.link_remap;
        options.lazy_pages = self.lazy_pages;
        options.auto_dedup = self.auto_dedup;
        options.cgroups = self.manage_cgroups_mode;
        options.network_lock = self.network_lock;
        // Without a name that it can be executed by, CRIU finds the host's.
        options.tar = std::env::current_exe().ok();
        options.verbose = log.is_verbose();
        if !self.empty_ns.is_empty() {
            options.empty_namespaces = CLONE_NEWNET;
        }
        options
    }
}

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
