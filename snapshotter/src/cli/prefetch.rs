//! `xebec-snapshotter prefetch`.

use std::sync::Arc;

use super::ask::DaemonArgs;
use crate::daemon::status::Request;
use crate::digest::Digest;
use crate::discover::Image;
use crate::error::{Error, Result};
use crate::fetch::manifest::Document;
use crate::fetch::{ImageRef, Platform, Registry, RegistryConfig};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An image that was pulled lazily
    image: ImageRef,
    /// The image for this platform [default: that of this machine]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let config = args.daemon.config()?;
    let registry = Arc::new(Registry::new(RegistryConfig::from(&config.registry))?);
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let layers = layers(&registry, &args.image, &platform)?;
    let request = Request {
        fill: layers,
        ..Request::default()
    };
    // It takes as long as the line needs for the image.
    let answer = args.daemon.ask(&request, None)?;
    match answer.error {
        None => Ok(()),
        Some(reason) => Err(Error::Unusable {
            what: format!("prefetch of {}", args.image),
            reason,
        }),
    }
}

/// The digests of an image's layers as the daemon knows them, bottom first.
fn layers(
    registry: &Arc<Registry>,
    reference: &ImageRef,
    platform: &Platform,
) -> Result<Vec<Digest>> {
    let digest = manifest(registry, reference, platform)?;
    let image = Image::fetch(Arc::clone(registry) as _, reference, Some(digest))?;
    Ok(image.chain())
}

/// The digest of an image's manifest.
pub(super) fn manifest(
    registry: &Registry,
    image: &ImageRef,
    platform: &Platform,
) -> Result<Digest> {
    let what = format!("image {image}");
    let fetched = registry.manifest(image)?;
    match fetched.document(&what)? {
        Document::Manifest(_) => Ok(fetched.digest),
        Document::Index(index) => Ok(index.select(platform, &what)?.digest),
    }
}
