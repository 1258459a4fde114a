use clap::Args;
use xebec_runtime::{ContainerId, Error, Result};

use super::Context;

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  xebec delete web\n  xebec delete --force web")]
pub(super) struct Delete {
    /// Kill what still runs; a container that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Name of the container
    id: ContainerId,
}

impl Delete {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        match context.runtime.delete(&self.id, self.force) {
            Err(Error::NotFound) if self.force => Ok(0),
            other => other.map(|()| 0),
        }
    }
}
