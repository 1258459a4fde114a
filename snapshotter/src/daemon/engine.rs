//! The lazy engine, put together from the configuration.

use std::path::Path;
use std::sync::Arc;

use crate::config::{Config, MountMode};
use crate::error::Result;
use crate::fetch::{Registry, RegistryConfig};
use crate::mount::{Lazy, LazyConfig};

/// Opens the lazy layers below `root`, unless lazy mounts are switched off. No network is used.
pub(super) fn open(root: &Path, config: &Config) -> Result<Option<Arc<Lazy>>> {
    match config.mount {
        MountMode::Off => Ok(None),
        MountMode::Auto | MountMode::Fuse => {
            let blobs = Arc::new(Registry::new(RegistryConfig::from(&config.registry))?);
            Ok(Some(Arc::new(Lazy::open(
                &root.join("lazy"),
                blobs,
                LazyConfig::default(),
            )?)))
        }
    }
}
