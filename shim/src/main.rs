//! Entry point of `containerd-shim-xebec-v2`.

use std::process::ExitCode;

use xebec_shim::args::{self, Action};
use xebec_shim::error::{Context, Error, Result};
use xebec_shim::{bootstrap, debug, delete, info, pages, sys};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-xebec-v2: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    // What the caller left open by mistake must not live as long as the daemon.
    sys::close_from(3);
    let args = args::parse(std::env::args().skip(1))?;
    match args.action {
        Action::Start => {
            // The daemon is a fork of this process, and containers are forks of the daemon's.
            xebec_runtime::protect_own_binary().map_err(|error| Error::Runtime {
                operation: "start",
                message: error.to_string(),
            })?;
            bootstrap::start(args)
        }
        Action::Delete => delete::delete(&args),
        Action::Info => info::info(),
        Action::Version => info::version(),
        Action::Debug => debug::debug(&args),
        Action::Help => info::help(),
        Action::PageServer => pages::serve(&args.rest),
        Action::Pause => sys::wait_for_the_end().context(|| "wait".into()),
    }
}
