//! The command line: one file a command.

mod ask;
mod du;
mod generate;
mod image;
mod interrupt;
mod keeper;
mod prefetch;
mod profile;
mod serve;
mod status;
mod timeline;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::error::Result;

/// containerd snapshotter that starts containers before their image is there.
#[derive(Debug, Parser)]
#[command(name = "xebec-snapshotter", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve containerd's snapshots API on a unix socket
    Serve(serve::Args),
    /// Convert images into lazily readable ones
    Image(Box<image::Args>),
    /// Fetch the rest of an image that was pulled lazily
    Prefetch(prefetch::Args),
    /// Exchange what nodes have recorded of the starts of containers
    Profile(profile::Args),
    /// Show what lazy images and layers take on this node, and which of it may be evicted
    Du(du::Args),
    /// Show snapshots, lazy layers and mounts of the running daemon
    Status(status::Args),
    /// Show what happened when a container started, and how long it took
    Timeline(timeline::Args),
    /// Hold the watch over files that are filled when they are read (started by serve)
    #[command(hide = true)]
    Keeper(keeper::Args),
    /// Write shell completions
    #[command(hide = true)]
    Completions(generate::CompletionsArgs),
    /// Write man pages
    #[command(hide = true)]
    Man(generate::ManArgs),
}

/// Parses the process's arguments, runs the command and prints its error, if any, once.
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xebec-snapshotter: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Image(args) => image::run(*args),
        Command::Prefetch(args) => prefetch::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Du(args) => du::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Timeline(args) => timeline::run(&args),
        Command::Keeper(args) => keeper::run(&args),
        Command::Completions(args) => generate::completions(&args, Cli::command()),
        Command::Man(args) => generate::man(&args, Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
