use clap::Args;
use xebec_runtime::Result;

use super::Context;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  xebec pause web; xebec resume web")]
pub(super) struct Pause {
    /// Name of the container
    id: String,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  xebec resume web")]
pub(super) struct Resume {
    /// Name of the container
    id: String,
}

impl Pause {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        context.runtime.pause(&self.id.parse()?)?;
        Ok(0)
    }
}

impl Resume {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        context.runtime.resume(&self.id.parse()?)?;
        Ok(0)
    }
}
