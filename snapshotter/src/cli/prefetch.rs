//! `xebec-snapshotter prefetch`.

use std::path::PathBuf;

use super::status::ask;
use crate::config::Config;
use crate::daemon::status::{Answer, Request, socket_path};
use crate::digest::Digest;
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
    let registry = Registry::new(RegistryConfig::from(&config.registry))?;
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let layers = layers(&registry, &args.image, &platform)?;
    let socket = socket_path(args.address.as_deref().unwrap_or(&config.address));
    let request = serde_json::to_string(&Request { fill: layers })
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

/// The digests of an image's layers, bottom first.
pub(super) fn layers(
    registry: &Registry,
    image: &ImageRef,
    platform: &Platform,
) -> Result<Vec<Digest>> {
    let what = format!("image {image}");
    let manifest = match registry.manifest(image)?.document(&what)? {
        Document::Manifest(manifest) => manifest,
        Document::Index(index) => {
            let chosen = image.at_digest(index.select(platform, &what)?.digest);
            match registry.manifest(&chosen)?.document(&what)? {
                Document::Manifest(manifest) => manifest,
                Document::Index(_) => {
                    return Err(Error::Malformed {
                        what,
                        reason: "an index within an index".to_owned(),
                    });
                }
            }
        }
    };
    Ok(manifest.layers.iter().map(|layer| layer.digest).collect())
}
