//! `image`: tools for images; all but `mount` without a daemon.

mod convert;
mod copy;
mod index;
mod inspect;
mod mount;
mod optimize;
mod progress;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};

use crate::config::Config;
use crate::convert::Place;
use crate::error::{Error, Result};
use crate::fetch::RegistryConfig;

/// Limit for one registry request with its retries.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `image`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Convert an image so that containers start before it is there
    Convert(Box<convert::ConvertArgs>),
    /// Bring an image from one place to another as it is, all platforms of it
    Copy(Box<copy::Args>),
    /// Run an image, see what it reads, and convert it accordingly
    Optimize(Box<optimize::Args>),
    /// Show an image's layers, their sizes and which can be read lazily
    Inspect(Box<inspect::Args>),
    /// Make indexes of an image's ordinary layers, by which they can be read lazily
    Index(Box<index::Args>),
    /// Mount an image by the running daemon; its files are fetched as they are read
    Mount(Box<mount::MountArgs>),
    /// Unmount what `mount` has mounted
    Unmount(mount::UnmountArgs),
}

pub(super) fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Convert(args) => convert::run(*args),
        Command::Copy(args) => copy::run(*args),
        Command::Optimize(args) => optimize::run(*args),
        Command::Inspect(args) => inspect::run(*args),
        Command::Index(args) => index::run(&args),
        Command::Mount(args) => mount::mount(&args),
        Command::Unmount(args) => mount::unmount(&args),
    }
}

/// Format of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// How the places of images are reached.
#[derive(Debug, clap::Args)]
struct AccessArgs {
    /// Configuration file whose [registry] table is used [default: /etc/xebec/snapshotter.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of HOST/hosts.toml files, as containerd's config_path
    #[arg(long, value_name = "DIR")]
    hosts_dir: Option<PathBuf>,
    /// Speak to the named registries without TLS
    #[arg(long)]
    plain_http: bool,
    /// Accept any certificate of the named registries
    #[arg(long, conflicts_with = "plain_http")]
    insecure: bool,
    /// containerd's socket [default: $CONTAINERD_ADDRESS, else /run/containerd/containerd.sock]
    #[arg(long, value_name = "SOCKET")]
    containerd_address: Option<PathBuf>,
    /// containerd's namespace [default: $CONTAINERD_NAMESPACE, else default]
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
}

impl AccessArgs {
    /// Completes `places`, and gives what the client of registries is made with.
    fn apply(&self, places: &mut [&mut Place]) -> Result<RegistryConfig> {
        let file = Config::load(self.config.as_deref())?;
        let mut config = RegistryConfig::from(&file.registry);
        // Someone is waiting in front of a terminal.
        config.deadline = PATIENCE;
        if let Some(dir) = &self.hosts_dir {
            config.hosts_dir = Some(dir.clone());
        }
        for place in places {
            match place {
                Place::Registry(image) => {
                    if self.plain_http {
                        config.plain_http.push(image.host().to_owned());
                    }
                    if self.insecure {
                        config.skip_verify.push(image.host().to_owned());
                    }
                }
                Place::Containerd(image) => {
                    let variable = |name| std::env::var(name).ok().filter(|it| !it.is_empty());
                    let socket = variable("CONTAINERD_ADDRESS").map(PathBuf::from);
                    if let Some(socket) = self.containerd_address.clone().or(socket) {
                        image.socket = socket;
                    }
                    let namespace = variable("CONTAINERD_NAMESPACE");
                    if let Some(namespace) = self.namespace.clone().or(namespace) {
                        image.namespace = namespace;
                    }
                }
                Place::Layout(_) | Place::Archive(_) => {}
            }
        }
        Ok(config)
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Error::Internal(format!("result as JSON: {error}")))
}
