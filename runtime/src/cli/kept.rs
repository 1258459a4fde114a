//! `checkpoint inspect`, `push`, `list`, `rm`, …: what is done with checkpoints that are kept, without a container.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use xebec_checkpoints::Files;
use xebec_checkpoints::inspect::{inspect, to_text};
use xebec_runtime::{Error, Result};

use super::list::{print, print_json};
use super::{checkpoint_images as images, stored};

#[derive(Debug, Subcommand)]
pub(super) enum Kept {
    /// Show what is in a checkpoint, without restoring it
    Inspect(Inspect),
    /// Put a checkpoint into a registry, as an image
    Push(images::Push),
    /// Get a checkpoint from a registry
    Pull(images::Pull),
    /// List the checkpoints of a store
    List(stored::List),
    /// Remove checkpoints from a store
    Rm(stored::Remove),
    /// Remove what the limits of a store do not allow, and orphans
    Prune(stored::Prune),
    /// Have no limit remove a checkpoint
    Pin(stored::Pin),
    /// Let limits remove a checkpoint again
    Unpin(stored::Pin),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  xebec checkpoint inspect checkpoint-web_default-server-2026-11-27T19:00:00Z.tar\n  xebec checkpoint inspect --format json /srv/web.ckpt"
)]
pub(super) struct Inspect {
    /// Archive of an engine's, or a directory of images
    #[arg(value_name = "FILE|DIR")]
    checkpoint: PathBuf,
    /// How it is shown; values that look like secrets never are
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

impl Kept {
    pub(super) fn carry_out(self) -> Result<u8> {
        match self {
            Self::Inspect(command) => command.carry_out(),
            Self::Push(command) => command.carry_out(),
            Self::Pull(command) => command.carry_out(),
            Self::List(command) => command.carry_out(),
            Self::Rm(command) => command.carry_out(),
            Self::Prune(command) => command.carry_out(),
            Self::Pin(command) => command.carry_out(true),
            Self::Unpin(command) => command.carry_out(false),
        }
    }
}

impl Inspect {
    fn carry_out(self) -> Result<u8> {
        let report = Files::open(&self.checkpoint).and_then(|mut files| inspect(&mut files));
        let report = report.map_err(|e| refused(&e))?;
        match self.format {
            Format::Text => print(&to_text(&report)),
            Format::Json => print_json(&report, true),
        }
    }
}

/// What is wrong with a checkpoint, as an error of the command.
pub(super) fn refused(error: &xebec_checkpoints::Error) -> Error {
    Error::InvalidArgument(error.to_string())
}
