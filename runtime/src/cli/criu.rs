//! Options of the commands that have CRIU work for them.

use std::path::PathBuf;

use clap::Args;
use xebec_runtime::{CgroupsMode, CriuOptions, NetworkLock};

use super::log::Log;

/// Bit of the network namespace, the only one that can be left empty.
const CLONE_NEWNET: u32 = libc::CLONE_NEWNET as u32;

/// Which CRIU works.
#[derive(Args, Debug)]
pub(super) struct Program {
    /// Another program than the criu in PATH
    #[arg(
        long = "criu",
        value_name = "FILE",
        default_value = "criu",
        hide_default_value = true
    )]
    pub(super) path: PathBuf,
}

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
    #[command(flatten)]
    program: Program,
}

impl Criu {
    pub(super) fn into_options(self, log: &Log) -> CriuOptions {
        let images = self
            .image_path
            .unwrap_or_else(|| PathBuf::from("checkpoint"));
        let mut options = CriuOptions::new(images);
        options.program = self.program.path;
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
