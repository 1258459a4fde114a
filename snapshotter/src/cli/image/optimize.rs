//! `image optimize`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use super::convert::{ConvertArgs, check_profile_output, keep_profile, print, write};
use super::progress::Progress;
use crate::cli::interrupt::undo_on_signal;
use crate::convert::{self, Trial};
use crate::error::{Error, Result};

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
    let output = args.convert.profile_output.clone();
    let is_told = args.convert.profile.is_some();
    let (registry, options) = args.convert.options()?;
    if is_told || !options.prioritized.is_empty() || !options.platforms.is_empty() {
        let reason = "optimize finds out itself what comes first, on this machine's platform: \
                      neither --profile nor --prioritize nor --platform";
        return Err(Error::InvalidArgument(reason.to_owned()));
    }
    check_profile_output(&options, output.as_deref())?;
    let progress = Progress::new(std::io::stderr().is_terminal());
    let undo = undo_on_signal()?;
    let done = convert::optimize(&registry, &options, &trial, &progress, &undo)?;
    progress.clear();
    if let Some(path) = &args.list_output {
        write(path, format!("{}\n", done.opened.join("\n")).as_bytes())?;
    }
    keep_profile(registry, &options, done.profile, output.as_deref())?;
    print(&done.report, format)
}
