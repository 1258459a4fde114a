//! `image optimize`.

use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::convert::{ConvertArgs, print};
use super::progress::Progress;
use crate::cli::interrupt::undo_on_signal;
use crate::convert::{self, Place, Trial};
use crate::discover::Image;
use crate::error::{Error, Result};
use crate::profile::remote;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    convert: ConvertArgs,
    /// End the trial after this many seconds, if the container does not end before
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    seconds: u32,
    /// End the trial at a line of the container's standard output that holds this text
    #[arg(long, value_name = "TEXT")]
    ready_line: Option<String>,
    /// OCI runtime to run the container with
    #[arg(long, value_name = "PROGRAM", default_value = "xebec")]
    runtime: PathBuf,
    /// Give the container this machine's network instead of none
    #[arg(long)]
    host_network: bool,
    /// File to write the list of opened files to, as --prioritize of `image convert` takes it
    #[arg(long, value_name = "FILE")]
    list_output: Option<PathBuf>,
    /// File to write the profile to, as `profile import` takes it; where the destination is in a
    /// registry it is also put beside the image
    #[arg(long, value_name = "FILE")]
    profile_output: Option<PathBuf>,
    /// Arguments for the container in the place of the image's
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<String>,
}

pub(super) fn run(args: Args) -> Result<()> {
    let trial = Trial {
        runtime: args.runtime,
        limit: Duration::from_secs(args.seconds.into()),
        ready_line: args.ready_line,
        arguments: args.arguments,
        host_network: args.host_network,
    };
    let format = args.convert.format;
    let (registry, options) = args.convert.options()?;
    if !options.prioritized.is_empty() || !options.platforms.is_empty() {
        let reason = "optimize finds out itself what comes first, on this machine's platform: \
                      neither --prioritize nor --platform";
        return Err(Error::InvalidArgument(reason.to_owned()));
    }
    let progress = Progress::new(std::io::stderr().is_terminal());
    let undo = undo_on_signal()?;
    let done = convert::optimize(&registry, &options, &trial, &progress, &undo)?;
    progress.clear();
    if let Some(path) = &args.list_output {
        write(path, format!("{}\n", done.opened.join("\n")).as_bytes())?;
    }
    if let Some(profile) = done.profile {
        if let Some(path) = &args.profile_output {
            write(path, &profile.to_json()?)?;
        }
        if let Place::Registry(reference) = &options.destination {
            let registry = Arc::new(registry);
            let image = Image::fetch(registry.clone(), reference, None)?;
            remote::push(&*registry, &image, profile)?;
        }
    } else if let Some(path) = &args.profile_output {
        let reason = format!(
            "{}: a Nydus image has its list in itself and no profile",
            path.display()
        );
        return Err(Error::InvalidArgument(reason));
    }
    print(&done.report, format)
}

fn write(path: &PathBuf, content: &[u8]) -> Result<()> {
    std::fs::File::create(path)
        .and_then(|mut file| file.write_all(content))
        .map_err(Error::io("write", path))
}
