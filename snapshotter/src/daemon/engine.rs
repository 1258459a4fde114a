//! The lazy engine, put together from the configuration and from what this host offers.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::config::{Config, MountMode};
use crate::error::{Error, Result};
use crate::fetch::{Registry, RegistryConfig};
use crate::mount::Lazy;

const FUSE: &str = "/dev/fuse";

/// Opens the lazy layers below the root, unless there is nothing to mount them with. No network is
/// used. The choice is logged: a silent full pull is the worst of all defaults.
pub(super) fn open(config: &Config) -> Result<Option<Arc<Lazy>>> {
    let fuse = File::options().read(true).write(true).open(FUSE);
    match (config.mount, fuse) {
        (MountMode::Off, _) => {
            tracing::info!("nothing is mounted lazily: the configuration says mount = \"off\"");
            Ok(None)
        }
        (MountMode::Auto, Err(error)) => {
            tracing::warn!(%error, "nothing is mounted lazily: {FUSE} cannot be opened");
            Ok(None)
        }
        (MountMode::Fuse, Err(error)) => Err(Error::io("open", Path::new(FUSE))(error)),
        (MountMode::Auto | MountMode::Fuse, Ok(_)) => {
            tracing::info!("lazy layers are mounted by FUSE");
            let blobs = Arc::new(Registry::new(RegistryConfig::from(&config.registry))?);
            let lazy = Lazy::open(&config.root.join("lazy"), blobs, (&config.lazy).into())?;
            Ok(Some(Arc::new(lazy)))
        }
    }
}
