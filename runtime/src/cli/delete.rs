use clap::Args;
use xebec_runtime::{Error, Result};

use super::Context;

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec delete web\n  xebec delete --force web\n  xebec delete --force --regex '^web-'"
)]
pub(super) struct Delete {
    /// Kill what still runs; a container that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Take ID for an extended regular expression: every container it matches is deleted
    #[arg(short, long)]
    regex: bool,
    /// Name of the container
    id: String,
}

impl Delete {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        for id in context.select(&self.id, self.regex)? {
            match context.runtime.delete(&id, self.force) {
                // With force that is what was asked for; with a pattern somebody was quicker.
                Err(Error::NotFound) if self.force || self.regex => {}
                other => other?,
            }
        }
        Ok(0)
    }
}
