use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use xebec_runtime::{Console, CreateRequest, Result, TEMPLATES, TemplateAccess};

use super::Context;
use super::activation::Activation;
use super::notify::manager_socket;
use super::page_server::page_program;

/// Options that `create` and `run` share.
#[derive(Args, Debug)]
pub(super) struct Creation {
    /// Directory with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".",
        value_parser = clap::value_parser!(OsString))]
    bundle: OsString,
    /// Configuration to use instead of the bundle's config.json
    #[arg(short = 'f', long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Unix socket that receives the master of the terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Unix socket that receives a pidfd of the container's process
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// File that gets the pid of the container's process
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Move the root file system over / instead of pivot_root (for initramfs hosts)
    #[arg(long)]
    no_pivot: bool,
    /// Stay in the caller's session keyring
    #[arg(long)]
    no_new_keyring: bool,
    /// Pass N further descriptors, from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Directory of the templates that annotations may name
    #[arg(long, value_name = "DIR", default_value = TEMPLATES)]
    template_root: PathBuf,
    /// Name of the container
    pub(super) id: String,
}

impl Creation {
    pub(super) fn has_console_socket(&self) -> bool {
        self.console_socket.is_some()
    }

    /// How many descriptors from 3 on are the container's: those of a service manager and more.
    pub(super) fn preserved(&self) -> u32 {
        Activation::of_this_process()
            .count
            .saturating_add(self.preserve_fds)
    }

    pub(super) fn into_request(self) -> Result<CreateRequest> {
        let preserved = self.preserved();
        let mut request = CreateRequest::new(self.id.parse()?, self.bundle);
        // The usual name means the one in the bundle, any other starts here: as in crun.
        request.config = self.config.filter(|file| file != Path::new("config.json"));
        request.console = self
            .console_socket
            .map_or(Console::None, Console::SocketPath);
        request.pid_file = self.pid_file;
        request.pidfd_socket = self.pidfd_socket;
        request.no_pivot = self.no_pivot;
        request.no_new_keyring = self.no_new_keyring;
        request.preserve_fds = preserved;
        request.extra_env = Activation::of_this_process().env;
        request.notify = manager_socket().is_some();
        request.templates = Some(TemplateAccess {
            root: self.template_root,
            criu: PathBuf::from("criu"),
            work_path: None,
            page_program: Some(page_program()),
        });
        Ok(request)
    }
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  xebec create --bundle /bundles/web --pid-file web.pid web")]
pub(super) struct Create {
    #[command(flatten)]
    pub(super) creation: Creation,
    #[arg(
        long,
        hide = true,
        help = "Accepted for crun's sake: only run has a subreaper"
    )]
    no_subreaper: bool,
}

impl Create {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        let launched = context.runtime.create(self.creation.into_request()?)?;
        context.log.launched(&launched);
        Ok(0)
    }
}
