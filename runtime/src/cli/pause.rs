use clap::Args;
use xebec_runtime::{ContainerId, Result};

use super::Context;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  xebec pause web; xebec resume web")]
pub(super) struct Pause {
    /// Name of the container
    id: ContainerId,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  xebec resume web")]
pub(super) struct Resume {
    /// Name of the container
    id: ContainerId,
}

impl Pause {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        context.runtime.pause(&self.id)?;
        Ok(0)
    }
}

impl Resume {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        context.runtime.resume(&self.id)?;
        Ok(0)
    }
}
