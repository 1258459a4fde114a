//! Entry point of `containerd-shim-xebec-v2`.

use std::process::ExitCode;

use xebec_shim::args::{self, Action};
use xebec_shim::error::Result;
use xebec_shim::{bootstrap, delete, info};

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
    let args = args::parse(std::env::args().skip(1))?;
    match args.action {
        Action::Start => bootstrap::start(args),
        Action::Delete => delete::delete(&args),
        Action::Info => info::info(),
        Action::Version => info::version(),
    }
}
