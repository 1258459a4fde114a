use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use rustix::process::{Pid, set_child_subreaper};
use xebec_runtime::{Console, CreateRequest, Error, Launched, RestoreOptions, Result, Signals};

use super::Context;
use super::criu::Criu;
use super::foreground::attend;
use super::import::Import;
use super::keeping::Found;
use super::kept::refused;

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec restore --detach --image-path /srv/web.ckpt --bundle /bundles/web web\n  xebec restore --image-path /srv/web.ckpt web\n  xebec restore --detach --import web.tar --rootfs /srv/web-root --bundle /bundles/web web"
)]
pub(super) struct Restore {
    #[command(flatten)]
    criu: Criu,
    #[command(flatten)]
    import: Import,
    #[command(flatten)]
    found: Found,
    /// Directory with config.json; the one to make with --import
    #[arg(short, long, value_name = "DIR", default_value = ".",
        value_parser = clap::value_parser!(OsString))]
    bundle: OsString,
    #[command(flatten)]
    start: Start,
    /// Move the root file system over / instead of pivot_root (for initramfs hosts)
    #[arg(long)]
    no_pivot: bool,
    /// LSM profile in the place of the dumped one, as apparmor:NAME or selinux:LABEL
    #[arg(long, value_name = "PROFILE")]
    lsm_profile: Option<String>,
    /// SELinux context of mounts in the place of the dumped one
    #[arg(long, value_name = "CONTEXT")]
    lsm_mount_context: Option<String>,
    /// Name of the container
    id: String,
}

/// Options of commands that start a container which has been running before.
#[derive(Args, Debug)]
pub(super) struct Start {
    /// Unix socket that receives the master of the terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// File that gets the pid of the container's process
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Return as soon as the container runs
    #[arg(short, long)]
    detach: bool,
    /// Do not adopt orphans of the container's process
    #[arg(long)]
    no_subreaper: bool,
}

impl Restore {
    pub(super) fn carry_out(mut self, context: &Context) -> Result<u8> {
        match self.import.make_bundle(&mut self.criu, &self.bundle)? {
            Some(bundle) => {
                let detached = self.start.detach;
                let status = self.restore(context)?;
                if detached {
                    bundle.keep().map_err(|e| refused(&e))?;
                }
                Ok(status)
            }
            None => self.restore(context),
        }
    }

    fn restore(self, context: &Context) -> Result<u8> {
        let mut container = CreateRequest::new(self.id.parse()?, self.bundle);
        container.no_pivot = self.no_pivot;
        let mut criu = self.criu.into_options(&context.log);
        let memory = self.found.fetch(&criu.image_path)?;
        if let Some(memory) = &memory {
            criu.image_path = memory.path();
        }
        let options = RestoreOptions {
            criu,
            lsm_profile: self.lsm_profile,
            lsm_mount_context: self.lsm_mount_context,
        };
        self.start.carry_out(context, container, |container| {
            let launched = context.runtime.restore(container, &options);
            // CRIU has read it all.
            drop(memory);
            launched
        })
    }
}

impl Start {
    /// Starts the container, and waits for its end unless it is detached.
    pub(super) fn carry_out(
        self,
        context: &Context,
        mut container: CreateRequest,
        start: impl FnOnce(CreateRequest) -> Result<Launched>,
    ) -> Result<u8> {
        container.pid_file = self.pid_file;
        container.console = self
            .console_socket
            .map_or(Console::None, Console::SocketPath);
        if self.detach {
            let launched = start(container)?;
            context.log.launched(&launched);
            return Ok(0);
        }
        if !matches!(container.console, Console::None) {
            return Err(Error::InvalidArgument(
                "cannot use console socket if runc will not detach or allocate tty".into(),
            ));
        }
        if !self.no_subreaper {
            // Any pid means yes.
            set_child_subreaper(Some(Pid::INIT)).map_err(Error::os("become a subreaper"))?;
        }
        container.console = Console::Foreground;
        let id = container.id.clone();
        // Blocked before there is a child: no signal, and no exit, can be missed.
        let signals = Signals::block()?;
        let launched = start(container)?;
        context.log.launched(&launched);
        let status = attend(launched, &signals);
        if let Err(error) = context.runtime.delete(&id, true) {
            // As in runc, the status of the program is what counts.
            let warning = format!("unable to destroy container: {error}");
            context.log.warning(&warning);
        }
        status
    }
}
