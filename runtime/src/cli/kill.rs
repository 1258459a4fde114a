use clap::Args;
use xebec_runtime::Result;

use super::{Context, signals};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec kill web\n  xebec kill --all web KILL\n  xebec kill web 10\n  xebec kill --regex '^web-' TERM"
)]
pub(super) struct Kill {
    /// Send it to every process of the container
    #[arg(short, long)]
    all: bool,
    /// Take ID for an extended regular expression: every container it matches gets the signal
    #[arg(short, long)]
    regex: bool,
    /// Name of the container
    id: String,
    /// Name or number of the signal
    #[arg(default_value = "SIGTERM", allow_negative_numbers = true)]
    signal: String,
}

impl Kill {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        let containers = context.select(&self.id, self.regex)?;
        let signal = signals::parse(&self.signal)?;
        for id in containers {
            context.runtime.kill(&id, signal, self.all)?;
        }
        Ok(0)
    }
}
