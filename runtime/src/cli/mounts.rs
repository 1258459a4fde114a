use std::path::PathBuf;

use clap::{Args, Subcommand};
use xebec_runtime::{ContainerId, Result};

use super::Context;

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  xebec mounts add web mounts.json\n  \
                        xebec mounts remove web mounts.json")]
pub(super) struct Mounts {
    #[command(subcommand)]
    change: Change,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Mount what a file lists into a running container
    Add(Listed),
    /// Unmount what a file lists
    Remove(Listed),
}

#[derive(Args, Debug)]
struct Listed {
    /// Name of the container
    id: ContainerId,
    /// JSON: a list of mounts as in config.json, or a document with `mounts`
    file: PathBuf,
}

impl Mounts {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        match self.change {
            Change::Add(Listed { id, file }) => context.runtime.add_mounts(&id, &file)?,
            Change::Remove(Listed { id, file }) => context.runtime.remove_mounts(&id, &file)?,
        }
        Ok(0)
    }
}
