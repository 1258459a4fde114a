use clap::Args;
use xebec_runtime::Result;

use super::{Context, list::print_json};

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  xebec state web | jq -r .status")]
pub(super) struct State {
    /// Name of the container
    id: String,
}

impl State {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        print_json(&context.runtime.state(&self.id.parse()?)?, true)
    }
}
