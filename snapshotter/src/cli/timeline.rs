//! `xebec-snapshotter timeline`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ask::DaemonArgs;
use crate::daemon::status::Request;
use crate::error::{Error, Result};
use crate::timeline::{Start, draw, list};

/// The daemon answers from memory.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An image as it was pulled, or a snapshot (a container's name will do)
    #[arg(value_name = "REF|SNAPSHOT")]
    name: String,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// File to write; standard output if it is not given
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
    /// A waterfall to look at with a browser
    Svg,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let start = fetch(&args.daemon, &args.name)?;
    let text = match args.format {
        Format::Text => list(&start),
        Format::Svg => draw(&start),
        Format::Json => {
            let json = serde_json::to_string_pretty(&start);
            json.map_err(|error| Error::Internal(error.to_string()))? + "\n"
        }
    };
    match &args.output {
        Some(path) => std::fs::write(path, text).map_err(Error::io("write", path)),
        None => std::io::stdout()
            .write_all(text.as_bytes())
            .map_err(Error::io("write", Path::new("standard output"))),
    }
}

fn fetch(daemon: &DaemonArgs, name: &str) -> Result<Start> {
    let request = Request {
        timeline: Some(name.to_owned()),
        ..Request::default()
    };
    let answer = daemon.ask(&request, Some(PATIENCE))?;
    match (answer.timeline, answer.error) {
        (Some(start), None) => Ok(start),
        (_, error) => Err(Error::Unusable {
            what: format!("timeline of {name}"),
            reason: error.unwrap_or_else(|| "the daemon does not tell".to_owned()),
        }),
    }
}
