//! `xebec-snapshotter prefetch`.

use std::path::PathBuf;
use std::sync::Arc;

use super::status::ask;
use crate::config::Config;
use crate::daemon::status::{Answer, Request, socket_path};
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
    /// Configuration file of the daemon [default: /etc/xebec/snapshotter.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Unix socket on which the daemon serves containerd (overrides the file)
    #[arg(long, value_name = "SOCKET")]
    address: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let config = Config::load(args.config.as_deref())?;
    let registry = Arc::new(Registry::new(RegistryConfig::from(&config.registry))?);
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let layers = layers(&registry, &args.image, &platform)?;
    let socket = socket_path(args.address.as_deref().unwrap_or(&config.address));
    let request = serde_json::to_string(&Request {
        fill: layers,
        ..Request::default()
    })
    .map_err(|error| Error::Internal(error.to_string()))?;
    // It takes as long as the line needs for the image.
    let text = ask(&socket, &request, None)?;
    let answer: Answer = serde_json::from_str(&text).map_err(|error| Error::Malformed {
        what: format!("answer of {}", socket.display()),
        reason: error.to_string(),
    })?;
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
