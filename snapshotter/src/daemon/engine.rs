//! The lazy engine, put together from the configuration.

use std::path::Path;
use std::sync::Arc;

use crate::config::{Config, MountMode};
use crate::digest::Digest;
use crate::error::Result;
use crate::fetch::{BlobSource, ImageRef, Registry, RegistryConfig};
use crate::mount::{Blobs, Lazy, LazyConfig};

/// Opens the lazy layers below `root`, unless lazy mounts are switched off. No network is used.
pub(super) fn open(root: &Path, config: &Config) -> Result<Option<Arc<Lazy>>> {
    match config.mount {
        MountMode::Off => Ok(None),
        MountMode::Auto | MountMode::Fuse => {
            let registry = Registry::new(RegistryConfig::from(&config.registry))?;
            let blobs = Arc::new(RegistryBlobs(registry));
            Ok(Some(Arc::new(Lazy::open(
                &root.join("lazy"),
                blobs,
                LazyConfig::default(),
            )?)))
        }
    }
}

struct RegistryBlobs(Registry);

impl Blobs for RegistryBlobs {
    fn blob(&self, image: &ImageRef, layer: &Digest, size: u64) -> Result<Arc<dyn BlobSource>> {
        Ok(self.0.blob(image, layer, size))
    }
}
