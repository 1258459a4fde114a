use std::os::fd::AsFd as _;

use clap::Args;
use xebec_runtime::Result;

use super::Context;
use super::notify::Readiness;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  xebec create --bundle /bundles/web web && xebec start web")]
pub(super) struct Start {
    /// Name of the container
    id: String,
}

impl Start {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        let id = self.id.parse()?;
        let readiness = Readiness::open(context, &id)?;
        context.runtime.start(&id)?;
        if let Some(readiness) = readiness {
            let init = context.runtime.init(&id)?;
            readiness.relay(init.pidfd.as_fd(), init.pid)?;
        }
        Ok(0)
    }
}
