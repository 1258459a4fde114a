//! Documents made from the command line's own definition.

use std::fs;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use xebec_runtime::{Error, Result};

use super::list::print_bytes;

#[derive(Args, Debug)]
#[command(
    hide = true,
    after_help = "Example:\n  xebec completions bash > xebec.bash"
)]
pub(super) struct Completions {
    /// For this shell
    shell: Shell,
}

#[derive(Args, Debug)]
#[command(
    hide = true,
    after_help = "Example:\n  xebec man /usr/local/share/man/man1"
)]
pub(super) struct Man {
    /// Into this directory
    dir: PathBuf,
}

impl Completions {
    pub(super) fn carry_out(self) -> Result<u8> {
        let mut command = super::Cli::command();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "xebec", &mut script);
        print_bytes(&script).map(|()| 0)
    }
}

impl Man {
    pub(super) fn carry_out(self) -> Result<u8> {
        let failed = |source| Error::File {
            op: "write",
            path: self.dir.clone(),
            source,
        };
        fs::create_dir_all(&self.dir).map_err(failed)?;
        clap_mangen::generate_to(super::Cli::command(), &self.dir).map_err(failed)?;
        Ok(0)
    }
}
