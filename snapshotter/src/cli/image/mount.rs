//! `image mount` and `image unmount`.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::ask::DaemonArgs;
use super::super::prefetch::manifest;
use crate::direct;
use crate::discover::Image;
use crate::error::Result;
use crate::fetch::{ImageRef, Platform, Registry, RegistryConfig};

/// Arguments of `image mount`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  xebec-snapshotter image mount registry.example/model:v1 /srv/model
                                             its files, fetched as they are read
  xebec-snapshotter image unmount /srv/model")]
pub(super) struct MountArgs {
    /// Image in a registry: HOST/NAME:TAG
    #[arg(value_name = "REF")]
    image: ImageRef,
    /// An existing directory
    dir: PathBuf,
    /// The image for this platform (OS/ARCH[/VARIANT]) [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

/// Arguments of `image unmount`.
#[derive(Debug, clap::Args)]
pub(super) struct UnmountArgs {
    /// Where an image is mounted
    dir: PathBuf,
    #[command(flatten)]
    daemon: DaemonArgs,
}

pub(super) fn mount(args: &MountArgs) -> Result<()> {
    let config = args.daemon.config()?;
    let registry = Arc::new(Registry::new(RegistryConfig::from(&config.registry))?);
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let digest = manifest(&registry, &args.image, &platform)?;
    let image = Image::fetch(registry as _, &args.image, Some(digest))?;
    direct::mount(&args.daemon.socket()?, &image, &args.dir)
}

pub(super) fn unmount(args: &UnmountArgs) -> Result<()> {
    direct::unmount_at(&args.daemon.socket()?, &args.dir)
}
