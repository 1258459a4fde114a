//! `xebec-snapshotter prefetch`.

use std::sync::Arc;

use serde::Serialize;

use super::ask::DaemonArgs;
use crate::daemon::status::{LayerLine, Request};
use crate::digest::Digest;
use crate::discover::Image;
use crate::error::{Error, Result};
use crate::fetch::manifest::Document;
use crate::fetch::{ImageRef, Platform, Registry, RegistryConfig};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  xebec-snapshotter prefetch registry.example/app:v1
                                             returns when all of the image is on this node
  xebec-snapshotter prefetch --format json registry.example/app:v1 | jq '[.layers[].blob_bytes] | add'
                                             packed bytes of its layers")]
pub(super) struct Args {
    /// An image that was pulled lazily
    image: ImageRef,
    /// The image for this platform [default: that of this machine]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// How to print what is on this node then
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    daemon: DaemonArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// An image that is on this node.
#[derive(Serialize)]
struct Prefetched {
    image: String,
    /// Digest of its manifest.
    manifest: Digest,
    /// Its layers, as the status has them.
    layers: Vec<LayerLine>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let config = args.daemon.config()?;
    let registry = Arc::new(Registry::new(RegistryConfig::from(&config.registry))?);
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let manifest = manifest(&registry, &args.image, &platform)?;
    let image = Image::fetch(registry as _, &args.image, Some(manifest))?;
    let request = Request {
        fill: image.chain(),
        ..Request::default()
    };
    // It takes as long as the line needs for the image.
    let answer = args.daemon.ask(&request, None)?;
    if let Some(reason) = answer.error {
        return Err(Error::Unusable {
            what: format!("prefetch of {}", args.image),
            reason,
        });
    }
    if args.format == Format::Json {
        let prefetched = Prefetched {
            image: args.image.to_string(),
            manifest,
            layers: answer.filled,
        };
        let json = serde_json::to_string(&prefetched);
        println!(
            "{}",
            json.map_err(|error| Error::Internal(error.to_string()))?
        );
    }
    Ok(())
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
