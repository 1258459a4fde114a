//! `xebec-snapshotter keeper`: what the daemon starts beside itself.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::Result;
use crate::{daemon, keeper};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Seconds that reads wait for a daemon before they get EIO
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    deadline: u64,
    /// The socket that comes over standard input, for people who look for this process
    socket: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<()> {
    daemon::log("info")?;
    tracing::debug!(socket = %args.socket.display(), "keeping");
    keeper::run(Duration::from_secs(args.deadline))
}
