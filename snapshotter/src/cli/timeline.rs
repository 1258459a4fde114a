//! `xebec-snapshotter timeline`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::status::ask;
use crate::config::Config;
use crate::daemon::status::{Answer, Request, socket_path};
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
    /// Configuration file of the daemon [default: /etc/xebec/snapshotter.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Unix socket on which the daemon serves containerd (overrides the file)
    #[arg(long, value_name = "SOCKET")]
    address: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
    /// A waterfall to look at with a browser
    Svg,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let config = Config::load(args.config.as_deref())?;
    let socket = socket_path(args.address.as_deref().unwrap_or(&config.address));
    let start = fetch(&socket, &args.name)?;
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

fn fetch(socket: &Path, name: &str) -> Result<Start> {
    let request = Request {
        timeline: Some(name.to_owned()),
        ..Request::default()
    };
    let request =
        serde_json::to_string(&request).map_err(|error| Error::Internal(error.to_string()))?;
    let text = ask(socket, &request, Some(PATIENCE))?;
    let answer: Answer = serde_json::from_str(&text).map_err(|error| Error::Malformed {
        what: format!("answer of {}", socket.display()),
        reason: error.to_string(),
    })?;
    match (answer.timeline, answer.error) {
        (Some(start), None) => Ok(start),
        (_, error) => Err(Error::Unusable {
            what: format!("timeline of {name}"),
            reason: error.unwrap_or_else(|| "the daemon does not tell".to_owned()),
        }),
    }
}
