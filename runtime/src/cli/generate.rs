use std::fs;
use std::io;
use std::path::PathBuf;

use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;
use xebec_runtime::{Error, Result};

/// Documents made from the command line's own definition.
#[derive(Debug, Subcommand)]
pub(super) enum Generate {
    /// Print shell completions
    #[command(hide = true)]
    Completions {
        /// For this shell
        shell: Shell,
    },
    /// Write the manual pages
    #[command(hide = true)]
    Man {
        /// Into this directory
        dir: PathBuf,
    },
}

impl Generate {
    pub(super) fn carry_out(self) -> Result<u8> {
        let mut command = super::Cli::command();
        match self {
            Self::Completions { shell } => {
                clap_complete::generate(shell, &mut command, "xebec", &mut io::stdout());
            }
            Self::Man { dir } => {
                let failed = |source| Error::File {
                    op: "write",
                    path: dir.clone(),
                    source,
                };
                fs::create_dir_all(&dir).map_err(failed)?;
                clap_mangen::generate_to(command, &dir).map_err(failed)?;
            }
        }
        Ok(0)
    }
}
