use clap::Args;
use rustix::process::set_child_subreaper;
use xebec_runtime::{Error, Result, Signals};

use super::Context;
use super::create::Creation;
use super::foreground::Foreground;

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec run --bundle /bundles/web web\n  xebec run --detach --pid-file web.pid web"
)]
pub(super) struct Run {
    #[command(flatten)]
    pub(super) creation: Creation,
    /// Return as soon as the container's process executes
    #[arg(short, long)]
    detach: bool,
    /// Keep the container's state after its process has exited
    #[arg(long)]
    keep: bool,
    /// Do not adopt orphans of the container's process
    #[arg(long)]
    no_subreaper: bool,
}

impl Run {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        let id = self.creation.id.parse()?;
        if self.detach {
            return self.start_only(context);
        }
        if !self.no_subreaper {
            set_child_subreaper(Some(rustix::process::getpid())).map_err(|e| Error::Os {
                op: "become a subreaper".into(),
                source: e.into(),
            })?;
        }
        // Blocked before there is a child: no signal, and no exit, can be missed.
        let signals = Signals::block()?;
        let foreground = Foreground::new(self.creation.has_console_socket())?;
        let mut request = self.creation.into_request()?;
        foreground.attach_to(&mut request.console);
        let launched = context.runtime.run(request)?;
        context.log.launched(&launched);
        let status = foreground.attend(&launched, &signals);
        if !self.keep {
            context.runtime.delete(&id, true)?;
        }
        status
    }

    fn start_only(self, context: &Context) -> Result<u8> {
        let launched = context.runtime.run(self.creation.into_request()?)?;
        context.log.launched(&launched);
        Ok(0)
    }
}
