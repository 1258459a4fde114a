//! `xebec-snapshotter serve`.

use std::path::PathBuf;

use crate::config::Config;
use crate::daemon;
use crate::error::Result;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file [default: /etc/xebec/snapshotter.toml, a user's own below
    /// ~/.config, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory that holds everything the daemon keeps (overrides the file)
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Unix socket on which containerd is served (overrides the file)
    #[arg(long, value_name = "SOCKET")]
    address: Option<PathBuf>,
    /// Log filter: error, warn, info, debug, trace or per module (overrides the file)
    #[arg(long, value_name = "FILTER", env = "XEBEC_LOG")]
    log: Option<String>,
}

pub(super) fn run(args: Args) -> Result<()> {
    let mut config = Config::load(args.config.as_deref())?;
    config.root = args.root.unwrap_or(config.root);
    config.address = args.address.unwrap_or(config.address);
    config.log = args.log.unwrap_or(config.log);
    daemon::run(&config)
}
