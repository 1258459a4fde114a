use clap::Args;
use xebec_runtime::Result;

use super::Context;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  xebec create --bundle /bundles/web web && xebec start web")]
pub(super) struct Start {
    /// Name of the container
    id: String,
}

impl Start {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        context.runtime.start(&self.id.parse()?)?;
        Ok(0)
    }
}
