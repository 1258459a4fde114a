use std::os::fd::AsFd as _;

use clap::Args;
use rustix::process::{Pid, set_child_subreaper};
use xebec_runtime::{Console, ContainerId, CreateRequest, Error, Launched, Result, Signals, Step};

use super::Context;
use super::create::Creation;
use super::foreground::{attend, own_size};
use super::notify::Readiness;

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
            return self.start_only(context, &id);
        }
        if self.creation.has_console_socket() {
            return Err(Error::InvalidArgument(
                "cannot use console socket if runc will not detach or allocate tty".into(),
            ));
        }
        if !self.no_subreaper {
            // Any pid means yes.
            set_child_subreaper(Some(Pid::INIT)).map_err(|e| Error::Os {
                op: "become a subreaper".into(),
                source: e.into(),
            })?;
        }
        // Blocked before there is a child: no signal, and no exit, can be missed.
        let signals = Signals::block()?;
        let mut request = self.creation.into_request()?;
        request.console = Console::Foreground;
        request.console_size = own_size();
        let (launched, readiness) = match launch(context, &id, request) {
            // As if a program had been found there and had ended at once, which is runc's view.
            Err(Error::Init(failure)) if failure.step == Step::Execute => {
                eprintln!("{failure}");
                return Ok(255);
            }
            result => result?,
        };
        if let Some(readiness) = readiness {
            let process = launched.pidfd.try_clone().map_err(Error::os("dup"))?;
            // The service manager goes on watching us, who stay as long as the container does.
            let main = std::process::id() as i32;
            // Nobody waits for it: it ends with this process, if not with its word.
            std::thread::spawn(move || readiness.relay(process.as_fd(), main));
        }
        let status = attend(launched, &signals);
        if !self.keep
            && let Err(error) = context.runtime.delete(&id, true)
        {
            // As in runc, the status of the program is what counts.
            let warning = format!("unable to destroy container: {error}");
            context.log.warning(&warning);
        }
        status
    }

    fn start_only(self, context: &Context, id: &ContainerId) -> Result<u8> {
        let (launched, readiness) = launch(context, id, self.creation.into_request()?)?;
        if let Some(readiness) = readiness {
            readiness.relay(launched.pidfd.as_fd(), launched.pid)?;
        }
        Ok(0)
    }
}

/// Runs a container. When somebody waits for its readiness it takes two steps, because the way
/// there has to be open before the program runs.
fn launch(
    context: &Context,
    id: &ContainerId,
    request: CreateRequest,
) -> Result<(Launched, Option<Readiness>)> {
    if !request.notify {
        let launched = context.runtime.run(request)?;
        context.log.launched(&launched);
        return Ok((launched, None));
    }
    let launched = context.runtime.create(request)?;
    context.log.launched(&launched);
    let started = Readiness::open(context, id).and_then(|readiness| {
        context.runtime.start(id)?;
        Ok(readiness)
    });
    match started {
        Ok(readiness) => Ok((launched, readiness)),
        Err(error) => {
            // What went wrong is what the caller has to hear of.
            let _ = context.runtime.delete(id, true);
            Err(error)
        }
    }
}
