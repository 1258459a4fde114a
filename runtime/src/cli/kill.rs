use clap::Args;
use xebec_runtime::{ContainerId, Result};

use super::{Context, signals};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec kill web\n  xebec kill --all web KILL\n  xebec kill web 10"
)]
pub(super) struct Kill {
    /// Send it to every process of the container
    #[arg(short, long)]
    all: bool,
    /// Name of the container
    id: ContainerId,
    /// Name or number of the signal
    #[arg(default_value = "SIGTERM")]
    signal: String,
}

impl Kill {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        context
            .runtime
            .kill(&self.id, signals::parse(&self.signal)?, self.all)?;
        Ok(0)
    }
}
